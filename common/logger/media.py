"""What is logged beside numbers: text, histograms, tables and bars, each with a form in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

BINS = 32

Cell = str | int | float | None


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, of which there is one more; NaN and infinities are not counted."""

    edges: Sequence[float]
    counts: Sequence[int]

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Histogram:
        """Equal bins from the smallest value to the largest; one bin if there is one value."""
        numbers = finite(values)
        return cls.between(extremes(numbers), numbers)

    @classmethod
    def between(cls, ends: tuple[float, float] | None, values: np.ndarray) -> Histogram:
        """Of finite values between two ends, or of none."""
        if ends is None:
            return cls([0.0, 1.0], [0])
        counts, edges = np.histogram(values, bins=BINS if ends[0] < ends[1] else 1, range=ends)
        return cls(edges.tolist(), counts.tolist())

    def plus(self, other: Histogram) -> Histogram:
        """Of the values of both, which have the same ends."""
        return replace(self, counts=np.add(self.counts, other.counts).tolist())


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Those that are numbers one can count."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]


def extremes(values: np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest; None of no values."""
    return (float(values.min()), float(values.max())) if len(values) else None


@dataclass(frozen=True)
class Table:
    """Rows that are added to those logged before under the same name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Bars:
    """A value per label."""

    values: Mapping[str, float]


@dataclass(frozen=True)
class Scene:
    """A figure as plotly's JSON has it; made where it is shown, never in a file of rows."""

    figure: Mapping[str, Any]

    def points(self) -> np.ndarray:
        """The points (n, 3) that it shows in space, without those that have a gap."""
        clouds = [
            np.array([trace["x"], trace["y"], trace["z"]], dtype=np.float64).T
            for trace in self.figure["data"]
            if trace["type"] == "scatter3d"
        ]
        points = np.concatenate([np.empty((0, 3)), *clouds])
        return points[np.isfinite(points).all(axis=1)]


Media = str | Histogram | Table | Bars | Scene


def as_json(media: Media) -> Any:
    """Text as it is; anything else as an object with one key that says what it is."""
    if isinstance(media, str):
        return media
    return {type(media).__name__.lower(): vars(media)}


def from_json(value: Any) -> Media | None:
    """What `as_json` gave; None for a number or null, which are no media."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    ((kind, fields),) = value.items()
    return {"histogram": Histogram, "table": Table, "bars": Bars}[kind](**fields)


def as_markdown(media: Table | Bars) -> str:
    """For those who can show text alone; cells are in one line, and without marks of Markdown."""
    table = media if isinstance(media, Table) else Table(["", "mean"], [*media.values.items()])
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").replace("<", "\\<").split())
