"""A logger with the sinks that a run's config asks for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from common.logger.logger import Logger
from common.logger.sinks import BATCH_AXIS, ConsoleSink, JsonlSink, Sink
from common.run.config import TrainConfig
from common.run.directory import Run, RunDirectory


def open_logger(
    config: TrainConfig, run: Run, record: Mapping[str, Any], console: Console
) -> Logger:
    """Console and JSONL always, TensorBoard and W&B unless they are off.

    What a resumed run has logged so far is read from its JSONL and logged anew to TensorBoard and
    W&B, which cannot take back the rows after the checkpoint. A process that does not write the run
    gets a silent logger.
    """
    directory = run.directory
    if not run.writes:
        return Logger([], console, directory.samples_file)
    rebuilt: list[Sink] = []
    if config.tensorboard:
        from common.logger.tensorboard_sink import TensorBoardSink, remove_event_files

        if run.resumed:
            remove_event_files(directory.path)
        rebuilt.append(TensorBoardSink(directory.path))
    if config.wandb:
        from common.logger.wandb_sink import WandbIdentity, WandbSink, supersede_runs

        if run.resumed:
            supersede_runs(directory.path)
        say = partial(console.out, highlight=False)
        identity = WandbIdentity(**_wandb_names(config, directory.path.name))
        rebuilt.append(WandbSink(directory.path, identity, record, say))
    if run.resumed:
        _replay(directory, rebuilt)
    sinks = [
        JsonlSink(directory.metrics_file),
        *rebuilt,
        ConsoleSink(config.max_steps, console),
    ]
    return Logger(sinks, console, directory.samples_file)


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


def _replay(directory: RunDirectory, sinks: Sequence[Sink]) -> None:
    if not directory.metrics_file.exists():
        return
    with directory.metrics_file.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            texts = {name: value for name, value in row.items() if isinstance(value, str)}
            numbers = {
                name: math.nan if value is None else value
                for name, value in row.items()
                if name not in texts
            }
            for sink in sinks:
                if not texts:
                    sink.log(numbers)
                for name, text in texts.items():
                    sink.log_text(name, text, int(row[BATCH_AXIS]))
