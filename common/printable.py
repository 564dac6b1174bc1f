"""Text from outside, made fit for a terminal, or for a tokenizer, a file and other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without control characters, with which it could steer the terminal, and with all
    that `storable` replaces."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def storable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON and Python can spell and UTF-8 cannot,
    and without NUL, at which many programs end a text."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def all_storable(value: Any) -> Any:
    """What JSON can hold, with `storable` text and names."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(name): all_storable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [all_storable(part) for part in value]
    return value


def unstorable_in(value: Any) -> str | None:
    """The first text in what JSON holds, names included, that is not `storable`."""
    return next((text for text in _texts(value) if _UNSTORABLE.search(text)), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
