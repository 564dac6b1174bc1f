"""What is no JSONL of questions and answers is told what it is, and the command that it is told
makes tasks of it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from common.errors import UserError
from common.tasks.task_file import load_tasks

ROWS = [{"question": "What is 2+1?", "answer": "3"}, {"question": 'A "," b; é\n?', "answer": "4"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(delimiter):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def refused(path):
    with pytest.raises(UserError) as error:
        load_tasks(path)
    message = str(error.value)
    assert message.startswith(f"--data-path {path}")
    assert "\n" not in message
    return message


def obeyed(message, path):
    """The tasks of what the command in a complaint makes."""
    command = message.rpartition(": ")[2]
    for unpack in ("python -c", "gunzip", "iconv", "bunzip2", "xz", "zstd", "jq"):
        if f": {unpack} " in message:
            command = message[message.index(f": {unpack} ") + 2 :]
    if shutil.which(command.split()[0]) is None and not command.startswith("python"):
        pytest.skip(f"there is no {command.split()[0]}")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, env=environment, cwd=path.parent)
    made = load_tasks(Path(shlex.split(command)[-1]))
    return [(task.question, task.answer) for task in made]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("rows.jsonl.gz", gzip.compress(JSONL.encode()), "is compressed by gzip"),
        ("no suffix", gzip.compress(JSONL.encode()), "is compressed by gzip"),
        ("rows.jsonl.bz2", bz2.compress(JSONL.encode()), "is compressed by bzip2"),
        ("rows.jsonl.xz", lzma.compress(JSONL.encode()), "is compressed by xz"),
        ("rows.jsonl", JSONL.encode("utf-16"), "is UTF-16, not UTF-8"),
        ("rows.json", json.dumps(ROWS).encode(), "is a JSON array"),
        ("rows.jsonl", json.dumps(ROWS, indent=2).encode(), "is a JSON array"),
        ("it's.json", ("\r\n" + json.dumps(ROWS, indent=2)).encode("utf-8-sig"), "is a JSON array"),
        ("$a`b.json", json.dumps(ROWS).encode(), "is a JSON array"),
        ("rows.csv", table(","), "is CSV with the columns question, answer"),
        ("rows.txt", table("\t"), "is TSV with the columns question, answer"),
        ("rows.csv", table(";"), "is CSV with semicolons with the columns question, answer"),
        ("rows.csv", b"\xef\xbb\xbf" + table(","), "is CSV with the columns question, answer"),
        (
            "rows.json",
            json.dumps({"rows": ROWS}, indent=1).encode(),
            "is one JSON object with rows",
        ),
        ("rows.json", json.dumps({"v": 1, "rows": ROWS}).encode(), "it has v, rows; take the rows"),
        ("rows.json", "\n".join(json.dumps(r, indent=1) for r in ROWS).encode(), "several lines"),
        ("rows.json", " ".join(map(json.dumps, ROWS)).encode(), "several objects in one line"),
        (
            "rows.jsonl",
            "".join(map(json.dumps, ROWS)).encode() + b"\n",
            "several objects in one line",
        ),
        ("rows.jsonl", ",\n".join(map(json.dumps, ROWS)).encode(), "commas between objects"),
        (
            "rows.jsonl",
            ("\r\n".join(f"{json.dumps(r)} ," for r in ROWS) + "\r\n").encode("utf-8-sig"),
            "commas between objects",
        ),
        (
            "rows.jsonl",
            ",\n".join(json.dumps(r, indent=1) for r in ROWS).encode(),
            "commas between objects",
        ),
        (
            "rows.json",
            "\n".join(json.dumps({**r, "parts": [{}]}, indent=1) for r in ROWS).encode(),
            "objects over several lines",
        ),
    ],
)
def test_the_command_makes_tasks_of_the_file(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert what in message
    assert obeyed(message, path) == [(row["question"], row["answer"]) for row in ROWS]
    assert path.read_bytes() == content


def chat(*pairs, role="role", text="content"):
    return [{role: who, text: said} for who, said in pairs]


@pytest.mark.parametrize(
    ("row", "what", "expected"),
    [
        (
            {"problem": "q", "solution": "a"},
            "no 'question' and 'answer'; it has problem, solution",
            "a",
        ),
        ({"prompt": "q", "completion": 3.5}, "it has prompt, completion", "3.5"),
        ({"instruction": "q", "output": "#### 1,000"}, "it has instruction, output", "1000"),
        ({"instruction": "q", "input": "", "output": "a"}, "instruction, input, output", "a"),
        ({"question": "q", "final_answer": "a"}, "has no 'answer'; it has question", "a"),
        (
            {"messages": chat(("system", "s"), ("user", "q"), ("assistant", "a"))},
            "it has messages",
            "a",
        ),
        (
            {"prompt": chat(("system", "s"), ("user", "q")), "answer": 7},
            "it has prompt, answer",
            "7",
        ),
        (
            {"prompt": chat(("user", "q")), "reward_model": {"ground_truth": "a", "style": "rule"}},
            "it has prompt, reward_model",
            "a",
        ),
        (
            {"prompt": chat(("user", "q")), "completion": chat(("assistant", "a"))},
            "it has prompt, completion",
            "a",
        ),
        (
            {"conversations": chat(("human", "q"), ("gpt", "a"), role="from", text="value")},
            "it has conversations",
            "a",
        ),
    ],
)
def test_the_command_names_columns_anew(tmp_path, row, what, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    message = refused(path)
    assert ", line 2: has no" in message
    assert what in message
    assert obeyed(message, path) == [("q", expected)]


@pytest.mark.parametrize(
    ("row", "which"),
    [
        ({"question": chat(("system", "s"), ("user", "q")), "answer": 7}, "'question'"),
        ({"question": "q", "answer": chat(("assistant", "7"))}, "'answer'"),
        (
            {
                "question": chat(("human", "q"), role="from", text="value"),
                "answer": chat(("assistant", "6"), ("assistant", "7")),
            },
            "'question' and 'answer'",
        ),
    ],
)
def test_messages_under_the_right_names_are_converted_too(tmp_path, row, which):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({**row, "held_out": True}) + "\n")
    message = refused(path)
    assert f", line 2: has a list of messages in {which}; take the last one's text: " in message
    assert obeyed(message, path) == [("q", "7")]
    (task,) = load_tasks(tmp_path / "rows_tasks.jsonl")
    assert task.columns == {"held_out": True}


def test_a_question_of_messages_without_an_answer_is_named_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": chat(("user", "q")), "solution": "a"}))
    assert obeyed(refused(path), path) == [("q", "a")]


def test_columns_that_nobody_knows_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"frage": "q", "antwort": "a"}')
    assert "it has frage, antwort; rename what is asked to question" in refused(path)
    path.write_text(json.dumps({"a\n\x1b" + "b" * 99: 1, **dict.fromkeys("0123456789" * 2)}))
    assert f"it has a �{'b' * 37}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; rename" in refused(path)
    path.write_text(json.dumps(dict.fromkeys(map(str, range(22)))))
    assert "17, 18, 19 and 2 more; rename" in refused(path)


def test_archives_are_to_be_unpacked(tmp_path):
    (tmp_path / "in.jsonl").write_text(JSONL)
    packed, tarred = tmp_path / "a.zip", tmp_path / "b.tar"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(tmp_path / "in.jsonl", "in.jsonl")
    with tarfile.open(tarred, "w") as archive:
        archive.add(tmp_path / "in.jsonl", "in.jsonl")
    for path, tool in ((packed, "unzip"), (tarred, "mkdir")):
        command = refused(path).rpartition("it: ")[2].partition(", and give")[0]
        assert command.startswith(tool)
        if shutil.which(tool):
            subprocess.run(command, shell=True, check=True, capture_output=True)
            assert len(load_tasks(tmp_path / f"{path.stem}_unpacked" / "in.jsonl")) == 2


def test_columnar_files_and_directories_say_what_they_are(tmp_path):
    for start, what in (
        (b"PAR1\x15", "is Parquet; convert it: pip install pandas pyarrow && python -c"),
        (b"ARROW1\0\0", "is Arrow; convert it: "),
        (
            b"\xff\xff\xff\xff\x10",
            "is an Arrow stream; convert it: ",
        ),
    ):
        (tmp_path / "x.jsonl").write_bytes(start)
        message = refused(tmp_path / "x.jsonl")
        assert what in message
        assert message.endswith(f"{tmp_path}/x.jsonl {tmp_path}/x_tasks.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    assert f"such as b.jsonl, or all: cat {tmp_path}/*.jsonl > " in refused(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "data-00000-of-00001.arrow")
    assert "is a directory; give a file, such as data-00000-of-00001.arrow" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["hello, world", "hello\nworld, peace", "---\na: b\n", '"a"', "{", '{"a": 1}]']
)
def test_what_nobody_can_tell_is_no_json(tmp_path, text):
    path = tmp_path / "rows.txt"
    path.write_text(text)
    assert ", line 1: " in refused(path)
