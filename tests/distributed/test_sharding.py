"""Real processes that each hold a part of the model, against one that holds it whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.distributed.launching import (
    assert_same_but_for_rounding,
    assert_same_run,
    assert_third_step_was_skipped,
    finish,
    free_port,
    kill_a_rank,
    launch,
    left_over,
    one_after_another,
    wait_for_rows,
    workers,
)
from tests.distributed.test_ddp import (
    QUIET,
    TOLERANCES,
    five_steps,
    flags_of,
    flat_gradient,
    loss_of,
)
from tests.distributed.worker import DTYPES, OBJECTIVES, SPLITS, make_policy, use_float64
from tests.helpers import REPOSITORY, SMALL_TALK, complain, load_script, read_rows, train_here
from tests.variants import VARIANTS

pytestmark = pytest.mark.slow

EXPERIMENT = "experiment_base"
TALKING = "experiment_multiturn_tool_calling"
SEARCHING = "experiment_multiturn_qa"
LORA = ("--lora-rank", "4", "--lr", "1e-3")
# Runs in float64 that one process repeats.
EXACT = {
    "two": (),
    "three": (),
    "lora": LORA,
    "offloaded": ("--offload", "optimizer"),
    "checkpointing": ("--gradient-checkpointing",),
}
# Ranks of a job, and how many of them have a whole model together.
JOBS = {2: 2, 3: 3, 4: 2}


def flags(name: str, steps: int, root: Path) -> tuple[str, ...]:
    where = ("--run-name", name, "--log-dir", str(root), "--checkpoint-interval", "2")
    return (*flags_of(name, steps), *QUIET, *where, "--shard")


@dataclass(frozen=True)
class Launched:
    root: Path
    printed: str

    def directory(self, name: str) -> Path:
        return self.root / EXPERIMENT / name

    def results(self, ranks: int) -> list[dict[str, torch.Tensor]]:
        files = [self.root / str(ranks) / f"rank{rank}.pt" for rank in range(ranks)]
        assert all(file.exists() for file in files), self.printed
        return [torch.load(file) for file in files]


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Launched:
    root = tmp_path_factory.mktemp("sharded")
    printed = ""
    for ranks, cases in {
        2: (
            *(("float64", *flags(n, 3, root), *EXACT[n]) for n in EXACT if n != "three"),
            ("run", *flags("straight", 6, root)),
            ("nan", *flags("nan", 3, root)),
        ),
        3: (("float64", *flags("three", 3, root)),),
        4: (("run", *flags("four", 2, root), "--shard-within", "2"),),
    }.items():
        (root / str(ranks)).mkdir()
        gradients = ("sharded", str(root / str(ranks)), str(ranks), str(JOBS[ranks]))
        command = one_after_another(gradients, *cases)
        launcher = launch(*command, processes=ranks, experiment=EXPERIMENT)
        code, output = finish(launcher, timeout=400)
        printed += output
        assert code == 0, printed
    return Launched(root, printed)


@pytest.fixture(scope="module")
def straight(launched) -> Path:
    return launched.directory("straight")


@pytest.mark.parametrize("ranks", JOBS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_make_the_gradient_of_the_whole(launched, dtype, name, split, ranks):
    model = make_policy(DTYPES[dtype])
    loss = loss_of(model, VARIANTS[name], DTYPES[dtype])
    loss.backward()
    expected = flat_gradient(model)
    for results in launched.results(ranks):
        found = results[f"{dtype}/{name}/{split}"]
        assert (found - expected).norm() / expected.norm() < TOLERANCES[dtype]
        error = abs(results[f"{dtype}/{name}/{split}/loss"] - loss.double())
        assert error < TOLERANCES[dtype] * abs(loss)


@pytest.mark.parametrize("ranks", JOBS)
def test_after_five_steps_in_float64_the_weights_are_those_of_one_process(launched, ranks):
    start, expected = five_steps()
    for results in launched.results(ranks):
        moved = (results["weights"] - start).norm()
        assert moved > 1e-3
        assert (results["weights"] - expected).norm() / moved < 1e-9


@pytest.mark.parametrize("ranks", JOBS)
def test_ranks_that_read_unequal_trees_have_the_gradient_of_one(launched, ranks):
    """The first goes on from what it has read, in more passes than the others need."""
    for results in launched.results(ranks):
        assert results["tree passes"].max() > results["tree passes"].min()
        assert (results["tree"] - results["tree expected"]).norm() < 1e-9


@pytest.mark.parametrize("ranks", JOBS)
def test_a_rank_holds_its_part_of_all_that_a_learner_keeps(launched, ranks):
    """Weights, gradients, the optimizer's state and a reference, in bytes of their storages."""
    for results in launched.results(ranks):
        share = results["bytes"] / results["bytes of the whole"]
        assert 0.9 / JOBS[ranks] < share < 1.1 / JOBS[ranks]


