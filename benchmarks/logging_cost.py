"""What logging costs: default runs, runs that log all that there is, and runs that log nothing.

python -m benchmarks.logging_cost          (about ten minutes on two cores)
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import tyro
from rich.console import Console

from common.repository import REPOSITORY

SILENT = (
    *("--no-wandb", "--no-tensorboard"),
    *("--log-completions-interval", "0", "--histogram-interval", "0"),
)
KINDS = {
    "nothing": SILENT,
    "default": (),
    "all": ("--figures-interval", "10", "--log-artifacts"),
}


@dataclass(frozen=True)
class CostConfig:
    """Runs of the base experiment."""

    rounds: int = 5
    """Runs of each kind, in turns."""
    steps: int = 25
    """Rollout batches of each run; W&B takes its time at the start, whatever follows."""
    threads: int = 2
    """Threads of each run."""


@dataclass(frozen=True)
class Cost:
    """Of one run from start to end. Other work on the machine hardly changes its CPU time."""

    wall_seconds: float
    cpu_seconds: float


def main(config: CostConfig) -> None:
    console = Console()
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    for number in range(config.rounds):
        # In turns, and in the opposite order every other time, so that drift hits all alike.
        for kind in list(KINDS)[:: 1 if number % 2 == 0 else -1]:
            cost = run((*KINDS[kind], "--max-steps", str(config.steps)), config.threads)
            costs[kind].append(cost)
            console.out(f"{kind:>8}: {cost.wall_seconds:6.2f} s, CPU {cost.cpu_seconds:6.2f} s")
    for name in ("wall_seconds", "cpu_seconds"):
        medians = {
            kind: statistics.median(getattr(cost, name) for cost in kind_costs)
            for kind, kind_costs in costs.items()
        }
        for kind, median in medians.items():
            share = median / medians["nothing"] - 1
            console.out(f"median {name}, {kind}: {median:.2f} ({share:+.1%})")


def run(flags: tuple[str, ...], threads: int) -> Cost:
    """A whole default run, start and end and wandb's own process included."""
    with tempfile.TemporaryDirectory() as root:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WANDB_MODE": "offline"}
        start, cpu_start = time.perf_counter(), cpu_seconds_of_children()
        subprocess.run(
            [sys.executable, "train.py", "--log-dir", root, *flags],
            cwd=REPOSITORY / "experiment_base",
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return Cost(time.perf_counter() - start, cpu_seconds_of_children() - cpu_start)


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(tyro.cli(CostConfig))
