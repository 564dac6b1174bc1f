"""Two launchers on this host as if on two machines, against one launcher of two processes.

python -m benchmarks.two_machines          (about a minute)

The losses of both runs must be the same numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from common.errors import UserError
from common.repository import REPOSITORY
from common.run.files import read_rows

EXPERIMENT = REPOSITORY / "experiment_accelerate_ddp"


@dataclass(frozen=True)
class TwoMachinesConfig:
    """Two machines that are one."""

    steps: int = 3
    """Rollout batches of both runs."""
    port: int = 29511
    """Where the machines meet."""


def main(config: TwoMachinesConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        wait([start(config, root, "one", ())])
        wait(
            [
                start(
                    config,
                    root,
                    "two",
                    (
                        *("--num_machines", "2", "--machine_rank", str(rank)),
                        *("--main_process_ip", "127.0.0.1"),
                    ),
                )
                for rank in (0, 1)
            ]
        )
        one, two = (losses(root, name) for name in ("one", "two"))
    console.print("| optimizer step | one launcher | two launchers |\n|---|---|---|")
    for number, (here, there) in enumerate(zip(one, two, strict=True), start=1):
        console.print(f"| {number} | {here:.17g} | {there:.17g} |")
    if one != two:
        raise UserError("the losses differ")
    console.print("the same, to the last digit")


def start(
    config: TwoMachinesConfig, root: Path, name: str, machines: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *("--multi_gpu", "--num_processes", "2", *machines),
            *("--main_process_port", str(config.port)),
            *("train.py", "--device", "cpu", "--max-steps", str(config.steps)),
            *("--log-dir", str(root), "--run-name", name, "--eval-samples", "0", "--no-wandb"),
        ],
        cwd=EXPERIMENT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def wait(launchers: list[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        if launcher.wait():
            raise UserError(f"the launcher {launcher.args} failed")


def losses(root: Path, name: str) -> list[float]:
    rows = read_rows(root / EXPERIMENT.name / name / "metrics.jsonl")
    return [row["training_step/loss"] for row in rows if "training_step/loss" in row]


if __name__ == "__main__":
    main(tyro.cli(TwoMachinesConfig))
