"""Two real processes against one, and what happens when one of them fails."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common.algo.kl import kl_divergence_k3
from common.algo.objective import Objective
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import ExperienceBatch, totals_of
from common.run.checkpoint import find_damage
from tests.distributed.launching import (
    SMALL,
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
from tests.distributed.worker import (
    DTYPES,
    ENTROPY_WEIGHT,
    KL_WEIGHT,
    LEARNING_RATE,
    OBJECTIVES,
    SPLITS,
    buffer,
    make_policy,
    use_float64,
)
from tests.helpers import read_rows, train_here
from tests.variants import VARIANTS, token_losses

pytestmark = pytest.mark.slow

TOLERANCES = {"float32": 1e-5, "float64": 1e-9}
EXPERIMENT = "experiment_accelerate_ddp"
# What shows runs elsewhere takes seconds to start.
QUIET = ("--no-wandb", "--no-tensorboard")


def flags_of(name: str, steps: int) -> tuple[str, ...]:
    of_entropy = ("--entropy-weight", "0.01", "--top-entropy", "0.5")
    return (*SMALL, *of_entropy, "--run-name", name, "--max-steps", str(steps))


# Sets of tokens to choose from, scores that all ranks need, and experiences that move twice.
TOLD = (
    *("--epochs-per-step", "2", "--top-p", "0.9", "--kl-in", "reward", "--overlong", "mask"),
    *("--dynamic-sampling", "2", "--histogram-interval", "2"),
)


def long_flags(root: Path, name: str = "r") -> tuple[str, ...]:
    """A run that is long enough to be disturbed."""
    flags = (*flags_of(name, 6), "--checkpoint-interval", "2", *QUIET)
    return (*flags, "--log-dir", str(root))


def directory_of(root: Path, name: str = "r") -> Path:
    return root / EXPERIMENT / name


@dataclass(frozen=True)
class Launched:
    """What two processes did, one case after another, until one of them failed."""

    root: Path
    code: int
    printed: str

    def directory(self, name: str) -> Path:
        return directory_of(self.root, name)


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Launched:
    root = tmp_path_factory.mktemp("launched")
    where = ("--log-dir", str(root))
    command = one_after_another(
        ("gradients", str(root)),
        ("float64", *flags_of("two", 3), *where),
        ("float64", *flags_of("told", 3), *QUIET, *where, *TOLD),
        ("run", *long_flags(root, "straight")),
        ("nan", *flags_of("nan", 3), *QUIET, *where),
        ("refused", *flags_of("two", 3), *where),
        ("raises", *flags_of("raises", 6), "--checkpoint-interval", "1", *QUIET, *where),
    )
    return Launched(root, *finish(launch(*command), timeout=400))


@pytest.fixture(scope="module")
def straight(launched) -> Path:
    """A run of two processes that nothing disturbed."""
    return launched.directory("straight")


@pytest.fixture(scope="module")
def of_two_ranks(launched):
    """Everything that two processes computed from the buffer, on each of them."""
    files = [launched.root / f"rank{rank}.pt" for rank in (0, 1)]
    assert all(file.exists() for file in files), launched.printed
    return [torch.load(file) for file in files]


def loss_of(model: TokenLogProbs, objective: Objective, dtype: torch.dtype) -> torch.Tensor:
    """The whole buffer in one padded batch, in this process."""
    everything = buffer(dtype)
    batch = ExperienceBatch.collate(everything, torch.device("cpu"))
    assert batch.log_probs_old is not None
    assert batch.log_probs_ref is not None
    assert batch.advantages is not None
    log_probs, entropy = model(batch.token_ids, batch.attention_mask, batch.sampled)
    per_token = token_losses(
        objective, log_probs, batch.log_probs_old, batch.advantages, batch.sampled
    )
    kl = kl_divergence_k3(log_probs, batch.log_probs_ref, batch.sampled)
    per_token = per_token + KL_WEIGHT * kl - ENTROPY_WEIGHT * entropy
    return objective.aggregate(per_token, batch.sampled, totals_of(everything))


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("way", ["own", "ddp"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_make_the_gradient_of_one(of_two_ranks, dtype, name, split, way):
    model = make_policy(DTYPES[dtype])
    loss = loss_of(model, VARIANTS[name], DTYPES[dtype])
    loss.backward()
    expected = flat_gradient(model)
    assert expected.norm() > 1e-3
    for results in of_two_ranks:
        found = results[f"{dtype}/{name}/{split}/{way}"]
        assert (found - expected).norm() / expected.norm() < TOLERANCES[dtype]
        error = abs(results[f"{dtype}/{name}/{split}/{way}/loss"] - loss.double())
        assert error < TOLERANCES[dtype] * abs(loss)


def five_steps() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after five steps, in this process."""
    model = make_policy(torch.float64)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(5):
        loss_of(model, VARIANTS["grpo"], torch.float64).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return start, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_after_five_steps_in_float64_the_weights_are_those_of_one_process(of_two_ranks):
    start, expected = five_steps()
    for results in of_two_ranks:
        moved = (results["weights"] - start).norm()
        assert moved > 1e-3
        assert (results["weights"] - expected).norm() / moved < 1e-9


