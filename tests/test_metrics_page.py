"""docs/metrics.md: its form, its axes and its rules; what it lists is in test_every_experiment."""

from __future__ import annotations

import re

from common.logger.health import RULES
from common.logger.sinks import BATCH_AXIS, STEP_AXIS, axis_of
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")


def documented() -> dict[str, re.Pattern[str]]:
    """The names of the page, each with what it stands for: {...} is any part without a slash."""
    tables = PAGE.partition("## Older names")[0]
    names = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\|[^|]*\|[^|]*\|$", tables, re.M)
    parts = (re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name)) for name in names)
    return dict(zip(names, map(re.compile, parts), strict=True))


def test_every_name_has_a_line_of_its_own_and_a_meaning():
    tables = PAGE.partition("## Health")[0]
    lines = [line for line in tables.splitlines() if line.startswith("| `")]
    assert len(lines) == len(documented())
    assert all(line.split("|")[4].strip() for line in lines)


def test_the_rules_are_those_of_the_code():
    rules = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Health")[2], re.M)
    assert rules[: len(RULES)] == [rule.name for rule in RULES]


def test_every_name_stands_on_its_axis():
    found = re.findall(r"^\| `([^`]+)` \|[^|]*\| (\w+) \|", PAGE.partition("## Health")[0], re.M)
    assert len(found) == len(documented())
    for name, axis in found:
        assert {"step": STEP_AXIS, "batch": BATCH_AXIS}[axis] == axis_of(name)
