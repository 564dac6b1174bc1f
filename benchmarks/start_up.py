"""What it takes to be told something: help, and a mistake in a flag, beside importing torch.

python -m benchmarks.start_up          (two minutes on two cores)
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.machine import describe_machine
from common.repository import REPOSITORY

BASE = "experiment_base"
TORCH = "import torch"
# By what the user did wrong: a flag's text, its value, and what is found once a session opens.
MISTAKES = {
    "--lr x": ("--lr", "x"),
    "--top-p 2": ("--top-p", "2"),
    "--data-path nowhere": ("--data-path", "nowhere"),
}


@dataclass(frozen=True)
class StartConfig:
    """Starts of train scripts that end with help or with a mistake."""

    rounds: int = 5
    """Starts of each kind, in turns; the first of all is left out, since it writes bytecode."""


@dataclass(frozen=True)
class Start:
    """Of one process from start to end."""

    wall_seconds: float
    cpu_seconds: float


def main(config: StartConfig) -> None:
    commands = {TORCH: ["-c", TORCH]}
    for script in sorted(REPOSITORY.glob("experiment_*/train.py")):
        commands[f"{script.parent.name} --help"] = [str(script), "--help"]
    for name, flags in MISTAKES.items():
        commands[f"{BASE} {name}"] = [str(REPOSITORY / BASE / "train.py"), *flags]
    starts: dict[str, list[Start]] = {name: [] for name in commands}
    for number in range(config.rounds + 1):
        for name, arguments in commands.items():
            start = started(arguments)
            if number > 0:
                starts[name].append(start)
    console = Console()
    console.out(describe_machine())
    console.out("| | wall clock | beyond torch | CPU time | beyond torch |\n|---|---|---|---|---|")
    torch = median(starts[TORCH])
    for name in commands:
        took = median(starts[name])
        console.out(
            f"| `{name}` | {took.wall_seconds:.2f} s | {took.wall_seconds - torch.wall_seconds:.2f}"
            f" s | {took.cpu_seconds:.2f} s | {took.cpu_seconds - torch.cpu_seconds:.2f} s |",
            highlight=False,
        )


def started(arguments: list[str]) -> Start:
    """Python with these arguments, in the directory of the base experiment.

    Raises `RuntimeError` for what ends neither well nor with a mistake of the user's.
    """
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(REPOSITORY)}
    before, began = children_cpu_seconds(), time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(REPOSITORY, BASE),
        env={**os.environ, **bytecode},
        capture_output=True,
        check=False,
    )
    took = Start(time.perf_counter() - began, children_cpu_seconds() - before)
    if ended.returncode not in (0, 2):
        raise RuntimeError(f"{arguments}: {ended.stderr.decode(errors='replace')}")
    return took


def children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def median(starts: list[Start]) -> Start:
    return Start(
        statistics.median(start.wall_seconds for start in starts),
        statistics.median(start.cpu_seconds for start in starts),
    )


if __name__ == "__main__":
    main(tyro.cli(StartConfig))
