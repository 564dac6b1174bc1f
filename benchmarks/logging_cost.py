"""What logging costs: paired default runs with W&B and TensorBoard, and without both.

python -m benchmarks.logging_cost          (about seven minutes on two cores)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import tyro
from rich.console import Console

from common.run.directory import REPOSITORY

SILENT = ("--no-wandb", "--no-tensorboard")


@dataclass(frozen=True)
class CostConfig:
    """Paired runs of the base experiment."""

    pairs: int = 5
    """Runs of each kind, in turns."""
    threads: int = 2
    """Threads of each run."""


def main(config: CostConfig) -> None:
    console = Console()
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(config.pairs):
        # In turns, and each kind first in every other pair, so that drift hits both alike.
        kinds = [("with", ()), ("without", SILENT)]
        for kind, flags in kinds if number % 2 == 0 else reversed(kinds):
            seconds[kind].append(run(flags, config.threads))
            console.out(f"{kind} logging: {seconds[kind][-1]:.2f} s")
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    share = medians["with"] / medians["without"] - 1
    console.out(f"medians {medians['with']:.2f} s and {medians['without']:.2f} s: {share:+.1%}")


def run(flags: tuple[str, ...], threads: int) -> float:
    """Wall clock of a whole default run, start and end included."""
    with tempfile.TemporaryDirectory() as root:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WANDB_MODE": "offline"}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "train.py", "--log-dir", root, *flags],
            cwd=REPOSITORY / "experiment_base",
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(CostConfig))
