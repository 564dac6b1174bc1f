"""From a file to tasks: what is no task is refused, by file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.printable import complaint_about_text_in, line_of
from common.tasks.foreign_files import (
    complaint_about_bytes,
    complaint_about_columns,
    complaint_about_directory,
    complaint_about_messages,
    complaint_about_text,
)
from common.tasks.task import Task, final_answer

# The columns that the split and the limits read.
COLUMN_TYPES: Mapping[str, type] = {"held_out": bool, "num_terms": int, "num_digits": int}
_REMEDIES = {
    bool: "write true or false, without quotes",
    int: "write a whole number, without quotes",
    str: "write text in quotes",
}
# Of a number; one that is longer is written with an exponent.
_MOST_DIGITS = 30
# Of a number, up and down: far beyond, `Decimal` makes an error of it, or 0.
_MOST_EXPONENT = 9999
_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class _OutOfBounds:
    """A number as it was written, which is beyond `_MOST_EXPONENT`."""

    written: str


def load_tasks(path: Path, column_types: Mapping[str, type] | None = None) -> list[Task]:
    """Read a JSONL file of objects with `question` and `answer`.

    UTF-8 with or without a byte order mark and any line ends are accepted; blank lines are skipped
    but counted, so that `task_id` is the line number minus one. Columns that the program reads must
    be of their types, `COLUMN_TYPES` and `column_types`; null stands for none.

    Raises `UserError`, naming file and line, for anything that is not such a file.
    """
    flag = f"--data-path {path}"
    content = _content(flag, path)
    if complaint := complaint_about_bytes(path, content):
        raise UserError(f"{flag}: {complaint}")
    lines = _LINE_END.split(_decoded(flag, content))
    if complaint := complaint_about_text(path, "\n".join(lines)):
        raise UserError(f"{flag}: {complaint}")
    types = {**COLUMN_TYPES, **(column_types or {})}
    tasks: list[Task] = []
    for number, line in enumerate(lines):
        if line.strip():
            where = f"{flag}, line {number + 1}"
            row = _row(where, line)
            if not {"question", "answer"} <= row.keys():
                raise UserError(f"{where}: {complaint_about_columns(path, row)}")
            if complaint := complaint_about_messages(path, row):
                raise UserError(f"{where}: {complaint}")
            tasks.append(_task(where, number, line, row, types))
    if not tasks:
        raise UserError(f"{flag}: holds no task; write one JSON object per line")
    return tasks


def _content(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{flag}: no such file; give an existing JSONL file") from None
    except IsADirectoryError:
        raise UserError(f"{flag}: {complaint_about_directory(path)}") from None
    except PermissionError:
        raise UserError(f"{flag}: not readable; check its permissions") from None
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror})") from None


def _decoded(flag: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
        raise UserError(f"{flag}, line {line_of(error)}: {what}; save the file as UTF-8") from None


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        complaint = complaint_about_text_in(row)
    except RecursionError:
        raise UserError(f"{where}: nested too deep; write one object per line") from None
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object per line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds {_shown(row)}; write an object with question and answer")
    if complaint:
        raise UserError(f"{where}: {complaint}")
    return row


def _task(
    where: str, number: int, line: str, row: Mapping[str, Any], types: Mapping[str, type]
) -> Task:
    columns = {name: value for name, value in row.items() if name not in ("question", "answer")}
    for name, wanted in types.items():
        value = columns.get(name)
        if value is None:
            columns.pop(name, None)
        elif not _is_of(wanted, value):
            raise UserError(f"{where}: its {name!r} is {_shown(value)}; {_REMEDIES[wanted]}")
    # Anew, as a float is not always the number that was written.
    exact = json.loads(line, parse_float=_exact)
    question = _as_text(where, "question", exact["question"])
    answers = exact["answer"] if isinstance(exact["answer"], list) else [exact["answer"]]
    if not answers:
        raise UserError(f"{where}: its 'answer' is an empty list; write one right answer or more")
    answer, *others = dict.fromkeys(
        final_answer(_as_text(where, "answer", answer)) for answer in answers
    )
    return Task(number, question, answer, columns, tuple(others))


def _is_of(wanted: type, value: Any) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    if isinstance(value, float):
        return wanted is int and value.is_integer()
    return isinstance(value, wanted)


def _as_text(where: str, name: str, value: Any) -> str:
    """What a person would write. Raises `UserError` for what is neither text nor a number."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return number_as_text(value)
    if isinstance(value, _OutOfBounds):
        raise UserError(
            f"{where}: its {name!r} is {value.written[:40]}, with an exponent beyond "
            f"{_MOST_EXPONENT}; write it in quotes, as text"
        )
    raise UserError(f"{where}: its {name!r} is {_shown(value)}; write text or a number")


def number_as_text(number: int | Decimal) -> str:
    """As a person would write it: 3.0 as 3, 1e16 with all of its zeros."""
    if isinstance(number, int):
        return str(number)
    if not number:
        return "0"
    short = number.normalize(Context(prec=len(number.as_tuple().digits)))
    if abs(short.adjusted()) > _MOST_DIGITS:
        return f"{short:e}".replace("e+", "e")
    return f"{short:f}"


def _exact(number: str) -> Decimal | _OutOfBounds:
    """A number as it was written."""
    try:
        exact = Decimal(number)
    except InvalidOperation:
        return _OutOfBounds(number)
    return _OutOfBounds(number) if exact and abs(exact.adjusted()) > _MOST_EXPONENT else exact


def _shown(value: Any) -> str:
    """A value as a user wrote it, or what it is if that may be long."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:40]
