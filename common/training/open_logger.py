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
from common.logger.mirror import Order
from common.logger.mirror_sink import MirrorSink
from common.logger.recorder import Recorder
from common.logger.sinks import ConsoleSink, JsonlSink, Sink
from common.packages import require
from common.printable import all_storable
from common.run.checkpoint import MANIFEST, PARTS, STATE
from common.run.directory import Run, RunDirectory
from common.run.files import read_rows

# The module that shows a run elsewhere, and the functions that make the sinks in which it does so.
# By name, as that is another process: wandb is not even imported here.
MIRROR = "common.training.mirror_process"
TENSORBOARD = "common.logger.tensorboard_sink:open_tensorboard"
WANDB = "common.logger.wandb_sink:open_wandb"


# Other switches of W&B than the flag, and what turns it off, in any case.
_OFF_SWITCHES = {"WANDB_DISABLED": ("true", "1", "on", "yes"), "WANDB_MODE": ("disabled",)}


def check_sinks(config: TrainConfig) -> None:
    """Raise `UserError` for a sink that the flags ask for and whose package is not installed."""
    if config.tensorboard:
        require("tensorboard", "--tensorboard", "add --no-tensorboard")
    if config.figures_interval:
        require("plotly", "--figures-interval", "leave it out")
    if config.wandb and not wandb_switched_off():
        require("wandb", "--wandb", "add --no-wandb")


def wandb_switched_off() -> str:
    """What in the environment turns W&B off, as NAME=value, if anything does."""
    for name, values in _OFF_SWITCHES.items():
        if (value := os.environ.get(name, "")).strip().lower() in values:
            return f"{name}={value}"
    return ""


def open_logger(
    config: TrainConfig,
    run: Run,
    record: Mapping[str, Any],
    console: Console,
    recorder: Recorder | None = None,
) -> Logger:
    """Console and JSONL always; all other sinks and figures, if there are any, in the mirror.

    A process that does not write the run gets a silent logger. `recorder` takes snapshots of the
    model, for figures.
    """
    directory = run.directory
    intervals = Intervals(
        completions=config.log_completions_interval,
        histograms=config.histogram_interval,
        figures=config.figures_interval,
    )
    if not run.writes:
        return Logger([], console, directory.samples_file, intervals)
    sinks: list[Sink] = [JsonlSink(directory.metrics_file)]
    if config.wandb and (switch := wandb_switched_off()):
        console.out(f"W&B is off: {switch}", highlight=False)
    shown = _mirrored(config, directory)
    if shown or config.figures_interval:
        figures = {"rows": config.figures_rows, "gradients": config.figures_snapshots}
        drawn = figures if config.figures_interval else None
        order = Order(str(directory.path), all_storable(dict(record)), shown, drawn)
        sinks.append(MirrorSink(MIRROR, order, partial(console.out, highlight=False)))
    sinks.append(ConsoleSink(config.max_steps, console))
    health = Health()
    health.replay(read_rows(directory.metrics_file))
    return Logger(sinks, console, directory.samples_file, intervals, health, recorder)


def _mirrored(config: TrainConfig, directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """The sinks that the flags ask for, beside console and JSONL, each with its arguments."""
    shown: dict[str, dict[str, Any]] = {}
    if config.tensorboard:
        shown[TENSORBOARD] = {}
    if config.wandb and not wandb_switched_off():
        sources = _artifact_sources(config, directory) if config.log_artifacts else None
        names = _wandb_names(config, directory.path.name)
        shown[WANDB] = {"identity": names, "artifacts": sources}
    return shown


def _artifact_sources(config: TrainConfig, directory: RunDirectory) -> dict[str, Any]:
    return {
        "data_file": str(config.tasks_file),
        "checkpoints": str(directory.checkpoints),
        "left_out": [MANIFEST, STATE, PARTS],
    }


def _wandb_names(config: TrainConfig, run_name: str) -> dict[str, Any]:
    """A flag beats wandb's environment variable, and that beats our default."""
    names = {
        "name": run_name,
        "project": config.wandb_project
        or os.environ.get("WANDB_PROJECT")
        or config.default_wandb_project,
        "entity": config.wandb_entity,
        "group": config.wandb_group or os.environ.get("WANDB_RUN_GROUP") or run_name,
        "tags": config.wandb_tags or None,
        "notes": config.wandb_notes,
    }
    return all_storable(names)
