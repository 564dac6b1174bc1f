"""What two processes hold of a model with and without `--shard`, by what glibc does with memory.

python -m benchmarks.sharded_memory          (about six minutes on two cores)

*In use* is what learning held at its most, without what glibc keeps; *resident* the most that the
system saw of a process. A run on a CPU lets glibc keep what was freed; with `trimmed` it does not,
with one arena for all threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.ddp_scaling import ScalingConfig, make_model
from benchmarks.machine import describe_machine
from common.repository import REPOSITORY
from common.run.files import read_rows

WORKER = Path(__file__).with_name("sharded_memory_worker.py")
EXPERIMENT = "experiment_base"


@dataclass(frozen=True)
class MemoryConfig:
    """A Qwen3 with random weights, about 137 million of them."""

    hidden_size: int = 768
    """Its width."""
    layers: int = 19
    """Its layers."""
    steps: int = 2
    """Steps of each run; the last one counts."""


def main(config: MemoryConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{describe_machine()}; two processes with one thread each\n")
    console.print("| freed memory | weights | in use while learning | resident | step |")
    console.print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shape = ScalingConfig(hidden_size=config.hidden_size, layers=config.layers)
        make_model(shape, root / "model")
        for freed in ("kept", "trimmed"):
            for switches in ((), ("--shard",)):
                name = f"{freed}{'-'.join(switches)}"
                row, resident = run(config, root, name, freed, switches)
                console.print(
                    f"| {freed} | {'a part' if switches else 'whole'} "
                    f"| {row['system/peak_train_gb']:.2f} GB | {resident / 1e9:.2f} GB "
                    f"| {row['time/step_s']:.1f} s |"
                )


def run(
    config: MemoryConfig, root: Path, name: str, freed: str, switches: tuple[str, ...]
) -> tuple[dict[str, float], int]:
    """The row of the last step, and the most that the system saw of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if freed == "trimmed":
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"),
            *("--multi_gpu", "--num_processes", "2", str(WORKER), str(root / name), freed),
            *("--model-name", str(root / "model"), "--device", "cpu", "--system-prompt", ""),
            *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "16"),
            *("--max-completion-tokens", "32", "--max-length", "64", "--max-terms", "3"),
            *("--max-digits", "1", "--max-steps", str(config.steps), "--eval-samples", "0"),
            *("--checkpoint-interval", "0", "--no-wandb", "--no-tensorboard", *switches),
            *("--log-dir", str(root / "runs"), "--run-name", f"r-{name}"),
        ],
        cwd=REPOSITORY / EXPERIMENT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = read_rows(root / "runs" / EXPERIMENT / f"r-{name}" / "metrics.jsonl")
    last = [row for row in rows if "time/step_s" in row][-1]
    seen = [json.loads(file.read_text()) for file in root.glob(f"{name}.*.json")]
    return last, max(seen)


if __name__ == "__main__":
    main(tyro.cli(MemoryConfig))
