"""docs/metrics.md lists what the six experiments log: all of it, and nothing else."""

from __future__ import annotations

import re

import pytest

from common.logger.figures.maker import FIGURES, FINAL, page_of
from common.logger.health import RULES
from tests.helpers import REPOSITORY, read_rows

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
# What a run only logs if something goes wrong.
IN_TROUBLE = {"health/{rule}"}


def documented() -> dict[str, re.Pattern[str]]:
    """The names of the page, each with what it stands for: {...} is any part without a slash."""
    tables = PAGE.partition("## Older names")[0]
    names = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\|[^|]*\|$", tables, re.M)
    parts = (re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name)) for name in names)
    return dict(zip(names, map(re.compile, parts), strict=True))


def test_every_name_has_a_line_of_its_own_and_a_meaning():
    tables = PAGE.partition("## Health")[0]
    lines = [line for line in tables.splitlines() if line.startswith("| `")]
    assert len(lines) == len(documented())
    assert all(line.split("|")[3].strip() for line in lines)


def test_the_rules_are_those_of_the_code():
    rules = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Health")[2], re.M)
    assert rules[: len(RULES)] == [rule.name for rule in RULES]


@pytest.mark.slow
def test_the_page_lists_what_the_six_experiments_log_and_nothing_else(six_runs):
    rows = [row for run in six_runs.values() for row in read_rows(run / "metrics.jsonl")]
    logged = {name for row in rows for name in row}
    for run in six_runs.values():
        logged |= {name for name in FIGURES if page_of(run / "figures", name).exists()}
        final = run / "figures" / FINAL
        logged |= {f"{FINAL}/{name}" for name in FIGURES if page_of(final, name).exists()}
    patterns = documented()
    unknown = [n for n in logged if not any(p.fullmatch(n) for p in patterns.values())]
    assert sorted(unknown) == []
    missing = {n for n, p in patterns.items() if not any(map(p.fullmatch, logged))}
    assert missing == IN_TROUBLE
