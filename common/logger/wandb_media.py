"""Histograms, tables, bars and figures as W&B has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wandb

from common.logger.media import Bars, Cell, Histogram, Media, Scene, Table

# Tables to which each log adds; any other is a table by itself.
GROWING = ("generations",)
# W&B shows the last hundred parts of a table that grows. A part that is at least this share of what
# was there before keeps 40,000 logs of equal size below that.
LEAST_PART = 0.1


class GrowingTable:
    """A table that is logged in parts: at first each log, later several at a time."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._table = wandb.Table(
            columns=list(columns), log_mode="INCREMENTAL", allow_mixed_types=True
        )
        self.waiting = 0
        """Rows that are not logged yet."""
        self.batch_step = 0
        """That of the latest row."""

    def add(self, rows: Sequence[Sequence[Cell]], batch_step: int) -> None:
        for row in rows:
            self._table.add_data(*row)
        self.waiting += len(rows)
        self.batch_step = batch_step

    @property
    def is_due(self) -> bool:
        logged = len(self._table.data) - self.waiting
        return self.waiting > 0 and self.waiting >= LEAST_PART * logged

    def take(self) -> wandb.Table:
        """The table, of which wandb writes the rows that it has not written yet."""
        self.waiting = 0
        return self._table


def as_wandb(name: str, media: Media) -> Any:
    if isinstance(media, Histogram):
        counts, edges = np.array(media.counts), np.array(media.edges)
        return wandb.Histogram(np_histogram=(counts, edges))
    if isinstance(media, Table):
        rows: list[Any] = [list(row) for row in media.rows]
        return wandb.Table(list(media.columns), rows, allow_mixed_types=True)
    if isinstance(media, Bars):
        # A chart that W&B draws, of the latest table of each run that is looked at, beside one
        # another: curves of the same numbers are there, too.
        table = wandb.Table(["name", "mean"], [list(bar) for bar in media.values.items()])
        return wandb.plot.bar(table, "name", "mean", title=name, split_table=True)
    if isinstance(media, Scene):
        import plotly.graph_objects

        return wandb.Plotly(plotly.graph_objects.Figure(media.figure))
    return media
