"""Is a short answer right? As in SQuAD (arXiv 1606.05250): normalised exact match, and F1."""

from __future__ import annotations

import string
from collections import Counter

from common.rewards.answers import as_numbers_or_letters
from common.rewards.numbers import read_number
from common.rewards.tags import ANSWER_TAG, extract_tag, looks_for_answer_tags
from common.tasks.task import Task

_ARTICLES = ("a", "an", "the")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AROUND_A_NUMBER = ",;:!?\"'()[]{}#"


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and spare space; a number keeps sign and point."""
    words = map(_normalised_word, text.lower().split())
    return " ".join(word for word in words if word and word not in _ARTICLES)


@looks_for_answer_tags
def is_exact_match(completion: str, task: Task) -> bool:
    """Whether the tagged answer is one of the right ones: as numbers, else once normalised."""
    answer = extract_tag(completion, ANSWER_TAG)
    return answer is not None and any(_matches(answer, oracle) for oracle in task.answers)


@looks_for_answer_tags
def answer_f1(completion: str, task: Task) -> float:
    """The harmonic mean of precision and recall over the words of the tagged answer.

    Of several right answers the one counts that gives most.
    """
    answer = extract_tag(completion, ANSWER_TAG)
    return 0.0 if answer is None else max(_f1(answer, oracle) for oracle in task.answers)


def _normalised_word(word: str) -> str:
    inside = word.strip(_AROUND_A_NUMBER)
    number = read_number(inside)
    if number is None and any(map(str.isdigit, inside)) and not any(map(str.isalpha, inside)):
        # Digits that are no number, such as 5- and 7/8, are not those without the signs.
        return inside
    if number is None or number.unit not in ("", "%"):
        return word.translate(_PUNCTUATION)
    whole, point, decimals = f"{number.value:f}".partition(".")
    return (whole + point + decimals.rstrip("0")).removesuffix(".")


def _matches(answer: str, oracle: str) -> bool:
    verdict = as_numbers_or_letters(answer, oracle)
    if verdict is not None:
        return verdict
    said, right = normalised(answer), normalised(oracle)
    # An article or a sign alone is itself and nothing else.
    return said == right if said or right else answer.split() == oracle.split()


def _f1(answer: str, oracle: str) -> float:
    if _matches(answer, oracle):
        return 1.0
    words, expected = normalised(answer).split(), normalised(oracle).split()
    shared = (Counter(words) & Counter(expected)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
