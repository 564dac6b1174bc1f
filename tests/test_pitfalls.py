"""docs/pitfalls.md is true: every snippet prints what stands below it, and every test is there."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "pitfalls.md").read_text(encoding="utf-8")
ARXIV = r"\[arXiv (\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)"
THREAD = r"\[([\w.-]+/[\w.-]+)#(\d+)\]\(https://github\.com/\1/(?:issues|pull)/\2\)"
TEST = r"\[`(tests/[\w/]+\.py)::([\w:]+)`\]\(\.\./\1\)"


@dataclass(frozen=True)
class Entry:
    title: str
    code: str
    output: str
    after: str
    """Its sources and its tests."""

    @classmethod
    def of(cls, text: str) -> Entry:
        title, _, _ = text.partition("\n")
        form = r"\n\n```python\n(.*?)```\n\n```text\n(.*?)```\n\n(.*?)\n(?:\n## .*)?\Z"
        found = re.search(form, text.rstrip("\n") + "\n", re.S)
        assert found is not None, title
        return cls(title, *found.groups())


ENTRIES = [Entry.of(text) for text in re.split(r"^### ", PAGE, flags=re.M)[1:]]


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of the tests of a file, those of a class behind its own."""
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    classes = [(f"{node.name}::", node) for node in tree.body if isinstance(node, ast.ClassDef)]
    return frozenset(
        prefix + node.name
        for prefix, parent in [("", tree), *classes]
        for node in parent.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_a_snippet_prints_what_the_page_says(entry):
    printed = io.StringIO()
    with torch.random.fork_rng(), redirect_stdout(printed):
        exec(compile(entry.code, entry.title, "exec"), {"__name__": "pitfall"})
    assert printed.getvalue() == entry.output
    words = [line.partition("  ")[0] for line in entry.output.splitlines()]
    assert words == ["wrong", "right"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_an_entry_names_where_it_was_found_and_what_keeps_it_out(entry):
    form = r"- Sources?: (.+)\n- Test(s?): (.+)"
    found = re.fullmatch(form, entry.after, re.S)
    assert found is not None
    sources, several, guards = found.groups()
    assert re.search(f"{THREAD}|{ARXIV}", sources)
    assert "github.com" not in re.sub(THREAD, "", sources)
    tests = re.findall(TEST, guards)
    assert (len(tests) > 1) == bool(several)
    assert re.sub(TEST, "", guards).strip(" ,.\n") == ""
    assert tests
    assert not [test for file, test in tests if test not in functions_of(file)]


def test_the_table_has_every_entry_with_numbers_that_it_prints():
    rows = re.findall(r"^\| (\d+) \| \[(.+?)\]\(#(.+?)\) \| (.+?) \| (.+?) \|$", PAGE, re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, len(ENTRIES) + 1))
    for entry, (_, title, anchor, wrong, right) in zip(ENTRIES, rows, strict=True):
        assert title == entry.title
        assert anchor == re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        first, second = entry.output.splitlines()
        assert wrong in first
        assert right in second