def test_a_gradient_that_some_ranks_lack_counts_as_nothing_and_one_that_all_lack_stays_away(
    of_two_ranks,
):
    for results in of_two_ranks:
        assert results["scarce"].tolist() == [3, 3]
        assert results["absent"] is None


def test_one_and_two_processes_have_the_same_rows(launched, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        train_here(*flags_of("one", 3), *QUIET, experiment=EXPERIMENT, log_dir=tmp_path)
    two = launched.directory("two")
    assert_same_but_for_rounding(two, directory_of(tmp_path, "one"))
    steps = [row for row in read_rows(two / "metrics.jsonl") if "training_step/loss" in row]
    assert len(steps) == 6
    assert [row["training_step/ratio_max"] == 1 for row in steps] == [True, False] * 3


def test_what_ranks_tell_one_another_of_every_kind_makes_the_rows_of_one(launched, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        train_here(*flags_of("one", 3), *QUIET, *TOLD, experiment=EXPERIMENT, log_dir=tmp_path)
    assert_same_but_for_rounding(launched.directory("told"), directory_of(tmp_path, "one"))


def test_a_run_says_how_much_its_first_rank_was_told(launched):
    """3 of 6 groups of 4 completions: at least 280 bytes each; at most all of a conversation."""
    rows = read_rows(launched.directory("straight") / "metrics.jsonl")
    told = [row["ddp/received_bytes"] for row in rows if "ddp/received_bytes" in row]
    assert len(told) == 6
    assert all(12 * 280 < bytes_told < 60_000 for bytes_told in told)


def test_the_first_rank_alone_writes(launched):
    two = launched.directory("two")
    rows = read_rows(two / "metrics.jsonl")
    (ranks,) = {
        tuple(row[f"ddp/{name}"] for name in ("num_processes", "process_index"))
        for row in rows
        if "ddp/num_processes" in row
    }
    assert ranks == (2, 0)
    assert all(row["ddp/sync_gradients"] == 1 for row in rows if "ddp/sync_gradients" in row)
    assert len(list((two / "wandb").glob("offline-run-*"))) == 1
    assert len(list(two.glob("events.out.tfevents.*"))) == 1
    assert launched.printed.count(f"\nrun: {two}") == 1
    assert "Warning" not in launched.printed
    assert launched.printed.count("W&B initialized: grpo_accelerate_ddp/two (offline)") == 1


def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_counted_once(launched):
    assert_third_step_was_skipped(launched.directory("nan"))


def test_a_mistake_that_the_first_rank_finds_is_one_of_all_ranks(launched):
    said = [line for line in launched.printed.splitlines() if "error: rank " in line]
    assert len(said) == 2
    assert all(f"error: rank {rank}: --run-name two: " in "".join(said) for rank in (0, 1))


def test_a_rank_that_raises_ends_the_job_and_is_named(launched):
    assert launched.code != 0
    assert "RuntimeError: planted on rank 1" in launched.printed
    assert "rank      : 1" in launched.printed
    assert left_over(launched.root) == []
    assert find_damage(launched.directory("raises") / "checkpoints" / "step_000001") is None


def test_a_killed_first_rank_ends_the_job_which_one_process_may_resume(tmp_path):
    process = launch("train.py", *long_flags(tmp_path))
    kill_a_rank(process, 0, directory_of(tmp_path))
    printed = train_here("--run-name", "r", "--resume", experiment=EXPERIMENT, log_dir=tmp_path)
    assert "1 processes instead of 2" in printed
    assert "not the same number for number" in printed
    rows = read_rows(directory_of(tmp_path) / "metrics.jsonl")
    counts = [row["ddp/num_processes"] for row in rows if "ddp/num_processes" in row]
    assert len(counts) == 6
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {1, 2}


def test_a_run_that_sigterm_stopped_goes_on_exactly_by_two_launchers_as_on_two_machines(
    tmp_path, straight
):
    process = launch("train.py", *long_flags(tmp_path))
    wait_for_rows(directory_of(tmp_path) / "metrics.jsonl", 5, process)
    process.send_signal(signal.SIGTERM)
    code, printed = finish(process, timeout=60)
    assert code != 0
    assert "stopping as soon as the step can be saved" in printed
    assert "(--resume continues)" in printed
    assert left_over(tmp_path) == []
    assert (directory_of(tmp_path) / "checkpoints" / "latest").exists()
    port = free_port()
    machines = [
        launch(
            *("train.py", *long_flags(tmp_path), "--resume"),
            launcher=(
                *("--multi_gpu", "--num_processes", "2", "--num_machines", "2"),
                *("--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"),
                *("--main_process_port", str(port)),
            ),
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        code, printed = finish(machine)
        assert code == 0, printed
    assert_same_run(directory_of(tmp_path), straight)


def test_a_launcher_that_is_killed_leaves_no_rank_behind(tmp_path):
    process = launch("train.py", *long_flags(tmp_path))
    wait_for_rows(directory_of(tmp_path) / "metrics.jsonl", 5, process)
    ranks = list(workers(process).values())
    process.kill()
    for rank in ranks:
        rank.wait(timeout=60)
    process.communicate()
    assert (directory_of(tmp_path) / "checkpoints" / "latest").exists()
