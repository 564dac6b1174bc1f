"""Checks that a rubric declares without code: each makes a function of completion and task."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from common.rewards.numbers import Number, read_number
from common.rewards.outcome import RewardFunction
from common.rewards.tags import ANSWER_TAG, extract_tag, looks_for_answer_tags
from common.rewards.transcript import Transcript
from common.tasks.task import Task

# What a model wrote is not looked at further: a pattern may take long on a long text.
MOST_CHARACTERS = 20_000
UNITS = ("characters", "words")


def regex(pattern: str, of: str = "completion", ignore_case: bool = False) -> RewardFunction:
    """1 if the pattern is found."""
    compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    part = _part(of)

    def score(completion: Transcript, task: Task) -> float:
        return float(compiled.search(part(completion)) is not None)

    return looks_for_answer_tags(score) if of == ANSWER_TAG else score


def contains(text: str, of: str = "completion", ignore_case: bool = False) -> RewardFunction:
    """1 if the text is there."""
    if not text:
        raise ValueError("text: there is nothing to look for")
    return regex(re.escape(text), of, ignore_case)


def length(
    of: str = "completion", unit: str = "characters", least: float = 0.0, most: float = float("inf")
) -> RewardFunction:
    """1 if there are at least `least` and at most `most` characters or words."""
    if unit not in UNITS:
        raise ValueError(f"unit: {unit!r} is unknown; there are {', '.join(UNITS)}")
    if not 0 <= least <= most:
        raise ValueError(f"least, most: {least!r} and {most!r} leave no length")
    part = _part(of)

    def score(completion: Transcript, task: Task) -> float:
        text = part(completion)
        return float(least <= (len(text) if unit == "characters" else len(text.split())) <= most)

    return looks_for_answer_tags(score) if of == ANSWER_TAG else score


def numeric(tolerance: float, relative: bool = False) -> RewardFunction:
    """1 if the tagged answer is a number that is at most `tolerance` from the oracle's.

    With `relative`, the tolerance is a share of the oracle's number.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance: {tolerance!r} is not a finite number of at least 0")
    exact_tolerance = Decimal(str(tolerance))

    def is_near(answer: Number, expected: Number) -> bool:
        allowed = exact_tolerance * abs(expected.value) if relative else exact_tolerance
        return answer.measures_as(expected) and abs(answer.value - expected.value) <= allowed

    @looks_for_answer_tags
    def score(completion: Transcript, task: Task) -> float:
        answer = read_number(extract_tag(completion, ANSWER_TAG) or "")
        oracles = filter(None, map(read_number, task.answers))
        return float(answer is not None and any(is_near(answer, oracle) for oracle in oracles))

    return score


def _part(of: str) -> Callable[[str], str]:
    """The text that a check looks at; empty where the completion has no such part."""
    if of == "completion":
        return lambda completion: completion[:MOST_CHARACTERS]
    if not re.fullmatch(r"\w+", of):
        raise ValueError(f"of: {of!r} is neither completion nor a tag, such as answer or think")
    return lambda completion: (extract_tag(completion, of) or "")[:MOST_CHARACTERS]


CHECKS: Mapping[str, Callable[..., Any]] = {
    "regex": regex,
    "contains": contains,
    "length": length,
    "numeric": numeric,
}
