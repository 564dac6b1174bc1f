"""Make the bundled models and watch them learn: `make tiny-model MODEL=tiny WANDB=1`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from common.command import run_command
from common.logger.logger import Logger
from common.logger.mirror import Order
from common.logger.mirror_sink import MirrorSink
from common.logger.recorder import Recorder
from common.logger.sinks import JsonlSink, Sink
from common.models.tiny.corpus import corpus
from common.models.tiny.make import MAKERS, SEED, save
from common.models.tiny.recipe import Lesson
from common.models.tiny.tokenizer import build_tokenizer
from common.repository import REPOSITORY
from common.run.directory import check_writable
from common.run.files import SNAPSHOTS
from common.training.open_logger import MIRROR, TENSORBOARD, WANDB

PROJECT = "tiny_models"
# Every how many optimizer steps there are figures, and gradients in them.
FIGURES_INTERVAL, GRADIENTS_INTERVAL = 100, 10


@dataclass(frozen=True)
class TinyModelConfig:
    """Make bundled models in place, and show in a run directory how they learn."""

    models: tyro.conf.Positional[tuple[Literal["tiny", "tiny-calculator", "tiny-search"], ...]] = (
        "tiny",
        "tiny-calculator",
        "tiny-search",
    )
    """Which; each continues from the one before it."""
    wandb: bool = False
    """Log to Weights & Biases, too."""
    log_dir: Path = REPOSITORY / "runs" / "tiny_model"
    """Where the runs go."""


class Journal:
    """Logs every step of a fine-tuning, and at times what the model looks like."""

    def __init__(self, directory: Path, logger: Logger, tokenizer: PreTrainedTokenizerBase) -> None:
        self._recorder = partial(
            Recorder, directory / SNAPSHOTS, tokenizer=tokenizer, layer=-1, head=0
        )
        self._logger = logger
        self._losses: list[float] = []
        self._norms: list[float] = []

    def __call__(self, lesson: Lesson) -> None:
        recorder = self._recorder(model=lesson.model)
        if not self._losses:
            recorder.embeddings(0)
        self._losses.append(lesson.loss)
        self._norms.append(lesson.grad_norm)
        step = len(self._losses)
        if step % GRADIENTS_INTERVAL == 1:
            recorder.gradients(step)
        row = {name: getattr(lesson, name) for name in ("loss", "grad_norm", "learning_rate")}
        self._logger.log_training_step(step, {f"training_step/{k}": v for k, v in row.items()})
        if step % FIGURES_INTERVAL == 0:
            latest = self._losses[-FIGURES_INTERVAL:], self._norms[-FIGURES_INTERVAL:]
            loss, norm = map(statistics.fmean, latest)
            means = {"training_epoch/loss_mean": loss, "training_epoch/grad_norm_mean": norm}
            self._logger.log_batch(step, means)
            recorder.attention(step, lesson.token_ids, 0)
            recorder.embeddings(step)


def open_journal(directory: Path, wandb: bool, say: Callable[[str], None]) -> Logger:
    """A logger of rows and figures in a new directory, TensorBoard and, if asked, W&B."""
    directory.mkdir(parents=True)
    project = os.environ.get("WANDB_PROJECT") or PROJECT
    nameless = dict.fromkeys(("entity", "group", "tags", "notes"))
    identity = {"name": directory.name, "project": project, **nameless}
    shown: dict[str, dict[str, Any]] = {TENSORBOARD: {}}
    if wandb:
        shown[WANDB] = {"identity": identity, "artifacts": None}
    figures = {"rows": 1000, "gradients": 100}
    mirror = MirrorSink(MIRROR, Order(str(directory), {"seed": SEED}, shown, figures), say)
    sinks: list[Sink] = [JsonlSink(directory / "metrics.jsonl"), mirror]
    return Logger(sinks, Console(), directory / "samples.jsonl")


def main(config: TinyModelConfig) -> None:
    console = Console()
    check_writable(config.log_dir.absolute(), f"--log-dir {config.log_dir}")
    for name in config.models:
        torch.manual_seed(SEED)
        tokenizer = build_tokenizer(corpus())
        directory = config.log_dir / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        with open_journal(directory, config.wandb, console.out) as logger:
            model = MAKERS[name](tokenizer, Journal(directory, logger, tokenizer))
        save(model, tokenizer, name)
        console.out(f"{name}: {directory}", highlight=False)


if __name__ == "__main__":
    run_command(main, TinyModelConfig)
