"""Starting real processes as a user would, seeing that none is left, and comparing their runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from common.run.checkpoint import find_damage
from tests.helpers import REPOSITORY, numbers_of, read_rows

WORKER = str(Path(__file__).with_name("worker.py"))
SMALL = (
    *("--device", "cpu", "--rollouts-per-step", "6", "--group-size", "4"),
    *("--train-batch-size", "12", "--micro-batch-size", "5", "--eval-samples", "5"),
    *("--max-completion-tokens", "24", "--log-completions-interval", "1"),
    *("--correction", "sequence_truncated"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    *command: str,
    processes: int = 2,
    launcher: tuple[str, ...] = (),
    experiment: str | Path = "experiment_accelerate_ddp",
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`cd experiment && accelerate launch --multi_gpu --num_processes N ...`, one thread each."""
    several = (
        *("--multi_gpu", "--num_processes", str(processes)),
        *("--main_process_port", str(free_port())),
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *(launcher or several),
            *command,
        ],
        cwd=REPOSITORY / experiment,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def one_after_another(*cases: Sequence[str]) -> list[str]:
    """The command of several cases of the worker's: processes take longer to start than to work."""
    return [WORKER, *chain.from_iterable(("then", *case) for case in cases)]


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    """Exit code and all that was printed."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def workers(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The ranks that a launcher has started."""
    found = {}
    for child in psutil.Process(process.pid).children():
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child
    return found


def wait_for_rows(path: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < rows:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left_over(mark: Path, grace: float = 5) -> list[str]:
    """Command lines of processes that were started with `mark` and live on for `grace` seconds."""
    deadline = time.monotonic() + grace
    while True:
        found = [
            " ".join(process.info["cmdline"] or [])
            for process in psutil.process_iter(["cmdline"])
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        ]
        found = [line for line in found if str(mark) in line]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def kill_a_rank(process: subprocess.Popen[str], victim: int, directory: Path) -> None:
    """Kill a rank once there is a checkpoint; the job ends soon, says so, and leaves it whole."""
    latest = directory / "checkpoints" / "latest"
    wait_for_rows(latest, 1, process)
    workers(process)[victim].kill()
    code, printed = finish(process, timeout=60)
    assert code != 0
    assert f"Signal {signal.SIGKILL:d} (SIGKILL)" in printed
    assert f"rank      : {victim}" in printed
    assert left_over(directory.parents[1]) == []
    assert find_damage(latest.with_name(latest.read_text().strip())) is None


def assert_same_run(resumed: Path, straight: Path) -> None:
    """Row for row, number for number, and the weights at the end."""
    rows = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(resumed / "metrics.jsonl")) == rows
    *_, last = sorted((straight / "checkpoints").glob("step_*"))
    found = load_file(resumed / "checkpoints" / last.name / "model.safetensors")
    for name, expected in load_file(last / "model.safetensors").items():
        assert torch.equal(found[name], expected)


def assert_same_but_for_rounding(directory: Path, expected: Path) -> None:
    """The same rows to 1e-9, and the same completions."""
    rows, wanted_rows = (_shared_rows(each / "metrics.jsonl") for each in (directory, expected))
    assert len(rows) == len(wanted_rows)
    for row, wanted in zip(rows, wanted_rows, strict=True):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            for leaf, same in zip(_leaves(row[name]), _leaves(value), strict=True):
                if isinstance(same, int | float):
                    same = pytest.approx(same, rel=1e-9, abs=1e-12)
                assert leaf == same, name
    completions, wanted_completions = (
        [row["completion"] for row in read_rows(each / "samples.jsonl")]
        for each in (directory, expected)
    )
    assert completions == wanted_completions


def _shared_rows(path: Path) -> list[dict[str, Any]]:
    """What does not tell of the processes of a run."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("ddp/", "accelerate/"))}
        for row in numbers_of(read_rows(path))
    ]


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or all that an object or a list of JSON holds."""
    if isinstance(value, dict):
        yield from chain.from_iterable((key, *_leaves(item)) for key, item in value.items())
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_leaves, value))
    else:
        yield value


def assert_third_step_was_skipped(directory: Path) -> None:
    """What the worker's case `nan` leaves: a norm that is none, counted once, and one sample."""
    rows = read_rows(directory / "metrics.jsonl")
    counts = [row["training/invalid_loss_count"] for row in rows if "rollouts/returns_mean" in row]
    assert counts == [0, 1, 1]
    norms = [row["training_step/grad_norm"] for row in rows if "training_step/loss" in row]
    assert [norm is None for norm in norms] == [False, False, True, False, False, False]
    mismatches = [row["rollouts/logprob_mismatch_max"] for row in rows if "rollouts/kl_max" in row]
    assert max(mismatches) < 1e-3
    invalid = [row for row in read_rows(directory / "samples.jsonl") if "invalid_step" in row]
    assert [row["invalid_step"] for row in invalid] == [3]
