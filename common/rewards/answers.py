"""Is the answer right?"""

from __future__ import annotations

import re

from common.rewards.markup import bare, last_boxed, unadorned
from common.rewards.numbers import Number, denies, last_number_in, numbers_in, read_number
from common.rewards.tags import ANSWER_TAG, after_thought, extract_tag, looks_for_answer_tags
from common.tasks.task import Task

# For an answer that holds the oracle among other words, such as "The result is 6".
PARTIAL_CREDIT = 0.5

# Longer answers hold nothing, whatever they hold.
_LONGEST_PROSE = 2000

_CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\].:]{0,2}")
# A choice with its text, which may say anything: (B) None of them.
_LABEL = re.compile(r"\A\s*[(\[]?[A-Za-z][)\].:]{1,2}\s+(?!(?:is|was|are)(?:n|\b)).*", re.DOTALL)
# Letters that stand alone, but for the words "a", "i" and "I'm".
_CHOICES_IN_PROSE = re.compile(
    r"(?<!\w)(?<!\w['\u2019])(?:[A-Z]|[b-hj-z]|a(?!\s+\w{2}))(?!\w|['\u2019]\w)"
)
# What may stand beside an answer because it cannot be another one.
_FILLERS = re.compile(
    r"""(?: [\s.,:;!?"'()\[\]\u2018\u2019\u201c\u201d] | \b (?: a | an | the | it | its
    | it['\u2019]s | is | was | are | be | will | would | must | should | so | thus | hence
    | therefore | then | final | answer | result | solution | value | choice | option | my | our
    | your | that | this | i | think | believe | say | in | equals | called | just | simply | only
    ) \b )*""",
    re.VERBOSE,
)


@looks_for_answer_tags
def is_correct(completion: str, task: Task) -> bool:
    """Whether the tagged answer is one of the right ones."""
    return _is_right(extract_tag(completion, ANSWER_TAG), task)


@looks_for_answer_tags
def answer_check(completion: str, task: Task) -> float:
    """1 if the tagged answer is right, partial credit if it holds a right one and no other."""
    answer = extract_tag(completion, ANSWER_TAG)
    if answer is None:
        return 0.0
    if _is_right(answer, task):
        return 1.0
    return PARTIAL_CREDIT if any(holds_answer(answer, oracle) for oracle in task.answers) else 0.0


@looks_for_answer_tags
def number_check(completion: str, task: Task) -> float:
    """1 if the tagged answer is numerically right."""
    return float(_is_right_number(read_number(extract_tag(completion, ANSWER_TAG) or ""), task))


def last_number(completion: str, task: Task) -> float:
    """1 if the last number after the thought is right; no tags are needed."""
    return float(_is_right_number(last_number_in(after_thought(completion)), task))


def boxed(completion: str, task: Task) -> float:
    r"""1 if the last `\boxed{...}` after the thought is right; no tags are needed."""
    return float(_is_right(last_boxed(after_thought(completion)), task))


def is_tagged(completion: str) -> bool:
    return extract_tag(completion, ANSWER_TAG) is not None


@looks_for_answer_tags
def answer_format(completion: str, task: Task) -> float:
    """1 for one answer in its tags."""
    del task
    return float(is_tagged(completion))


def is_same_answer(answer: str, oracle: str) -> bool:
    """Equal as numbers, as letters of a choice, or as text without regard to case."""
    verdict = as_numbers_or_letters(answer, oracle)
    return _as_text(answer) == _as_text(oracle) if verdict is None else verdict


def as_numbers_or_letters(answer: str, oracle: str) -> bool | None:
    """Whether they are equal where both are numbers or both letters of a choice, so that nothing
    else counts; None where they are not."""
    number, expected = read_number(answer), read_number(oracle)
    if number is not None and expected is not None:
        return number.equals(expected)
    letter, right_letter = letter_of_choice(answer), letter_of_choice(oracle)
    if letter is not None and right_letter is not None:
        return letter == right_letter
    return None


def holds_answer(answer: str, oracle: str) -> bool:
    """Whether an answer holds the whole oracle and nothing else that could be one.

    A number may stand among words that tell of no other number, a letter among words without
    another letter; any other text among words that are no answer themselves, such as "it is".
    """
    if len(answer) > _LONGEST_PROSE:
        return False
    expected, letter = read_number(oracle), letter_of_choice(oracle)
    if expected is not None:
        if whole := read_number(answer):
            return whole.equals(expected)
        numbers = numbers_in(answer)
        if expected.unit not in ("", "%") and not _has_words(answer, expected.unit):
            return False
        return bool(numbers) and all(number.equals(expected) for number in numbers or ())
    if letter is not None:
        if denies(_LABEL.sub("", answer)):
            return False
        return {found.upper() for found in _CHOICES_IN_PROSE.findall(answer)} == {letter}
    return _holds_text(answer, oracle)


def _is_right(answer: str | None, task: Task) -> bool:
    return answer is not None and any(is_same_answer(answer, oracle) for oracle in task.answers)


def _is_right_number(number: Number | None, task: Task) -> bool:
    oracles = filter(None, map(read_number, task.answers))
    return number is not None and any(map(number.equals, oracles))


def letter_of_choice(text: str) -> str | None:
    """The letter of a choice, as in `B`, `(b)` and `b.`."""
    match = _CHOICE.fullmatch(bare(text))
    return match[1].upper() if match else None


def _as_text(text: str) -> str:
    return _in_one_line(bare(text))


def _in_one_line(text: str) -> str:
    return " ".join(text.casefold().split())


def _has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<![^\W\d]){re.escape(words)}(?!\w)", text.lower()) is not None


def _holds_text(answer: str, oracle: str) -> bool:
    """Whether the oracle's text stands there whole, among fillers and punctuation alone."""
    text, whole = _in_one_line(unadorned(answer)), _as_text(oracle)
    alone = rf"(?<![^\s\"'(\[:\u2018\u201c]){re.escape(whole)}(?![\w+*/^=-])"
    first, *more = re.split(alone, text)
    return bool(more) and _FILLERS.fullmatch(" ".join([first, *more])) is not None
