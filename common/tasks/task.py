"""What is asked, and the answer that counts as right."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_GSM8K_ANSWER = re.compile(r"####\s*(\S[^\n]*)\s*$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


@dataclass(frozen=True)
class Task:
    """A question and its oracle answer.

    `task_id` keys the random streams of the task's completions, so it must not depend on the order
    in which tasks are visited. Columns of the data file that are neither question nor answer stay
    in `columns` for reward functions to use.
    """

    task_id: int
    question: str
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    """Other answers that are as right."""

    @property
    def line(self) -> int:
        """Where it stands in its file."""
        return self.task_id + 1

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.answer, *self.alternatives)


def is_held_out(question: str) -> bool:
    """A tenth of all questions, chosen by hash: the same split whatever the file or its order."""
    return zlib.crc32(question.encode()) % 10 == 0


def final_answer(answer: str) -> str:
    """What follows `####` in a GSM8K answer, without thousands separators; else the text itself."""
    match = _GSM8K_ANSWER.search(answer)
    if match is None:
        return answer.strip()
    return _THOUSANDS.sub("", match.group(1).strip())


def select_tasks(
    tasks: Iterable[Task], max_terms: int | None = None, max_digits: int | None = None
) -> list[Task]:
    """Keep tasks within the limits; a task without the column in question is kept."""
    limits = {"num_terms": max_terms, "num_digits": max_digits}
    return [
        task
        for task in tasks
        if all(
            limit is None or task.columns.get(column, 0) <= limit
            for column, limit in limits.items()
        )
    ]


def split_tasks(tasks: Iterable[Task]) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks: as a column `held_out` says, else by `is_held_out`.

    Disjoint because `is_held_out` reads the question alone.
    """
    train: list[Task] = []
    held_out: list[Task] = []
    for task in tasks:
        held = task.columns.get("held_out", is_held_out(task.question))
        (held_out if held else train).append(task)
    return train, held_out
