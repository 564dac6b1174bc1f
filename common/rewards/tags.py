"""What a model wrote, taken apart: a thought in its tags, and what stands after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from common.rewards.transcript import DEFAULT_REASONING_TAG, Transcript
from common.tasks.task import Task

ANSWER_TAG = "answer"

Function = TypeVar("Function", bound=Callable[..., object])


def looks_for_answer_tags(function: Function) -> Function:
    """Declare that a function sees only what is in answer tags: where there are none, that is said.

    What is measured of answer tags is measured in runs in which such a function says what is right.
    """
    vars(function)["looks_for_answer_tags"] = True
    return function


def split_thought(completion: str) -> tuple[str | None, str]:
    """The thought, without its tags, and what stands after it.

    A thought goes from the first opening tag to the last closing tag: tags that it mentions are
    text. What stands after it ends where another is opened that is never closed. Nothing stands
    around one that was never closed where none was, and text without a reasoning tag stands after
    none. There is no thought without both tags, the opening one first.
    """
    opening, closing = _reasoning_tags(completion)
    before, closed, after = completion.rpartition(closing)
    after, opened_again, _ = after.partition(opening)
    if opened_again and not closed:
        return None, ""
    _, opened, thought = before.partition(opening)
    return (thought if opened and closed else None), after


def after_thought(completion: str) -> str:
    """The only place for an answer, and for calls of tools."""
    return split_thought(completion)[1]


def extract_tag(completion: str, tag: str) -> str | None:
    """The stripped text inside `<tag>...</tag>`, or None unless each tag occurs exactly once.

    The reasoning tag gives the thought; any other is looked for in what stands after it.
    """
    thought, after = split_thought(completion)
    if (f"<{tag}>", f"</{tag}>") == _reasoning_tags(completion):
        return None if thought is None else thought.strip()
    opening, closing = f"<{tag}>", f"</{tag}>"
    if after.count(opening) != 1 or after.count(closing) != 1:
        return None
    inside, found, _ = after.partition(opening)[2].partition(closing)
    return inside.strip() if found else None


@looks_for_answer_tags
def format_exact(completion: str, task: Task) -> float:
    """1 for a thought in its tags, then an answer in its tags, and nothing else."""
    del task
    thought, after = split_thought(completion)
    opening, closing = _reasoning_tags(completion)
    return float(
        thought is not None
        and completion.endswith(f"{closing}{after}")
        and extract_tag(completion, ANSWER_TAG) is not None
        and completion.lstrip().startswith(opening)
        and after.strip().startswith(f"<{ANSWER_TAG}>")
        and after.strip().endswith(f"</{ANSWER_TAG}>")
    )


@looks_for_answer_tags
def format_approx(completion: str, task: Task) -> float:
    """The share of four tags that are there: a thought's, and after it those of one answer."""
    del task
    after = after_thought(completion)
    reasoning = [tag in completion for tag in _reasoning_tags(completion)]
    answer = [after.count(tag) == 1 for tag in (f"<{ANSWER_TAG}>", f"</{ANSWER_TAG}>")]
    return sum(reasoning + answer) / 4


def _reasoning_tags(completion: str) -> tuple[str, str]:
    """The run's, which a transcript knows."""
    known = isinstance(completion, Transcript)
    tag = completion.reasoning_tag if known else DEFAULT_REASONING_TAG
    return f"<{tag}>", f"</{tag}>"
