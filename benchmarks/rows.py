"""Taking columns out of the rows of runs."""

from __future__ import annotations

from typing import Any


def column(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Batch steps and values of a metric."""
    kept = [row for row in rows if name in row]
    return [row["rollouts/batch_step"] for row in kept], [row[name] for row in kept]
