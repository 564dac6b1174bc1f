"""Starting real processes as a user would, and seeing that none is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.helpers import REPOSITORY

SMALL = (
    *("--device", "cpu", "--rollouts-per-step", "6", "--group-size", "4"),
    *("--train-batch-size", "12", "--micro-batch-size", "5", "--eval-samples", "5"),
    *("--max-completion-tokens", "24", "--log-completions-interval", "1"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    *command: str,
    processes: int = 2,
    launcher: tuple[str, ...] = (),
    experiment: str = "experiment_accelerate_ddp",
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
