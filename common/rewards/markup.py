"""Text without what only sets it off: emphasis, boxes, LaTeX's spaces."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Longer text has no wrappers: hostile ones would take long to take off.
_LONGEST = 10_000
# How many wrappers around one another are taken off; nobody writes more.
_DEEPEST = 8

# Stands for an escaped dollar sign while bare ones may still be those around a formula.
_DOLLAR = "\N{FULLWIDTH DOLLAR SIGN}"
_SPELLINGS: Mapping[str, str] = {
    r"\!": "",
    r"\,": "\N{THIN SPACE}",
    r"\;": " ",
    r"\:": " ",
    r"\ ": " ",
    "{,}": ",",
    r"\$": _DOLLAR,
    r"\%": "%",
    r"^{\circ}": "°",
    r"^\circ": "°",
}
_SPELLED = re.compile("|".join(map(re.escape, _SPELLINGS)))
_WORDS_IN_FORMULAS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_BOX = r"\boxed{"
_AROUND = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ("*", "*"),
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ('"', '"'),
    ("\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}"),
)


def bare(text: str) -> str:
    r"""`**18**`, `$18$`, `"18"`, `\boxed{18}` and `18.` are 18; what stands inside stays."""
    if len(text) > _LONGEST:
        return text.strip()
    text = _as_plain_text(text)
    for _ in range(_DEEPEST):
        inside = _inside(text.strip())
        if inside == text:
            break
        text = inside
    return text.strip().replace(_DOLLAR, "$")


def unadorned(text: str) -> str:
    """Prose without the marks of emphasis, boxes and tags in it."""
    text = re.sub(r"</?\w{1,20}>", " ", _as_plain_text(text))
    text = re.sub(r"\*\*|__|`|\$\$|\\[()\[\]]", " ", text)
    return text.replace(_BOX, " {").replace(_DOLLAR, "$")


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None without one, or where its braces do not close."""
    _, found, after = text[-_LONGEST:].rpartition(_BOX)
    end = _closing_brace(after)
    return after[:end] if found and end is not None else None


def _as_plain_text(text: str) -> str:
    text = _SPELLED.sub(lambda match: _SPELLINGS[match.group()], text)
    return _WORDS_IN_FORMULAS.sub(r" \1 ", text)


def _inside(text: str) -> str:
    """The text without its outermost wrapper, or without its full stop."""
    for left, right in _AROUND:
        inside = text[len(left) : len(text) - len(right)]
        is_around = text.startswith(left) and text.endswith(right)
        if is_around and inside.strip() and left not in inside and right not in inside:
            return inside
    if text.startswith(_BOX) and _closing_brace(text[len(_BOX) :]) == len(text) - len(_BOX) - 1:
        return text[len(_BOX) : -1]
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _closing_brace(text: str) -> int | None:
    """Where the brace closes that was open before the text; escaped ones are text."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
