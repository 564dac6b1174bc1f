"""Files that are no JSONL of questions and answers: what they are, and a command that makes it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from common.printable import printable


def _with_pandas(rows: str) -> str:
    """A command that writes a table as JSONL."""
    return (
        f'pip install pandas pyarrow && python -c "import pandas, pyarrow, sys; {rows}'
        ".to_json(sys.argv[2], orient='records', lines=True)\" {file} {jsonl}"
    )


# How a file begins, what it is then, and the command that makes JSONL of it, or leads there.
_MAGIC = (
    (b"\x1f\x8b", "compressed by gzip", "gunzip -c {file} > {jsonl}"),
    (b"BZh", "compressed by bzip2", "bunzip2 -c {file} > {jsonl}"),
    (b"\xfd7zXZ\0", "compressed by xz", "xz -dc {file} > {jsonl}"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -dc {file} > {jsonl}"),
    (b"PK\3\4", "a ZIP archive", "unzip {file} -d {directory}, and give the file in there"),
    (b"PAR1", "Parquet", _with_pandas("pandas.read_parquet(sys.argv[1])")),
    (b"ARROW1", "Arrow", _with_pandas("pandas.read_feather(sys.argv[1])")),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream",
        _with_pandas("pyarrow.ipc.open_stream(open(sys.argv[1], 'rb')).read_pandas()"),
    ),
    (b"\xff\xfe", "UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 {file} > {jsonl}"),
    (b"\xfe\xff", "UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 {file} > {jsonl}"),
)
# An expression for the rows of a file `f` that is JSONL.
_LINES = "map(json.loads, filter(str.strip, f))"
_TAR_MARK = slice(257, 262)
_MOST_NAMES, _LONGEST_NAME = 20, 40

_QUESTIONS = ("problem", "prompt", "instruction", "query", "input", "text")
_ANSWERS = (
    *("solution", "completion", "output", "response", "final_answer", "expected_answer"),
    *("ground_truth", "reference_answer", "target", "label"),
)
# What of a message names its role, what its text, and the roles of who asks and who answers.
_MESSAGES = (("role", "content", "user", "assistant"), ("from", "value", "human", "gpt"))


def complaint_about_bytes(path: Path, content: bytes) -> str | None:
    """What a file is by its first bytes, and how to make JSONL of it; None for what may be text."""
    for magic, what, command in _MAGIC:
        if content.startswith(magic):
            return f"is {what}; convert it: {_filled(command, path)}"
    if content[_TAR_MARK] == b"ustar":
        command = "tar -xf {file} -C {directory}, and give the file in there"
        return f"is a tar archive; unpack it: mkdir -p {_filled('{directory} && ' + command, path)}"
    return None


def complaint_about_directory(path: Path) -> str:
    """What of a directory can be given."""
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    rows = [name for name in names if name.endswith(".jsonl")]
    if len(rows) > 1:
        together = f"cat {shlex.quote(str(path))}/*.jsonl > {_filled('{jsonl}', path)}"
        return f"is a directory; give one of its files, such as {rows[0]}, or all: {together}"
    return f"is a directory; give a file{f', such as {names[0]}' if names else ''}"


def complaint_about_text(path: Path, text: str) -> str | None:
    """What a text is if it is not JSONL, and how to make JSONL of it; None if it may be."""
    start = text.lstrip()
    first = start.partition("\n")[0]
    if start.startswith("{"):
        return None if _parsed(first) is not None else _about_object(path, start)
    if start.startswith("["):
        rows = _parsed(first)
        if rows is None or (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
            return f"is a JSON array; convert it: {_with_python(path, 'r', 'json.load(f)')}"
        return None
    for delimiter, name in (("\t", "TSV"), (",", "CSV"), (";", "CSV with semicolons")):
        header = _header(start, delimiter)
        if len(header) > 1:
            command = _with_python(path, "r", f"csv.DictReader(f, delimiter={delimiter!r})")
            return f"is {name} with the columns {_listed(header)}; convert it: {command}"
    return None


def _header(text: str, delimiter: str) -> list[str]:
    """The first line's cells, if the next has as many."""
    rows = csv.reader(text.split("\n"), delimiter=delimiter)
    try:
        header, row = next(rows, []), next(rows, [])
    except csv.Error:
        return []
    return [cell.strip() for cell in header] if len(header) == len(row) else []


