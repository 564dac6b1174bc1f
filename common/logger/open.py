"""A logger with the sinks that a run's config asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console

from common.logger.health import Health
from common.logger.logger import Intervals, Logger
from common.logger.mirror_sink import MirrorSink
from common.logger.sinks import ConsoleSink, JsonlSink, Sink
from common.run.config import TrainConfig
from common.run.directory import Run
from common.run.files import read_rows


def open_logger(
    config: TrainConfig, run: Run, record: Mapping[str, Any], console: Console
) -> Logger:
    """Console and JSONL always; TensorBoard and W&B, unless both are off, through their mirror.

    A process that does not write the run gets a silent logger.
    """
    directory = run.directory
    if not run.writes:
        return Logger([], console, directory.samples_file)
    sinks: list[Sink] = [JsonlSink(directory.metrics_file)]
    if config.tensorboard or config.wandb:
        identity = _wandb_names(config, directory.path.name) if config.wandb else None
        say = partial(console.out, highlight=False)
        sinks.append(MirrorSink(directory.path, config.tensorboard, identity, record, say))
    sinks.append(ConsoleSink(config.max_steps, console))
    intervals = Intervals(
        completions=config.log_completions_interval,
        histograms=config.histogram_interval,
        reasoning_tag=config.reasoning_tag,
    )
    health = Health()
    health.replay(read_rows(directory.metrics_file))
    return Logger(sinks, console, directory.samples_file, intervals, health)


def _wandb_names(config: TrainConfig, run_name: str) -> dict[str, Any]:
    """A flag beats wandb's environment variable, and that beats our default."""
    return {
        "name": run_name,
        "project": config.wandb_project
        or os.environ.get("WANDB_PROJECT")
        or config.default_wandb_project,
        "entity": config.wandb_entity,
        "group": config.wandb_group or os.environ.get("WANDB_RUN_GROUP") or run_name,
        "tags": config.wandb_tags or None,
        "notes": config.wandb_notes,
    }
