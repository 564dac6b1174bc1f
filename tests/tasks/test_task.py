import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.tasks.task import (
    Task,
    final_answer,
    is_held_out,
    load_tasks,
    select_tasks,
    split_tasks,
)
from tests.helpers import SHARED_DATA

ROWS = [
    {"question": "What is 2+2?", "answer": "4", "num_terms": 2, "source": "hand"},
    {"question": "Trees?", "answer": "He plants 1,200 trees.\n#### 1,234"},
    {"question": "Ganz großes Haus?", "answer": 7},
]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_and_byte_order_mark_reads_the_same(tmp_path, encoding, line_end):
    text = line_end.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    tasks = load_tasks(write(tmp_path / "tasks.jsonl", text + line_end, encoding))
    assert [task.question for task in tasks] == [row["question"] for row in ROWS]
    assert [task.answer for task in tasks] == ["4", "1234", "7"]
    assert tasks[0].columns == {"num_terms": 2, "source": "hand"}


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    text = '{"question": "one\u2028two", "answer": "1"}\n'
    assert load_tasks(write(tmp_path / "t.jsonl", text))[0].question == "one\u2028two"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("#### 5", "5"),
        ("so it is 3\n#### 1,234,567", "1234567"),
        ("#### -12.50", "-12.50"),
        ("#### 1,2", "1,2"),
        ("Paris, France", "Paris, France"),
        ("1,234", "1,234"),
        ("first #### 3\nthen\n#### 4 \n", "4"),
    ],
)
def test_the_final_answer_of_gsm8k_and_of_plain_rows(answer, expected):
    assert final_answer(answer) == expected


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the GSM8K file is not beside the checkout")
def test_every_row_of_gsm8k_reads_to_its_number():
    path = SHARED_DATA / "gsm8k_test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    expected = [re.findall(r"#### ([-\d,.]+)", row["answer"])[-1] for row in rows]
    tasks = load_tasks(path)
    assert len(tasks) == 1319
    assert [int(task.answer) for task in tasks] == [int(text.replace(",", "")) for text in expected]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": ', "line 2: not valid JSON"),
        ('\n\n["a", "b"]', "line 3: holds list"),
        ('{"question": "a"}', "line 1: has no 'answer'"),
        ('{"question": " ", "answer": "b"}', "line 1: has no 'question'"),
        ('{"question": "a", "answer": null}', "line 1: has no 'answer'"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
        ("\n \n", "holds no task"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, complaint):
    path = write(tmp_path / "broken.jsonl", text)
    with pytest.raises(UserError, match=re.escape(complaint)) as error:
        load_tasks(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_tasks(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="is a directory"):
        load_tasks(tmp_path)
    with pytest.raises(UserError, match="not UTF-8"):
        load_tasks(write(tmp_path / "latin.jsonl", '{"question": "é"}', "latin-1"))


@given(st.lists(st.text(min_size=1), unique=True, max_size=50))
def test_the_split_is_a_partition_that_no_order_changes(questions):
    tasks = [Task(number, question, "0") for number, question in enumerate(questions)]
    train, held_out = split_tasks(tasks)
    assert sorted(task.task_id for task in train + held_out) == list(range(len(tasks)))
    assert all(is_held_out(task.question) for task in held_out)
    assert not any(is_held_out(task.question) for task in train)
    again, _ = split_tasks(reversed(tasks))
    assert {task.task_id for task in again} == {task.task_id for task in train}


def test_selection_keeps_tasks_without_the_column():
    tasks = [
        Task(0, "a", "1", {"num_terms": 2, "num_digits": 1}),
        Task(1, "b", "1", {"num_terms": 5, "num_digits": 1}),
        Task(2, "c", "1", {"num_terms": 2, "num_digits": 3}),
        Task(3, "d", "1"),
    ]
    assert [task.task_id for task in select_tasks(tasks, max_terms=4)] == [0, 2, 3]
    assert [task.task_id for task in select_tasks(tasks, 4, 1)] == [0, 3]