def _about_object(path: Path, text: str) -> str | None:
    """Of a file that begins with an object that does not end in the first line."""
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    rest = text[end:].lstrip()
    if rest.startswith(","):
        command = _with_python(path, "r", "json.loads('[' + f.read().strip().rstrip(',') + ']')")
        return f"is JSON with commas between objects; convert it: {command}"
    if not rest and _question(first) is None and (name := _list_of_rows(first)):
        command = _with_python(path, "r", f"json.load(f)[{name!r}]")
        return f"is one JSON object with rows in {name!r}; convert it: {command}"
    if rest and not rest.startswith("{"):
        return None
    what = "objects over several lines" if "\n" in text[:end] else "several objects in one line"
    return f"is JSON with {what}; convert it: {_filled('jq -c . {file} > {jsonl}', path)}"


def complaint_about_messages(path: Path, row: Mapping[str, Any]) -> str | None:
    """How to make a task of a row with a list of messages as question or answer; None without."""
    found = {
        name: _last_message(row, (name,), name == "question") for name in ("question", "answer")
    }
    anew = {name: expression for name, expression in found.items() if expression is not None}
    if not anew:
        return None
    task = "".join(f", {name!r}: {expression}" for name, expression in anew.items())
    command = _with_python(path, f"{{**r{task}}}", _LINES)
    which = " and ".join(map(repr, anew))
    return f"has a list of messages in {which}; take the last one's text: {command}"


def complaint_about_columns(path: Path, row: Mapping[str, Any]) -> str:
    """How to make a task of a row that lacks question, answer or both."""
    lacking = " and ".join(repr(name) for name in ("question", "answer") if name not in row)
    start = f"has no {lacking}; it has {_listed(row) or 'nothing'}"
    question, answer = _question(row), _answer(row)
    if question is None and (name := _list_of_rows(row)):
        rows = f"(s for r in {_LINES} for s in r[{name!r}])"
        return f"{start}; take the rows in {name!r}: {_with_python(path, 'r', rows)}"
    if question is None or answer is None:
        return f"{start}; rename what is asked to question, and what is right to answer"
    task = f"{{**r, 'question': {question}, 'answer': {answer}}}"
    return f"{start}; name them anew: {_with_python(path, task, _LINES)}"


def _question(row: Mapping[str, Any]) -> str | None:
    """An expression for what a row `r` asks."""
    if _is_text(row, "question"):
        return "r['question']"
    if _is_text(row, "instruction") and _is_text(row, "input"):
        return "(r['instruction'] + '\\n\\n' + r['input']).strip()"
    for name in _QUESTIONS:
        if _is_text(row, name):
            return f"r[{name!r}]"
    return _last_message(row, ("question", "prompt", "messages", "conversations"), asks=True)


def _answer(row: Mapping[str, Any]) -> str | None:
    """An expression for what is the right answer to a row `r`."""
    for name in ("answer", *_ANSWERS):
        if _is_text(row, name):
            return f"r[{name!r}]"
    judge = row.get("reward_model")
    if isinstance(judge, dict) and "ground_truth" in judge:
        return "r['reward_model']['ground_truth']"
    return _last_message(row, ("answer", "completion", "messages", "conversations"), asks=False)


def _is_text(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), str | int | float)


def _last_message(row: Mapping[str, Any], names: Sequence[str], asks: bool) -> str | None:
    """An expression for the last message of who asks, or of who answers."""
    for name, (role, text, user, assistant) in product(names, _MESSAGES):
        who = user if asks else assistant
        messages = row[name] if isinstance(row.get(name), list) else []
        if any(isinstance(m, dict) and m.get(role) == who and text in m for m in messages):
            return f"[m[{text!r}] for m in r[{name!r}] if m[{role!r}] == {who!r}][-1]"
    return None


def _list_of_rows(content: Any) -> str | None:
    """The name under which an object has a list of objects."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return name
    return None


def _listed(columns: Iterable[str]) -> str:
    """Their names in one line, as many as one can read."""
    names = [printable(" ".join(name.split()))[:_LONGEST_NAME] for name in columns]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _with_python(path: Path, row: str, rows: str) -> str:
    """A command that prints `row` for every `r` in `rows`, which are read from the file `f`."""
    code = (
        "import csv, json, sys; f = open(sys.argv[1], newline='', encoding='utf-8-sig'); "
        f"[print(json.dumps({row})) for r in {rows}]"
    )
    # As few marks as can be: the code has single quotes.
    quoted = shlex.quote(code) if set('"$`!\\') & set(code) else f'"{code}"'
    return f"python -c {quoted} {_filled('{file} > {jsonl}', path)}"


def _filled(command: str, path: Path) -> str:
    """A command with the file's name, and with that of a new one beside it."""
    stem = path.name.split(".")[0] or path.name
    jsonl = path.with_name(f"{stem}.jsonl")
    if jsonl.exists():
        jsonl = path.with_name(f"{stem}_tasks.jsonl")
    names = {"file": path, "jsonl": jsonl, "directory": path.with_name(f"{stem}_unpacked")}
    return command.format_map({name: shlex.quote(str(file)) for name, file in names.items()})
