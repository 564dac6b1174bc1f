"""One HTML file that compares runs, and works from the disk without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from common.views.compare.charts import FIRST, lines
from common.views.compare.groups import RunGroup, differences
from common.views.compare.runs import ComparedRun, Position
from common.views.compare.table import COLUMNS, MISSING, Column, progress

_HERE = Path(__file__).parent
# The charts are a few hundred pixels high; positions must stay whole numbers.
_VALUE_DIGITS, _POSITION_DIGITS = 6, 12
# Differences that are short enough to stand beside a name.
_NOTED = 3


def html_page(groups: Sequence[RunGroup], folder: Path) -> str:
    """The page as it is to be written into a folder, from which its links lead to the runs.

    Whatever comes from the runs is data in it: JSON that cannot close its element, and that the
    page's script shows as text. No script runs but the two whose hashes the page names.
    """
    # Here, as what a run and a page have in common needs no plotly.
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (_HERE / "page.js").read_text(encoding="utf-8")]
    count = sum(len(group.runs) for group in groups)
    template = Template((_HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{count} run{'s' if count > 1 else ''}"),
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        data=as_script_data(page_data(groups, folder)),
        plotly=scripts[0],
        script=scripts[1],
    )


def as_script_data(data: Any) -> str:
    """JSON without the characters that could end a script element or open a comment in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(groups: Sequence[RunGroup], folder: Path) -> dict[str, Any]:
    """All that the page shows."""
    different = differences(groups)
    noted = different if len(different) <= _NOTED else {}
    return {
        "groups": [
            {
                "label": group.label,
                "note": ", ".join(f"{name} {texts[number]}" for name, texts in noted.items()),
                "line": line._asdict(),
                "spread": [_spread(column, group) for column in COLUMNS],
                "runs": [
                    _run_data(label, run, folder)
                    for label, run in zip(group.labels, group.runs, strict=True)
                ],
            }
            for number, (group, line) in enumerate(zip(groups, lines(len(groups)), strict=True))
        ],
        "columns": [{"title": column.title, "metric": column.metric} for column in COLUMNS],
        "differences": [{"name": name, "values": texts} for name, texts in different.items()],
        "first": list(FIRST),
    }


def _spread(column: Column, group: RunGroup) -> list[str] | None:
    spread = column.spread(group.runs)
    return spread and [column.text(spread.mean), column.text(spread.deviation)]


def _run_data(label: str, run: ComparedRun, folder: Path) -> dict[str, Any]:
    """Curves as indices of positions and values, as many metrics share their positions."""
    numbers: dict[Position, int] = {}
    curves = {
        metric: [
            [numbers.setdefault(point.position, len(numbers)) for point in points],
            [_rounded(point.value, _VALUE_DIGITS) for point in points],
        ]
        for metric, points in run.curves.items()
    }
    positions = [
        [value and _rounded(value, _POSITION_DIGITS) for value in position] for position in numbers
    ]
    return {
        "label": label,
        "seed": str(run.config.get("seed", MISSING)),
        "finished": run.finished,
        "batches": progress(run),
        "cells": [column.cell(run) for column in COLUMNS],
        "positions": positions,
        "curves": curves,
        "files": [
            _link(run.path / name, name, folder)
            for name in ("samples.jsonl", "metrics.jsonl")
            if (run.path / name).is_file()
        ],
        "figures": [
            _link(file, file.relative_to(run.path / "figures").with_suffix("").as_posix(), folder)
            for file in sorted((run.path / "figures").rglob("*.html"))
        ],
    }


def _link(file: Path, name: str, folder: Path) -> dict[str, str]:
    """A relative address, so that the page can be moved together with the runs."""
    return {"name": name, "href": quote(os.fsencode(os.path.relpath(file, folder.resolve())))}


def _rounded(value: int | float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
