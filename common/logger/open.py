"""A logger with the sinks that a run's config asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from common.logger.logger import Logger
from common.logger.sinks import BATCH_AXIS, ConsoleSink, JsonlSink, Sink, TensorBoardSink
from common.run.config import TrainConfig
from common.run.directory import Run, RunDirectory


def open_logger(
    config: TrainConfig, run: Run, record: Mapping[str, Any], console: Console
) -> Logger:
    """Console, JSONL and TensorBoard always, W&B unless it is off.

    What a resumed run has logged so far is read from its JSONL and logged anew to TensorBoard and
    W&B, which cannot take back the rows after the checkpoint.
    """
    directory = run.directory
    rebuilt: list[Sink] = []
    if run.resumed:
        for stale in directory.path.glob("events.out.tfevents.*"):
            stale.unlink()
    rebuilt.append(TensorBoardSink(directory.path))
    if config.wandb:
        from common.logger.wandb_sink import WandbIdentity, WandbSink, supersede_offline_runs

        supersede_offline_runs(directory.path)
        name = directory.path.name
        identity = WandbIdentity(
            config.wandb_project,
            config.wandb_entity,
            config.wandb_group or name,
            name,
            config.wandb_tags,
            config.wandb_notes,
        )
        rebuilt.append(WandbSink(directory.path, identity, record, console.print))
    if run.resumed:
        _replay(directory, rebuilt)
    sinks = [
        JsonlSink(directory.metrics_file),
        *rebuilt,
        ConsoleSink(config.max_steps, console),
    ]
    return Logger(sinks, console, directory.samples_file)


def _replay(directory: RunDirectory, sinks: Sequence[Sink]) -> None:
    if not directory.metrics_file.exists():
        return
    with directory.metrics_file.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            texts = {name: value for name, value in row.items() if isinstance(value, str)}
            for sink in sinks:
                if not texts:
                    sink.log(numbers)
                for name, text in texts.items():
                    sink.log_text(name, text, int(row[BATCH_AXIS]))
