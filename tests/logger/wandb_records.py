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
    """The rows that we logged, in the form in which `metrics.jsonl` has them, but tables."""
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    return plain_rows(items)


def plain_rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """wandb's rows in our form, but tables."""
    return without_tables([_as_jsonl(item) for item in items])


def _as_jsonl(item: dict[str, Any]) -> dict[str, Any]:
    """Without wandb's own values; what is not finite, as null."""
    return {name: _value(value) for name, value in item.items() if not name.startswith("_")}


def _value(value: Any) -> Any:
    if isinstance(value, dict) and value["_type"] == "histogram":
        return {"histogram": {"edges": value["bins"], "counts": value["values"]}}
    return None if value == "NaN" or is_nan(value) else value


def without_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables, and bars, which are drawn from one, are files beside the run."""
    kinds = ("table", "bars", "_type")
    return [
        row
        for row in rows
        if not any(isinstance(v, dict) and any(k in v for k in kinds) for v in row.values())
    ]


def table_rows(directory: Path, name: str, pattern: str = "*run-*") -> list[list[Any]]:
    """The rows of a table that was logged by increments, or of one that bars are drawn from."""
    files = sorted((directory / "wandb").glob(f"{pattern}/files/media/table/{name}*.json"))
    tables = [json.loads(file.read_text()) for file in files]
    return [row for table in tables for row in table["data"]]


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def the(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one record of a kind."""
    (record,) = (record[kind] for record in found if record["type"] == kind)
    return record
