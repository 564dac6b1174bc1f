"""Reading W&B's own files back with wandb's own reader."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any


def records(directory: Path, pattern: str = "*run-*") -> list[dict[str, Any]]:
    """Every record of the one W&B run below `directory` whose folder fits the pattern."""
    (file,) = (directory / "wandb").glob(f"{pattern}/run-*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    result = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in result.stdout.splitlines()]


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that we logged, in the form in which `metrics.jsonl` has them."""
    return [as_jsonl(record["history"]["item"]) for record in found if record["type"] == "history"]


def as_jsonl(item: dict[str, Any]) -> dict[str, Any]:
    """Without wandb's own values; what is not finite, as null."""
    return {
        name: None if value == "NaN" or is_nan(value) else value
        for name, value in item.items()
        if not name.startswith("_")
    }


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def the(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one record of a kind."""
    (record,) = (record[kind] for record in found if record["type"] == kind)
    return record
