"""Text that a model or a tool wrote, made fit for a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters, with which it could steer the terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