@pytest.mark.parametrize("name", EXACT)
def test_one_process_and_several_have_the_same_rows_and_weights(launched, tmp_path, name):
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        given = ("--checkpoint-interval", "2", *EXACT[name])
        train_here(*flags_of("one", 3), *QUIET, *given, log_dir=tmp_path)
    one, several = tmp_path / EXPERIMENT / "one", launched.directory(name)
    assert_same_but_for_rounding(several, one)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    weights, found = (
        load_file(each / "checkpoints" / "step_000003" / file) for each in (one, several)
    )
    assert found.keys() == weights.keys()
    for weight, expected in weights.items():
        torch.testing.assert_close(found[weight], expected, rtol=0, atol=1e-9)


def test_in_bfloat16_weights_and_averages_stay_in_float32(tmp_path):
    bfloat16 = ("--dtype", "bfloat16")
    process = launch("train.py", *flags("two", 2, tmp_path), *bfloat16, experiment=EXPERIMENT)
    code, printed = finish(process)
    assert code == 0, printed
    train_here(*flags_of("one", 2), *QUIET, *bfloat16, log_dir=tmp_path)
    norms = [
        [row["training_step/grad_norm"] for row in rows if "training_step/grad_norm" in row]
        for rows in (
            read_rows(tmp_path / EXPERIMENT / name / "metrics.jsonl") for name in ("one", "two")
        )
    ]
    assert norms[1][0] == pytest.approx(norms[0][0], rel=0.02)
    checkpoint = tmp_path / EXPERIMENT / "two" / "checkpoints" / "step_000002"
    weights = load_file(checkpoint / "model.safetensors")
    part = torch.load(checkpoint / "parts" / "optimizer_00000.pt")
    averages = [value for state in part.values() for value in state.values() if value.ndim]
    assert {value.dtype for value in (*weights.values(), *averages)} == {torch.float32}


def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_counted_once(launched):
    assert_third_step_was_skipped(launched.directory("nan"))


def test_a_checkpoint_is_a_whole_model_and_a_part_of_the_optimizer_for_each_rank(launched):
    checkpoint = launched.directory("straight") / "checkpoints" / "step_000006"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert all(p.isfinite().all() for p in model.parameters())
    parts = sorted((checkpoint / "parts").iterdir())
    assert [part.name for part in parts] == ["optimizer_00000.pt", "optimizer_00001.pt"]
    first, second = (torch.load(part)["model.model.norm.weight"]["exp_avg"] for part in parts)
    assert len(first) + len(second) == len(model.model.norm.weight)


def test_a_checkpoint_of_adapters_holds_those_alone(launched):
    checkpoint = launched.directory("lora") / "checkpoints" / "step_000003"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 1e6
    assert not (checkpoint / "model.safetensors").exists()
    rows = read_rows(launched.directory("lora") / "metrics.jsonl")
    norms = [row["training_step/grad_norm"] for row in rows if "training_step/loss" in row]
    assert min(norms) > 0


