"""A logger with the sinks that a run's config asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console

from common.flags.train_config import TrainConfig
from common.logger.health import Health
from common.logger.logger import Intervals, Logger
from common.logger.mirror_sink import MirrorSink
from common.logger.recorder import Recorder
from common.logger.sinks import ConsoleSink, JsonlSink, Sink
from common.run.checkpoint import MANIFEST, STATE
from common.run.directory import Run, RunDirectory
from common.run.files import read_rows


def open_logger(
    config: TrainConfig,
    run: Run,
    record: Mapping[str, Any],
    console: Console,
    recorder: Recorder | None = None,
) -> Logger:
    """Console and JSONL always; TensorBoard and W&B, unless both are off, through their mirror.

    A process that does not write the run gets a silent logger. `recorder` takes snapshots of the
    model, for figures.
    """
    directory = run.directory
    if not run.writes:
        return Logger([], console, directory.samples_file)
    sinks: list[Sink] = [JsonlSink(directory.metrics_file)]
    if config.tensorboard or config.wandb or config.figures_interval:
        identity = _wandb_names(config, directory.path.name) if config.wandb else None
        say = partial(console.out, highlight=False)
        figures = {"rows": config.figures_rows, "gradients": config.figures_snapshots}
        sinks.append(
            MirrorSink(
                directory.path,
                config.tensorboard,
                identity,
                figures if config.figures_interval else None,
                record,
                say,
                _artifact_sources(config, directory) if config.log_artifacts else None,
            )
        )
    sinks.append(ConsoleSink(config.max_steps, console))
    intervals = Intervals(
        completions=config.log_completions_interval,
        histograms=config.histogram_interval,
        figures=config.figures_interval,
        reasoning_tag=config.reasoning_tag,
    )
    health = Health()
    health.replay(read_rows(directory.metrics_file))
    return Logger(sinks, console, directory.samples_file, intervals, health, recorder)


def _artifact_sources(config: TrainConfig, directory: RunDirectory) -> dict[str, Any]:
    return {
        "data_file": str(config.data_path or config.data_file),
        "checkpoints": str(directory.checkpoints),
        "left_out": [MANIFEST, STATE],
    }


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
