"""A logger with the sinks that a run's config asks for."""

from __future__ import annotations

from rich.console import Console

from common.logger.logger import Logger
from common.logger.sinks import ConsoleSink, JsonlSink, TensorBoardSink
from common.run.config import TrainConfig
from common.run.directory import RunDirectory


def open_logger(config: TrainConfig, directory: RunDirectory) -> Logger:
    console = Console()
    sinks = [
        JsonlSink(directory.metrics_file),
        TensorBoardSink(directory.path),
        ConsoleSink(config.max_steps, console),
    ]
    return Logger(sinks, console, directory.samples_file)
