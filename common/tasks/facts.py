"""What is asked of real things, in which words, and what is true: the source of the search tasks.

`data/facts.yaml` has it all; what its lines mean stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import yaml

from common.repository import DATA

FACTS_FILE = DATA / "facts.yaml"

Value = Literal["name", "word", "year", "number"]


@dataclass(frozen=True)
class Attribute:
    """A property of a kind of thing, as documents state it and questions ask for it.

    `{e}` stands for the entity and `{v}` for the value. The last statement and the last question
    are never seen in training.
    """

    name: str
    value: Value
    statements: tuple[str, str, str]
    questions: tuple[str, str, str]


@dataclass(frozen=True)
class Fact:
    """The value of an entity's attribute."""

    entity: str
    kind: str
    attribute: Attribute
    value: str


@cache
def kinds() -> dict[str, tuple[Attribute, ...]]:
    """The kinds of things there are, each with its attributes."""
    return {
        kind: tuple(
            Attribute(one["name"], one["value"], tuple(one["statements"]), tuple(one["questions"]))
            for one in known["attributes"]
        )
        for kind, known in _read().items()
    }


def facts() -> list[list[Fact]]:
    """All that is known, entity by entity."""
    found: list[list[Fact]] = []
    for kind, known in _read().items():
        for entity, *values in known["entities"]:
            pairs = zip(kinds()[kind], values, strict=True)
            found.append(
                [Fact(entity, kind, attribute, str(v)) for attribute, v in pairs if v is not None]
            )
    return found


def _read() -> dict[str, Any]:
    return yaml.safe_load(FACTS_FILE.read_text(encoding="utf-8"))
