"""Text from outside, made fit for a terminal, or for a tokenizer, a file and other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_LINE_END = re.compile(rb"\r\n|\r|\n")


def printable(text: str) -> str:
    """The text without control characters, with which it could steer the terminal, and with all
    that `storable` replaces."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def storable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON and Python can spell and UTF-8 cannot,
    and without NUL, at which many programs end a text."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def line_of(error: UnicodeDecodeError) -> int:
    """The line, from 1, in which bytes are no text."""
    return len(_LINE_END.findall(error.object[: error.start])) + 1


def error_as_line(error: BaseException) -> str:
    """What somebody's code raised, in one storable line, even if it has no message that can be
    shown."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 (code of the user)
        message = "(its message cannot be shown)"
    return storable(" ".join(f"{type(error).__name__}: {message}".split()))


def all_storable(value: Any) -> Any:
    """What JSON can hold, with `storable` text and names."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {all_storable(name): all_storable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [all_storable(part) for part in value]
    return tuple(map(all_storable, value)) if isinstance(value, tuple) else value


def unstorable_in(value: Any) -> str | None:
    """The first text in what JSON holds, names included, that is not `storable`."""
    return next((text for text in _texts(value) if _UNSTORABLE.search(text)), None)


def complaint_about_text_in(value: Any) -> str | None:
    """What is not `storable` in what JSON holds, and what to do about it."""
    text = unstorable_in(value)
    if text is None:
        return None
    what = "a NUL" if "\0" in text else "half of a surrogate pair"
    return f"holds {what}, in {text[:60]!a}; take it out"


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
