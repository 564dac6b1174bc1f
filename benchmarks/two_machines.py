"""Two launchers on this host as if on two machines, against one launcher of two processes.

python -m benchmarks.two_machines          (about four minutes on two cores)

The losses of both runs must be the same numbers. `hybrid` has a whole model within each machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from common.errors import UserError
from common.repository import REPOSITORY
from common.run.files import read_rows

SMALL = (
    *("--rollouts-per-step", "8", "--eval-samples", "0", "--no-wandb", "--no-tensorboard"),
    *("--checkpoint-interval", "0"),
)
# Experiment, processes of each machine, and flags.
KINDS: Mapping[str, tuple[str, int, tuple[str, ...]]] = {
    "ddp": ("experiment_accelerate_ddp", 1, ()),
    "sharded": ("experiment_base", 1, ("--shard",)),
    "hybrid": ("experiment_base", 2, ("--shard", "--shard-within", "2")),
    "multi-turn": ("experiment_multiturn_tool_calling", 1, ()),
    "multi-turn, sharded": ("experiment_multiturn_tool_calling", 1, ("--shard",)),
}


@dataclass(frozen=True)
class TwoMachinesConfig:
    """Two machines that are one."""

    only: tuple[str, ...] = tuple(KINDS)
    """Kinds of runs."""
    steps: int = 3
    """Rollout batches of both runs."""
    port: int = 29511
    """Where the machines meet."""


def main(config: TwoMachinesConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for kind in config.only:
        with tempfile.TemporaryDirectory() as directory:
            one, two = (run(config, kind, Path(directory), machines) for machines in (1, 2))
        console.print(f"\n{kind}\n")
        console.print("| optimizer step | one launcher | two launchers |\n|---|---|---|")
        for number, (here, there) in enumerate(zip(one, two, strict=True), start=1):
            console.print(f"| {number} | {here:.17g} | {there:.17g} |")
        if one != two:
            raise UserError(f"{kind}: the losses differ")
        console.print("the same, to the last digit")


def run(config: TwoMachinesConfig, kind: str, root: Path, machines: int) -> list[float]:
    """The losses of a run by so many launchers."""
    experiment, each, flags = KINDS[kind]
    launchers = []
    for rank in range(machines):
        command = [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *("--multi_gpu", "--num_processes", str(2 * each)),
            *("--main_process_port", str(config.port)),
        ]
        if machines > 1:
            command += ["--num_machines", str(machines), "--machine_rank", str(rank)]
            command += ["--main_process_ip", "127.0.0.1"]
        command += ["train.py", "--device", "cpu", "--max-steps", str(config.steps), *SMALL, *flags]
        command += ["--log-dir", str(root), "--run-name", f"by-{machines}"]
        launchers.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY / experiment,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
        )
    wait(launchers)
    rows = read_rows(root / experiment / f"by-{machines}" / "metrics.jsonl")
    return [row["training_step/loss"] for row in rows if "training_step/loss" in row]


def wait(launchers: Sequence[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        if launcher.wait():
            raise UserError(f"the launcher {launcher.args} failed")


if __name__ == "__main__":
    main(tyro.cli(TwoMachinesConfig))
