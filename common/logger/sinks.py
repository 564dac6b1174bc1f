"""What a sink of rows is, and the two that are always there: the console and JSONL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from common.logger.media import Media, as_json
from common.run.files import as_line

BATCH_AXIS = "rollouts/batch_step"
STEP_AXIS = "training_step/global_step"
AXES = (BATCH_AXIS, STEP_AXIS)

# What the console says of an evaluation.
HELD_OUT = (
    ("eval/accuracy", "accuracy {:.1%}"),
    ("eval/returns_mean", "return {:.3f}"),
    ("eval/format_rate", "answer tags in {:.1%}"),
)

Row = Mapping[str, int | float]


def axis_of(name: str) -> str:
    """The row's value to plot a metric against: optimizer steps, or rollout batches."""
    return STEP_AXIS if name.startswith(("training_step/", "correction/")) else BATCH_AXIS


@runtime_checkable
class Sink(Protocol):
    """Receives every row. A row carries the axes that its metrics belong to."""

    def log(self, row: Row) -> None: ...

    def log_media(self, name: str, media: Media, batch_step: int) -> None: ...

    def close(self, exit_code: int) -> None: ...


@dataclass(frozen=True)
class ShownRun:
    """The run that is shown elsewhere, as the functions see it that make the sinks for that."""

    directory: Path
    record: Mapping[str, Any]
    """Its configuration."""
    say: Callable[[str], None]
    """A line for the person who watches the training."""
    busy: Callable[[], None]
    """For a sink that takes long to close: called every second it keeps the training waiting."""


class JsonlSink:
    """Appends one JSON object per row; each is in the file before `log` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        self._file.write(as_line(_without_nan(row)))
        self._file.flush()

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        self.log({BATCH_AXIS: batch_step, name: as_json(media)})

    def close(self, exit_code: int) -> None:
        self._file.close()


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN; null is what readers of the file understand."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


class ConsoleSink:
    """A table row per rollout batch above a live progress line; plain rows without a terminal."""

    _COLUMNS = (
        ("reward", "rollouts/returns_mean", "{:.3f}"),
        ("right", "rewards/correctness_rate", "{:.1%}"),
        ("tokens", "rollouts/completion_tokens_mean", "{:.1f}"),
        ("KL", "rollouts/kl_mean", "{:.4f}"),
        ("entropy", "rollouts/entropy_mean", "{:.3f}"),
        ("grad", "training_epoch/grad_norm_mean", "{:.3f}"),
        ("tok/s", "perf/rollout_tokens_per_s", "{:,.0f}"),
        ("s", "time/step_s", "{:.1f}"),
    )

    def __init__(self, total_steps: int, console: Console) -> None:
        self._console = console
        self._total = total_steps
        self._header_shown = False
        self._latest: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=total_steps, status="")
        self._progress.start()

    def log(self, row: Row) -> None:
        self._latest.update(row)
        if "eval/accuracy" in row:
            parts = [template.format(row[name]) for name, template in HELD_OUT if name in row]
            self._console.print(f"held-out {', '.join(parts)}", highlight=False)
        if "rollouts/returns_mean" in row:
            self._print_batch(int(row[BATCH_AXIS]))

    def _print_batch(self, step: int) -> None:
        if not self._header_shown:
            titles = "".join(f"{title:>9}" for title, _, _ in self._COLUMNS)
            self._console.print(f"{'step':>6}{titles}", style="bold")
            self._header_shown = True
        values = [
            template.format(self._latest[name]) if name in self._latest else "-"
            for _, name, template in self._COLUMNS
        ]
        self._console.print(f"{step:>6}" + "".join(f"{v:>9}" for v in values), highlight=False)
        reward, right, _, divergence, _, _, speed, _ = values
        self._progress.update(
            self._task,
            completed=step,
            status=f"reward {reward}  right {right}  KL {divergence}  {speed} tok/s",
        )

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        """That is for the files; a screen full of completions would hide the numbers."""

    def close(self, exit_code: int) -> None:
        self._progress.stop()
