"""How much faster two processes are than one: the same work, and twice the work.

python -m benchmarks.ddp_scaling          (about four minutes on two cores)

Every process has one thread, so that two of them have twice the cores of one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.rows import column
from common.models.load import load_tokenizer
from common.models.tiny.tokenizer import END_ID, PAD_ID
from common.repository import REPOSITORY
from common.run.files import read_rows

EXPERIMENT = REPOSITORY / "experiment_accelerate_ddp"
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
    tokens: int = 64
    """Length of a completion."""
    steps: int = 5
    """Steps of each run; the first one is left out."""
    processes: int = 2
    """Processes that are compared with one."""
    device: str = "cpu"
    """cpu, or cuda for as many GPUs as processes."""


@dataclass(frozen=True)
class Measured:
    """Medians over steps of one run."""

    step_seconds: float
    rollout_seconds: float
    train_seconds: float
    tokens_per_second: float
    collective_share: float
    """Of the time of a step: gradients under way between the ranks, and waiting for one another."""


def main(config: ScalingConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as root:
        parameters = make_model(config, Path(root) / "model")
        one = run(config, Path(root), 1, config.tasks)
        strong = run(config, Path(root), config.processes, config.tasks)
        weak = run(config, Path(root), config.processes, config.processes * config.tasks)
    count = config.processes
    console.print(
        f"Qwen3 with random weights, {parameters / 1e6:.1f} million parameters (hidden "
        f"{config.hidden_size}, {config.layers} layers); {config.tokens} tokens per completion, "
        "one thread per process\n"
    )
    lines = [
        "| processes | completions per step | step | rollout | train | sampled tokens/s "
        "| in collectives | speed-up |",
        "|---|---|---|---|---|---|---|---|",
        _row(1, config.tasks, one, ""),
        _row(count, config.tasks, strong, f"{one.step_seconds / strong.step_seconds:.2f} (strong)"),
        _row(
            count,
            count * config.tasks,
            weak,
            f"{count * one.step_seconds / weak.step_seconds:.2f} (weak)",
        ),
    ]
    console.print("\n".join(lines))


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


def run(config: ScalingConfig, root: Path, processes: int, tasks: int) -> Measured:
    name = f"{processes}-{tasks}"
    flags = {
        "--model-name": root / "model",
        "--device": config.device,
        "--log-dir": root,
        "--run-name": name,
        "--rollouts-per-step": tasks,
        "--group-size": 8,
        "--train-batch-size": tasks * 8,
        "--micro-batch-size": 16,
        "--max-steps": config.steps,
        "--max-completion-tokens": config.tokens,
        "--max-length": config.tokens + 32,
        "--max-terms": 3,
        "--max-digits": 1,
        "--system-prompt": "",
        "--eval-samples": 0,
        "--checkpoint-interval": 0,
    }
    launcher = ("--multi_gpu", "--num_processes", str(processes)) if processes > 1 else ()
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher),
            *(str(WORKER), str(root / f"{name}.json")),
            *(str(part) for item in flags.items() for part in item),
            *("--no-wandb", "--no-tensorboard"),
        ],
        cwd=EXPERIMENT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = list(read_rows(root / EXPERIMENT.name / name / "metrics.jsonl"))
    step_seconds = column(rows, "time/step_s")[1]
    waited = json.loads((root / f"{name}.json").read_text())
    return Measured(
        step_seconds=statistics.median(step_seconds[1:]),
        rollout_seconds=statistics.median(column(rows, "time/rollout_s")[1][1:]),
        train_seconds=statistics.median(column(rows, "time/train_s")[1][1:]),
        tokens_per_second=statistics.median(column(rows, "perf/rollout_tokens_per_s")[1][1:]),
        collective_share=waited / sum(step_seconds),
    )


def _row(processes: int, tasks: int, measured: Measured, speed_up: str) -> str:
    return (
        f"| {processes} | {8 * tasks} | {measured.step_seconds:.2f} s "
        f"| {measured.rollout_seconds:.2f} s | {measured.train_seconds:.2f} s "
        f"| {measured.tokens_per_second:,.0f} | {measured.collective_share:.1%} | {speed_up} |"
    )


if __name__ == "__main__":
    main(tyro.cli(ScalingConfig))
