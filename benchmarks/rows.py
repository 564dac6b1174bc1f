"""Reading the rows of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def column(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Batch steps and values of a metric."""
    kept = [row for row in rows if name in row]
    return [row["rollouts/batch_step"] for row in kept], [row[name] for row in kept]