def test_of_copies_on_several_machines_the_first_has_its_optimizers_state_saved(launched):
    parts = launched.directory("four") / "checkpoints" / "step_000002" / "parts"
    assert len(list(parts.iterdir())) == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_resumed_run_is_exact(tmp_path, straight, victim):
    process = launch("train.py", *flags("r", 6, tmp_path), experiment=EXPERIMENT)
    kill_a_rank(process, victim, tmp_path / EXPERIMENT / "r")
    resuming = launch("train.py", *flags("r", 6, tmp_path), "--resume", experiment=EXPERIMENT)
    code, printed = finish(resuming)
    assert code == 0, printed
    assert_same_run(tmp_path / EXPERIMENT / "r", straight)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_stopped_is_resumed_by_another_number_of_ranks(tmp_path, stop):
    """Ctrl-C reaches the launcher and all ranks."""
    offloaded = ("--offload", "optimizer") if stop == signal.SIGINT else ()
    process = launch("train.py", *flags("r", 6, tmp_path), *offloaded, experiment=EXPERIMENT)
    directory = tmp_path / EXPERIMENT / "r"
    wait_for_rows(directory / "metrics.jsonl", 5, process)
    reached = [process, *workers(process).values()] if stop == signal.SIGINT else [process]
    for one in reached:
        one.send_signal(stop)
    code, printed = finish(process, timeout=60)
    assert code != 0
    assert "(--resume continues)" in printed
    assert left_over(tmp_path) == []
    resuming = launch(
        *("train.py", *flags("r", 6, tmp_path), *offloaded, "--resume"),
        processes=3,
        experiment=EXPERIMENT,
    )
    code, printed = finish(resuming)
    assert code == 0, printed
    assert "3 processes instead of 2" in printed
    assert "not the same number for number" in printed
    last = directory / "checkpoints" / "step_000006"
    assert len(list((last / "parts").iterdir())) == 3


def test_a_dry_run_says_what_each_rank_holds(tmp_path):
    """The bundled model has 3.48 MB of weights."""
    given = ("--dry-run", "--shard", "--device", "cpu", "--no-wandb", "--log-dir", str(tmp_path))
    code, printed = finish(launch("train.py", *given, experiment=EXPERIMENT))
    assert code == 0, printed
    assert (
        "each process holds 1.74 MB of weights, 1.74 MB of gradients, 3.48 MB of AdamW's averages, "
        "1.74 MB of the reference, 3.48 MB of a whole copy that samples\n"
    ) in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["sharded", "hybrid", "multi-turn", "multi-turn, sharded"])
def test_two_launchers_as_if_on_two_machines_give_the_losses_of_one(kind):
    options = (f"--port={free_port()}", "--steps", "2", "--only", kind)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_machines", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same, to the last digit\n")


@pytest.mark.parametrize(
    "experiment",
    ["experiment_drgrpo", "experiment_accelerate", "experiment_accelerate_ddp", SEARCHING],
)
def test_every_experiment_learns_in_parts(tmp_path, experiment):
    """Beside the base and the calling of tools."""
    given = SMALL_TALK if experiment == SEARCHING else ("--rollouts-per-step", "4")
    given = (*given, "--no-wandb", "--no-tensorboard", "--device", "cpu", "--max-steps", "2")
    process = launch(
        *("train.py", *given, "--eval-samples", "0", "--run-name", "two", "--shard"),
        *("--log-dir", str(tmp_path)),
        experiment=experiment,
    )
    code, printed = finish(process)
    assert code == 0, printed
    rows = read_rows(tmp_path / experiment / "two" / "metrics.jsonl")
    norms = [row["training_step/grad_norm"] for row in rows if "training_step/grad_norm" in row]
    assert len(norms) >= 2
    assert max(norms) > 0


def test_conversations_are_learned_from_in_parts(tmp_path):
    given = (*SMALL_TALK, "--no-tensorboard", "--device", "cpu", "--max-steps", "2")
    process = launch(
        *("train.py", *given, "--run-name", "two", "--shard", "--log-dir", str(tmp_path)),
        experiment=TALKING,
    )
    code, printed = finish(process)
    assert code == 0, printed
    train_here(*given, "--run-name", "one", experiment=TALKING, log_dir=tmp_path)
    first, second = (
        next(
            row["training_step/grad_norm"]
            for row in read_rows(tmp_path / TALKING / name / "metrics.jsonl")
            if "training_step/grad_norm" in row
        )
        for name in ("one", "two")
    )
    assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("experiment", [EXPERIMENT, "experiment_accelerate"])
def test_a_run_of_one_process_has_nobody_to_share_with(tmp_path, experiment):
    code, said = complain(load_script(experiment), ["--shard", "--log-dir", str(tmp_path)])
    assert code == 2
    assert said.startswith("error: --shard: a run of one process has none to share its weights")
    assert not list(tmp_path.iterdir())
