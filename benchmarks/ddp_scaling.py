"""How much faster two processes are than one: the same work, and twice the work; what they tell one
another.

python -m benchmarks.ddp_scaling          (about fifteen minutes on two cores)

Every process has one thread, so that two of them have twice the cores of one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.rows import column
from common.models.load import load_tokenizer
from common.models.tiny.tokenizer import END_ID, PAD_ID
from common.repository import REPOSITORY
from common.run.files import read_rows

WORKER = Path(__file__).with_name("ddp_scaling_worker.py")


@dataclass(frozen=True)
class ScalingConfig:
    """Random weights hardly ever stop early, so completions are as long as they may be."""

    hidden_size: int = 384
    """Width of the Qwen3 model with random weights."""
    layers: int = 6
    """Its layers."""
    tasks: int = 16
    """Tasks of a step for one process; eight completions each."""
    conversations: int = 64
    """Tasks of a step of conversations for one process; eight conversations each."""
    tokens: int = 64
    """Length of a completion."""
    steps: int = 6
    """Steps of each run; the first one is left out."""
    processes: int = 2
    """Processes that are compared with one."""
    only: tuple[str, ...] = ("ddp", "sharded", "multi-turn")
    """Kinds of runs."""
    device: str = "cpu"
    """cpu, or cuda for as many GPUs as processes."""


@dataclass(frozen=True)
class Kind:
    """A kind of runs that are compared."""

    experiment: str
    tasks: int
    flags: Mapping[str, Any]
    switches: tuple[str, ...] = ()
    """Of runs of several processes."""


@dataclass(frozen=True)
class Measured:
    """Medians over steps of one run."""

    step_seconds: float
    rollout_seconds: float
    scoring_seconds: float
    train_seconds: float
    collective_share: float
    """Of the time of a step: gradients under way between the ranks, and waiting for one another."""
    received: float
    """Bytes that the first rank was told in a step."""


def main(config: ScalingConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{describe_machine()}; one thread per process\n")
    with tempfile.TemporaryDirectory() as root:
        parameters = make_model(config, Path(root) / "model")
        console.print(
            f"ddp, sharded: Qwen3 with random weights, {parameters / 1e6:.1f} million parameters "
            f"(hidden {config.hidden_size}, {config.layers} layers), {config.tokens} tokens per "
            "completion; multi-turn: the bundled model that calls a calculator\n"
        )
        console.print(
            "| kind | processes | completions | step | rollout | scoring | train "
            "| in collectives | told the first rank | speed-up |"
        )
        console.print("|" + "---|" * 10)
        for name, kind in kinds(config, Path(root)).items():
            if name in config.only:
                compare(config, console, Path(root), name, kind)


def compare(config: ScalingConfig, console: Console, root: Path, name: str, kind: Kind) -> None:
    """One process, more with the same work, and more with as much work each."""
    count, tasks = config.processes, kind.tasks
    root = root / name
    root.mkdir()
    one = run(config, root, kind, 1, tasks)
    console.print(_row(name, 1, tasks, one, ""))
    strong = run(config, root, kind, count, tasks)
    gain = f"{one.step_seconds / strong.step_seconds:.2f} (strong)"
    console.print(_row(name, count, tasks, strong, gain))
    weak = run(config, root, kind, count, count * tasks)
    gain = f"{count * one.step_seconds / weak.step_seconds:.2f} (weak)"
    console.print(_row(name, count, count * tasks, weak, gain))


def kinds(config: ScalingConfig, root: Path) -> dict[str, Kind]:
    """By name."""
    single = {
        "--model-name": root / "model",
        "--max-completion-tokens": config.tokens,
        "--max-length": config.tokens + 32,
        "--max-terms": 3,
        "--max-digits": 1,
        "--system-prompt": "",
    }
    experiment = "experiment_accelerate_ddp"
    return {
        "ddp": Kind(experiment, config.tasks, single),
        "sharded": Kind(experiment, config.tasks, single, ("--shard",)),
        "multi-turn": Kind("experiment_multiturn_tool_calling", config.conversations, {}),
    }


def make_model(config: ScalingConfig, directory: Path) -> int:
    """Save a model with random weights and the bundled tokenizer; returns its parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = load_tokenizer("tiny")
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden_size // 64,
            num_key_value_heads=config.hidden_size // 64,
            head_dim=64,
            intermediate_size=3 * config.hidden_size,
            tie_word_embeddings=True,
            eos_token_id=END_ID,
            pad_token_id=PAD_ID,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def run(config: ScalingConfig, root: Path, kind: Kind, processes: int, tasks: int) -> Measured:
    name = f"{processes}-{tasks}"
    flags = {
        "--device": config.device,
        "--log-dir": root,
        "--run-name": name,
        "--rollouts-per-step": tasks,
        "--group-size": 8,
        "--train-batch-size": tasks * 8,
        "--max-steps": config.steps,
        "--eval-samples": 0,
        "--checkpoint-interval": 0,
        "--log-completions-interval": 0,
        **kind.flags,
    }
    launcher = ("--multi_gpu", "--num_processes", str(processes)) if processes > 1 else ()
    experiment = REPOSITORY / kind.experiment
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher),
            *(str(WORKER), str(root / f"{name}.json")),
            *(str(part) for item in flags.items() for part in item),
            *(kind.switches if processes > 1 else ()),
            *("--no-wandb", "--no-tensorboard"),
        ],
        cwd=experiment,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = list(read_rows(root / experiment.name / name / "metrics.jsonl"))

    def median(metric: str) -> float:
        return statistics.median(column(rows, metric)[1][1:] or [0.0])

    waited = json.loads((root / f"{name}.json").read_text())
    return Measured(
        step_seconds=median("time/step_s"),
        rollout_seconds=median("time/rollout_s"),
        scoring_seconds=median("time/log_probs_s"),
        train_seconds=median("time/train_s"),
        collective_share=waited / sum(column(rows, "time/step_s")[1]),
        received=median("ddp/received_bytes"),
    )


def _row(name: str, processes: int, tasks: int, measured: Measured, speed_up: str) -> str:
    return (
        f"| {name} | {processes} | {8 * tasks} | {measured.step_seconds:.2f} s "
        f"| {measured.rollout_seconds:.2f} s | {measured.scoring_seconds:.2f} s "
        f"| {measured.train_seconds:.2f} s | {measured.collective_share:.1%} "
        f"| {measured.received / 1e3:,.0f} kB | {speed_up} |"
    )


if __name__ == "__main__":
    main(tyro.cli(ScalingConfig))
