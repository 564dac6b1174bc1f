"""TensorBoard as a sink. Imported only when it is on: its import costs a second."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.logger.sinks import AXES, Row, axis_of

# It writes at most this many seconds after a row, so that a killed run keeps its rows.
FLUSH_SECONDS = 1


class TensorBoardSink:
    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(str(directory), flush_secs=FLUSH_SECONDS)

    def log(self, row: Row) -> None:
        for name, value in row.items():
            if name not in AXES:
                self._writer.add_scalar(name, value, int(row[axis_of(name)]))

    def log_text(self, name: str, text: str, batch_step: int) -> None:
        self._writer.add_text(name, text, batch_step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


def remove_event_files(directory: Path) -> None:
    """Make room for a resumed run, which logs all its rows anew."""
    for stale in directory.glob("events.out.tfevents.*"):
        stale.unlink()
