"""Reading W&B's own files back with wandb's own reader."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.logger.media import Bars, Table, as_markdown, from_json


def records(directory: Path, pattern: str = "*run-*") -> list[dict[str, Any]]:
    """Every record of the one W&B run below `directory` whose folder fits the pattern."""
    (file,) = (directory / "wandb").glob(f"{pattern}/run-*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    result = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in result.stdout.splitlines()]


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that we logged, in the form in which `metrics.jsonl` has them."""
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    return plain_rows(items)


def plain_rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """wandb's rows in our form."""
    return [_as_jsonl(_nested(item)) for item in items]


def _nested(item: dict[str, Any]) -> dict[str, Any]:
    """Objects as they were logged, which the file has as `name.field`."""
    objects = [name.removesuffix("._type") for name in item if name.endswith("._type")]
    nested: dict[str, dict[str, Any]] = {name: {} for name in objects}
    for name in objects:
        fields = [key for key in item if key.startswith(f"{name}.")]
        nested[name] = {key.removeprefix(f"{name}."): item[key] for key in fields}
    inside = {f"{name}.{key}" for name, fields in nested.items() for key in fields}
    return {**{key: value for key, value in item.items() if key not in inside}, **nested}


def _as_jsonl(item: dict[str, Any]) -> dict[str, Any]:
    """Without wandb's own values; what is not finite, as null."""
    return {name: _value(value) for name, value in item.items() if not name.startswith("_")}


def _value(value: Any) -> Any:
    if isinstance(value, dict) and value["_type"] == "histogram":
        return {"histogram": {"edges": value["bins"], "counts": value["values"]}}
    return None if value == "NaN" or is_nan(value) else value


def as_shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` as W&B has them: tables and bars are text."""
    return [{name: _shown(value) for name, value in row.items()} for row in rows]


def _shown(value: Any) -> Any:
    media = from_json(value)
    return as_markdown(media) if isinstance(media, Table | Bars) else value


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def the(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one record of a kind."""
    (record,) = (record[kind] for record in found if record["type"] == kind)
    return record
