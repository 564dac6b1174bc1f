"""Two real processes against one, and what happens when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.algo.kl import kl_divergence_k3
from common.algo.objective import Objective
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import ExperienceBatch, totals_of
from common.run.checkpoint import find_damage
from tests.distributed.launching import (
    SMALL,
    finish,
    free_port,
    launch,
    left_over,
    wait_for_rows,
    workers,
)
from tests.distributed.worker import (
    DTYPES,
    KL_WEIGHT,
    LEARNING_RATE,
    OBJECTIVES,
    SPLITS,
    buffer,
)
from tests.helpers import REPOSITORY, numbers_of, random_model, read_rows, run_training
from tests.variants import VARIANTS, token_losses

pytestmark = pytest.mark.slow

WORKER = str(Path(__file__).with_name("worker.py"))
TOLERANCES = {"float32": 1e-5, "float64": 1e-9}
EXPERIMENT = "experiment_accelerate_ddp"


def loss_of(model: TokenLogProbs, objective: Objective, dtype: torch.dtype) -> torch.Tensor:
    """The whole buffer in one padded batch, in this process."""
    everything = buffer(dtype)
    batch = ExperienceBatch.collate(everything, torch.device("cpu"))
    assert batch.log_probs_ref is not None
    assert batch.advantages is not None
    log_probs, _ = model(batch.token_ids, batch.attention_mask, batch.sampled)
    per_token = token_losses(
        objective, log_probs, batch.log_probs_old, batch.advantages, batch.sampled
    )
    kl = kl_divergence_k3(log_probs, batch.log_probs_ref, batch.sampled)
    return objective.aggregate(per_token + KL_WEIGHT * kl, batch.sampled, totals_of(everything))


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """Everything that two processes computed from the buffer, on each of them."""
    output = tmp_path_factory.mktemp("gradients")
    code, printed = finish(launch(WORKER, "gradients", str(output)))
    assert code == 0, printed
    return [torch.load(output / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("way", ["own", "ddp"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_make_the_gradient_of_one(of_two_ranks, dtype, name, split, way):
    model = TokenLogProbs(random_model(DTYPES[dtype]), temperature=1.0)
    loss = loss_of(model, VARIANTS[name], DTYPES[dtype])
    loss.backward()
    expected = flat_gradient(model)
    assert expected.norm() > 1e-3
    for results in of_two_ranks:
        found = results[f"{dtype}/{name}/{split}/{way}"]
        assert (found - expected).norm() / expected.norm() < TOLERANCES[dtype]
        error = abs(results[f"{dtype}/{name}/{split}/{way}/loss"] - loss.double())
        assert error < TOLERANCES[dtype] * abs(loss)


def test_after_five_steps_in_float64_the_weights_are_those_of_one_process(of_two_ranks):
    model = TokenLogProbs(random_model(torch.float64), temperature=1.0)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(5):
        loss_of(model, VARIANTS["grpo"], torch.float64).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    for results in of_two_ranks:
        moved = (results["weights"] - start).norm()
        assert moved > 1e-3
        assert (results["weights"] - expected).norm() / moved < 1e-9


def directory_of(root: Path, name: str = "r") -> Path:
    return root / EXPERIMENT / name


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory):
    """Three steps of the same run, by one process and by two."""
    root = tmp_path_factory.mktemp("runs")
    flags = (*SMALL, "--max-steps", "3", "--log-dir", str(root))
    two = launch(WORKER, "float64", *flags, "--run-name", "two")
    code, printed = finish(two)
    assert code == 0, printed
    one = subprocess.run(
        [sys.executable, WORKER, "float64", *flags, "--run-name", "one", "--no-wandb"],
        cwd=REPOSITORY / EXPERIMENT,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 0, one.stderr
    return directory_of(root, "one"), directory_of(root, "two"), printed


def without_ddp(rows):
    return [
        {name: value for name, value in row.items() if not name.startswith(("ddp/", "accelerate/"))}
        for row in numbers_of(rows)
    ]


def leaves(value: Any) -> Iterator[Any]:
    """A value, or all that an object or a list of JSON holds."""
    if isinstance(value, dict):
        yield from chain.from_iterable((key, *leaves(item)) for key, item in value.items())
    elif isinstance(value, list):
        yield from chain.from_iterable(map(leaves, value))
    else:
        yield value


def test_one_and_two_processes_have_the_same_rows(in_float64):
    one, two, _ = in_float64
    expected = without_ddp(read_rows(one / "metrics.jsonl"))
    found = without_ddp(read_rows(two / "metrics.jsonl"))
    assert len(found) == len(expected)
    assert sum("training_step/loss" in row for row in found) == 6
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            for leaf, same in zip(leaves(row[name]), leaves(value), strict=True):
                if isinstance(same, int | float):
                    same = pytest.approx(same, rel=1e-9, abs=1e-12)
                assert leaf == same, name
    assert [row["completion"] for row in read_rows(two / "samples.jsonl")] == [
        row["completion"] for row in read_rows(one / "samples.jsonl")
    ]


def test_the_first_rank_alone_writes(in_float64):
    _, two, printed = in_float64
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
    assert printed.count("\nrun: ") == 1
    assert printed.count("W&B initialized: grpo_accelerate_ddp/two (offline)") == 1


def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_counted_once(tmp_path):
    flags = (*SMALL, "--max-steps", "3", "--log-dir", str(tmp_path), "--run-name", "r")
    code, printed = finish(launch(WORKER, "nan", *flags, "--no-wandb"))
    assert code == 0, printed
    rows = read_rows(directory_of(tmp_path) / "metrics.jsonl")
    counts = [row["training/invalid_loss_count"] for row in rows if "rollouts/returns_mean" in row]
    assert counts == [0, 1, 1]
    norms = [row["training_step/grad_norm"] for row in rows if "training_step/loss" in row]
    assert [norm is None for norm in norms] == [False, False, True, False, False, False]
    mismatches = [row["rollouts/logprob_mismatch_max"] for row in rows if "rollouts/kl_max" in row]
    assert max(mismatches) < 1e-3
    invalid = [
        row for row in read_rows(directory_of(tmp_path) / "samples.jsonl") if "invalid_step" in row
    ]
    assert [row["invalid_step"] for row in invalid] == [3]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    root = tmp_path_factory.mktemp("straight")
    code, printed = finish(launch("train.py", *long_flags(root)))
    assert code == 0, printed
    return directory_of(root)


def long_flags(root: Path) -> tuple[str, ...]:
    return (
        *SMALL,
        *("--max-steps", "6", "--checkpoint-interval", "2", "--no-wandb"),
        *("--log-dir", str(root), "--run-name", "r"),
    )


def assert_same_run(resumed: Path, straight: Path) -> None:
    rows = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(resumed / "metrics.jsonl")) == rows
    weights = "checkpoints/step_000006/model.safetensors"
    found = load_file(resumed / weights)
    for name, expected in load_file(straight / weights).items():
        assert torch.equal(found[name], expected)


def wait_for_checkpoint(root: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (directory_of(root) / "checkpoints" / "latest").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_rank_ends_the_job_and_the_resumed_run_is_exact(tmp_path, straight):
    process = launch("train.py", *long_flags(tmp_path))
    wait_for_checkpoint(tmp_path, process)
    # The one that writes.
    workers(process)[0].kill()
    start = time.monotonic()
    code, printed = finish(process, timeout=60)
    assert time.monotonic() - start < 60
    assert code != 0
    assert "Signal 9 (SIGKILL)" in printed
    assert "rank      : 0" in printed
    assert left_over(tmp_path) == []
    latest = directory_of(tmp_path) / "checkpoints" / "latest"
    assert find_damage(latest.with_name(latest.read_text().strip())) is None
    code, printed = finish(launch("train.py", *long_flags(tmp_path), "--resume"))
    assert code == 0, printed
    assert_same_run(directory_of(tmp_path), straight)


def test_a_rank_that_raises_ends_the_job_and_is_named(tmp_path):
    flags = (*SMALL, "--max-steps", "6", "--checkpoint-interval", "1", "--no-wandb")
    start = time.monotonic()
    process = launch(WORKER, "raises", *flags, "--log-dir", str(tmp_path), "--run-name", "r")
    code, printed = finish(process, timeout=90)
    assert time.monotonic() - start < 90
    assert code != 0
    assert "RuntimeError: planted on rank 1" in printed
    assert "rank      : 1" in printed
    assert left_over(tmp_path) == []
    assert find_damage(directory_of(tmp_path) / "checkpoints" / "step_000001") is None


def test_sigterm_to_the_launcher_saves(tmp_path):
    process = launch("train.py", *long_flags(tmp_path))
    wait_for_rows(directory_of(tmp_path) / "metrics.jsonl", 5, process)
    process.send_signal(signal.SIGTERM)
    code, printed = finish(process, timeout=60)
    assert code != 0
    assert "stopping as soon as the step can be saved" in printed
    assert "(--resume continues)" in printed
    assert left_over(tmp_path) == []
    assert (directory_of(tmp_path) / "checkpoints" / "latest").exists()


def test_a_launcher_that_is_killed_leaves_no_rank_behind(tmp_path):
    process = launch("train.py", *long_flags(tmp_path))
    wait_for_rows(directory_of(tmp_path) / "metrics.jsonl", 5, process)
    ranks = list(workers(process).values())
    process.kill()
    for rank in ranks:
        rank.wait(timeout=60)
    process.communicate()
    assert (directory_of(tmp_path) / "checkpoints" / "latest").exists()


def test_resuming_with_another_number_of_processes_works_and_says_what_it_means(tmp_path):
    flags = (*SMALL, "--log-dir", str(tmp_path), "--run-name", "r", "--no-wandb")
    one = run_training(*flags, "--max-steps", "1", experiment=EXPERIMENT, log_dir=tmp_path)
    assert one.returncode == 0, one.stderr
    code, printed = finish(launch("train.py", *flags, "--max-steps", "2", "--resume"))
    assert code == 0, printed
    assert "2 processes instead of 1" in printed
    assert "not the same number for number" in printed
    rows = read_rows(directory_of(tmp_path) / "metrics.jsonl")
    assert [row["ddp/num_processes"] for row in rows if "ddp/num_processes" in row] == [1, 2]


def test_a_users_mistake_is_one_line_of_the_first_rank(tmp_path):
    (tmp_path / EXPERIMENT / "r").mkdir(parents=True)
    flags = (*SMALL, "--log-dir", str(tmp_path), "--run-name", "r", "--no-wandb")
    code, printed = finish(launch("train.py", *flags), timeout=60)
    assert code != 0
    assert printed.count("error: rank 0: --run-name r: ") == 1
    assert "error: rank 1" not in printed
    assert left_over(tmp_path) == []


def test_two_launchers_make_one_run_as_two_machines_would(tmp_path, straight):
    port = free_port()
    machines = [
        launch(
            "train.py",
            *long_flags(tmp_path),
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
