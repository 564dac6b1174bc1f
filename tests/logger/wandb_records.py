"""Reading W&B's own files back with wandb's own reader."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fake_wandb_server import FakeWandbServer

# Where W&B has the tables from which it draws bars.
BARS = "Custom Chart Tables/"


def records(directory: Path, pattern: str = "*run-*") -> list[dict[str, Any]]:
    """Every record of the one W&B run below `directory` whose folder fits the pattern.

    A history record has its rows in our form, too.
    """
    (file,) = (directory / "wandb").glob(f"{pattern}/run-*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    result = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for record in found:
        if record["type"] == "history":
            item = record["history"]["item"]
            record["row"] = _row(item, lambda path: (file.parent / "files" / path).read_bytes())
    return found


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that we logged, in the form in which `metrics.jsonl` has them."""
    return [record["row"] for record in found if record["type"] == "history"]


def rows_on(server: FakeWandbServer, run: str) -> list[dict[str, Any]]:
    """The rows that arrived, in the form in which `metrics.jsonl` has them."""
    return [_row(item, lambda path: server.files[f"{run}/{path}"]) for item in server.rows[run]]


def summary_on(server: FakeWandbServer, run: str) -> dict[str, Any]:
    """The last value of everything."""
    return _row(server.summaries[run], lambda path: server.files[f"{run}/{path}"])


def _row(item: dict[str, Any], read: Callable[[str], bytes]) -> dict[str, Any]:
    """Without wandb's own values; what is not finite, as null."""
    plain = {
        name: _value(value, read)
        for name, value in _nested(item).items()
        if not name.startswith("_")
    }
    tables = {name: value["table"] for name, value in plain.items() if name.startswith(BARS)}
    bars = {
        name.removeprefix(BARS).removesuffix("_table"): {"bars": {"values": dict(table["rows"])}}
        for name, table in tables.items()
    }
    return {name: value for name, value in plain.items() if name not in tables} | bars


def _nested(item: dict[str, Any]) -> dict[str, Any]:
    """Objects as they were logged, which the file has as `name.field`."""
    objects = [name.removesuffix("._type") for name in item if name.endswith("._type")]
    nested: dict[str, dict[str, Any]] = {name: {} for name in objects}
    for name in objects:
        fields = [key for key in item if key.startswith(f"{name}.")]
        nested[name] = {key.removeprefix(f"{name}."): item[key] for key in fields}
    inside = {f"{name}.{key}" for name, fields in nested.items() for key in fields}
    return {**{key: value for key, value in item.items() if key not in inside}, **nested}


def _value(value: Any, read: Callable[[str], bytes]) -> Any:
    if isinstance(value, dict):
        if value["_type"] == "histogram":
            return {"histogram": {"edges": value["bins"], "counts": value["values"]}}
        assert value["_type"] in ("incremental-table-file", "table-file")
        table = json.loads(read(value["path"]))
        return {"table": {"columns": table["columns"], "rows": table["data"]}}
    return None if value == "NaN" or is_nan(value) else value


def artifacts_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The artifacts, in order, but for those that are wandb's own tables."""
    artifacts = [record["artifact"] for record in found if record["type"] == "artifact"]
    return [one for one in artifacts if one["type"] in ("dataset", "model")]


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def the(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one record of a kind."""
    (record,) = (record[kind] for record in found if record["type"] == kind)
    return record
