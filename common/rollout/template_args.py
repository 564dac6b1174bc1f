"""What a user gives a chat template beside the conversation: `enable_thinking=false,...`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.printable import complaint_about_text_in

_SET_BY_THE_PROGRAM = frozenset({"messages", "tools", "add_generation_prompt"})
_NAME = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")


def parse_template_args(text: str) -> dict[str, Any]:
    """Names with their values, which are JSON where they can be read as such, else text.

    Raises `UserError` for what is not `name=value,...`, for a name that is given twice or that is
    not the user's to set, and for a value that no tokenizer reads.
    """
    values: dict[str, Any] = {}
    rest = text
    while rest.strip():
        name = _NAME.match(rest)
        if not name:
            raise _refused(rest, "not name=value; write enable_thinking=false")
        if name[1] in _SET_BY_THE_PROGRAM:
            raise _refused(name[1], "is set by the program; leave it out")
        if name[1] in values:
            raise _refused(name[1], "is given twice; leave one out")
        try:
            values[name[1]], rest = _first_value(rest[name.end() :])
            complaint = complaint_about_text_in(values[name[1]])
        except RecursionError:
            raise _refused(name[1], "is nested too deep; give a flatter value") from None
        if complaint:
            raise _refused(name[1], complaint)
    return values


def check_template_args(values: Mapping[str, Any], template: str) -> None:
    """Raise `UserError` for a name that the template never mentions: it would change nothing."""
    for name in values:
        if not re.search(rf"\b{name}\b", template):
            raise _refused(name, "the chat template does not use it; correct the name, or drop it")


def read_template(path: Path) -> str:
    """A chat template of the user's. Raises `UserError` for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"--chat-template {path}: cannot be read ({why}); give a file of Jinja"
        ) from None


def _first_value(text: str) -> tuple[Any, str]:
    """The value that text begins with, and what follows its comma."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        value, end = text, 0
    rest = text[end:].lstrip()
    if end and (not rest or rest.startswith(",")):
        return value, rest[1:]
    word, _, rest = text.partition(",")
    return word.strip(), rest


def _refused(what: str, why: str) -> UserError:
    return UserError(f"--chat-template-args {what}: {why}")
