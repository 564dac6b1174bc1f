"""Is the answer right?"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from common.rewards.tags import ANSWER_TAG, extract_tag
from common.tasks.task import Task

# For an answer that holds the oracle among other words, such as "The result is 6".
PARTIAL_CREDIT = 0.5

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_LONGEST_NUMBER = 100


def answer_check(completion: str, task: Task) -> float:
    """1 if the tagged answer is the oracle's text, partial credit if it contains it as a word."""
    answer = extract_tag(completion, ANSWER_TAG)
    if answer is None:
        return 0.0
    if answer == task.answer:
        return 1.0
    as_word = rf"(?<![\w.-]){re.escape(task.answer)}(?!\w|\.\d)"
    return PARTIAL_CREDIT if re.search(as_word, answer) else 0.0


def number_check(completion: str, task: Task) -> float:
    """1 if the tagged answer is numerically the oracle: 1,234 = 1234 = 1234.0."""
    answer = parse_number(extract_tag(completion, ANSWER_TAG) or "")
    return float(answer is not None and answer == parse_number(task.answer))


def is_correct(completion: str, task: Task) -> bool:
    """Right as text or as a number, in answer tags."""
    return answer_check(completion, task) == 1 or number_check(completion, task) == 1


def is_tagged(completion: str) -> bool:
    return extract_tag(completion, ANSWER_TAG) is not None


def parse_number(text: str) -> Decimal | None:
    """An exact number from text such as `1,234.50` or `$ 12`; None for anything else."""
    text = text.strip().removeprefix("$").strip()
    if len(text) > _LONGEST_NUMBER or not text.isascii() or not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
