"""What is asked, and the answer that counts as right."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError

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


def load_tasks(path: Path) -> list[Task]:
    """Read a JSONL file of objects with `question` and `answer`.

    UTF-8 with or without a byte order mark and any line ends are accepted; blank lines are skipped
    but counted, so that `task_id` is the line number minus one.

    Raises `UserError`, naming file and line, for anything that is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--data-path {path}: no such file; give an existing JSONL file") from None
    except IsADirectoryError:
        raise UserError(f"--data-path {path}: is a directory; give a JSONL file") from None
    except PermissionError:
        raise UserError(f"--data-path {path}: not readable; check its permissions") from None
    except OSError as error:
        raise UserError(f"--data-path {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--data-path {path}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    tasks = [
        _parse_line(line, number, path)
        for number, line in enumerate(text.split("\n"))
        if line.strip()
    ]
    if not tasks:
        raise UserError(f"--data-path {path}: holds no task; write one JSON object per line")
    return tasks


def _parse_line(line: str, number: int, path: Path) -> Task:
    where = f"--data-path {path}, line {number + 1}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object per line") from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: holds {type(row).__name__}; write an object with question, answer"
        )
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str | int | float) or not str(row[name]).strip():
            raise UserError(f"{where}: has no {name!r}; every task needs question and answer")
    columns = {name: value for name, value in row.items() if name not in ("question", "answer")}
    return Task(number, str(row["question"]), final_answer(str(row["answer"])), columns)


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
