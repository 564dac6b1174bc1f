"""What figures are made from: the latest rows of a run, and snapshots of its model."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.logger.sinks import BATCH_AXIS, STEP_AXIS

Row = dict[str, int | float]


@dataclass(frozen=True)
class Attention:
    """What one head of one layer looks at in a sequence that was sampled."""

    batch_step: int
    layer: int
    head: int
    tokens: list[str]
    weights: list[list[float]]
    """A row per query, a column per key. A query may look at what was before these tokens, too."""


@dataclass(frozen=True)
class Embeddings:
    """Where a model puts the probe texts."""

    batch_step: int
    texts: list[str]
    vectors: list[list[float]]


class History:
    """The rows of a run as they come; the oldest are forgotten."""

    def __init__(self, rows: int = 1000, gradients: int = 100) -> None:
        """Keeps that many rows of each axis, and that many snapshots of the model."""
        self.batches: deque[Row] = deque(maxlen=rows)
        self.steps: deque[Row] = deque(maxlen=rows)
        self.task_rewards: deque[tuple[int, dict[str, float]]] = deque(maxlen=rows)
        self.gradients: deque[tuple[int, dict[str, float]]] = deque(maxlen=gradients)
        self.embeddings: deque[Embeddings] = deque(maxlen=gradients)
        self.attention: Attention | None = None

    @property
    def batch_step(self) -> int:
        return int(self.batches[-1][BATCH_AXIS]) if self.batches else 0

    def add(self, row: Mapping[str, int | float]) -> None:
        """Take in a row of metrics; what is logged of a batch in several rows is one."""
        if STEP_AXIS in row:
            self.steps.append(dict(row))
        elif self.batches and self.batches[-1][BATCH_AXIS] == row[BATCH_AXIS]:
            self.batches[-1].update(row)
        else:
            self.batches.append(dict(row))

    def add_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Take in a row of `snapshots.jsonl`, one key that says what it is."""
        for kind, fields in snapshot.items():
            if kind == "gradients":
                self.gradients.append((fields["global_step"], fields["norms"]))
            elif kind == "task_rewards":
                self.task_rewards.append((fields["batch_step"], fields["means"]))
            elif kind == "embeddings":
                self.embeddings.append(Embeddings(**fields))
            elif kind == "attention":
                self.attention = Attention(**fields)

    def batch_points(self, *names: str) -> np.ndarray:
        """A row per batch that has a finite value of every name, a column per name."""
        return _points(self.batches, names)

    def step_points(self, *names: str) -> np.ndarray:
        """The same of optimizer steps."""
        return _points(self.steps, names)

    def batch_names(self, prefix: str, suffix: str) -> list[str]:
        """The metrics of batches that begin and end so."""
        names = {name: None for row in self.batches for name in row}
        return [name for name in names if name.startswith(prefix) and name.endswith(suffix)]


def _points(rows: deque[Row], names: tuple[str, ...]) -> np.ndarray:
    values = np.array(
        [[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64
    ).reshape(-1, len(names))
    return values[np.isfinite(values).all(axis=1)]
