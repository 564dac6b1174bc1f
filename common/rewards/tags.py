"""Tags in what a model wrote: taking them apart and scoring their form."""

from __future__ import annotations

import re

from common.tasks.task import Task

ANSWER_TAG = "answer"


def extract_tag(completion: str, tag: str) -> str | None:
    """The stripped text inside `<tag>...</tag>`, or None unless each tag occurs exactly once."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if completion.count(opening) != 1 or completion.count(closing) != 1:
        return None
    inside, found, _ = completion.partition(opening)[2].partition(closing)
    return inside.strip() if found else None


def format_exact(completion: str, task: Task, *, reasoning_tag: str = "think") -> float:
    """1 for reasoning in its tags, then an answer in its tags, each once and nothing else."""
    del task
    thought, answer = extract_tag(completion, reasoning_tag), extract_tag(completion, ANSWER_TAG)
    if thought is None or answer is None:
        return 0.0
    order = (
        rf"\s*<{re.escape(reasoning_tag)}>.*</{re.escape(reasoning_tag)}>\s*<answer>.*</answer>\s*"
    )
    return float(re.fullmatch(order, completion, flags=re.DOTALL) is not None)


def format_approx(completion: str, task: Task, *, reasoning_tag: str = "think") -> float:
    """The share of the four tags that occur exactly once."""
    del task
    tags = [f"<{slash}{tag}>" for tag in (reasoning_tag, ANSWER_TAG) for slash in ("", "/")]
    return sum(completion.count(tag) == 1 for tag in tags) / len(tags)
