"""What is read of a file, and what is refused by its line."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.printable import unstorable_in
from common.tasks.task_file import load_tasks, number_as_text
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


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the GSM8K file is not beside the checkout")
def test_every_row_of_gsm8k_reads_to_its_number():
    path = SHARED_DATA / "gsm8k_test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    expected = [re.findall(r"#### ([-\d,.]+)", row["answer"])[-1] for row in rows]
    tasks = load_tasks(path)
    assert len(tasks) == 1319
    assert [int(task.answer) for task in tasks] == [int(text.replace(",", "")) for text in expected]


def task_of(tmp_path, row, **column_types):
    (task,) = load_tasks(write(tmp_path / "one.jsonl", row), column_types)
    return task


def complaint_about(path, **column_types):
    with pytest.raises(UserError) as error:
        load_tasks(path, column_types)
    message = str(error.value)
    assert message.startswith(f"--data-path {path}")
    assert "\n" not in message
    message.encode()
    return message.removeprefix(f"--data-path {path}")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("3", "3"),
        ("3.0", "3"),
        ("-0.0", "0"),
        ("1e16", "10000000000000000"),
        ("2.50", "2.5"),
        ("100.0", "100"),
        ("1e-3", "0.001"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("1.5e300", "1.5e300"),
        ("1e-40", "1e-40"),
        ("1E999", "1e999"),
        ("1e9999", "1e9999"),
        ("-2.5e-9999", "-2.5e-9999"),
        ("0e-9999999", "0"),
        ('"1e9999999"', "1e9999999"),
    ],
)
def test_a_json_number_is_read_as_a_person_would_write_it(tmp_path, written, expected):
    row = f'{{"question": {written}, "answer": [{written}, "x"]}}'
    task = task_of(tmp_path, row)
    assert (task.question, task.answer) == (expected, expected)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_is_changed_by_how_it_is_written(number):
    text = number_as_text(Decimal(repr(number)))
    assert Decimal(text) == Decimal(repr(number))
    assert not re.search(r"[E+]|\.$|\.\d*0$", text)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (["3", "3.0"], ("3", "3.0")),
        ([3.0, "three"], ("3", "three")),
        (["He has 3.\n#### 1,003", " 1,003 "], ("1003", "1,003")),
        (["a", "b", "a"], ("a", "b")),
        (["only"], ("only",)),
    ],
)
def test_a_list_is_several_right_answers(tmp_path, answer, expected):
    task = task_of(tmp_path, json.dumps({"question": "q", "answer": answer}))
    assert task.answers == expected
    assert task.answer == expected[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": ', ", line 2: not valid JSON"),
        ('\n\n["a", "b"]', ", line 3: holds a list; write an object"),
        ("null", ", line 1: holds null"),
        ('{"question": " ", "answer": "b"}', """, line 1: its 'question' is " "; write text"""),
        ('{"question": ["a"], "answer": "b"}', ", line 1: its 'question' is a list"),
        ('{"question": "a", "answer": null}', ", line 1: its 'answer' is null; write text or a"),
        ('{"question": "a", "answer": true}', ", line 1: its 'answer' is true"),
        ('{"question": "a", "answer": NaN}', ", line 1: its 'answer' is NaN"),
        ('{"question": "a", "answer": -Infinity}', ", line 1: its 'answer' is -Infinity"),
        ('{"question": "a", "answer": {"b": 1}}', ", line 1: its 'answer' is an object"),
        ('{"question": "a", "answer": []}', ", line 1: its 'answer' is an empty list"),
        ('{"question": "a", "answer": ["b", ["c"]]}', ", line 1: its 'answer' is a list"),
        ('{"question": "a", "answer": ["b", ""]}', """, line 1: its 'answer' is "";"""),
        ('{"question": "a", "answer": ["b", NaN]}', ", line 1: its 'answer' is NaN"),
        (
            '{"question": "a", "answer": 1e' + "9" * 30 + "}",
            "999, with an exponent beyond 9999; write",
        ),
        (
            '{"question": "q", "answer": 1e9999999}',
            "'answer' is 1e9999999, with an exponent beyond",
        ),
        ('{"question": 1e-9999999, "answer": 1}', "'question' is 1e-9999999, with an exponent bey"),
        ('{"question": "q", "answer": ["b", -10e9999]}', "write it in quotes, as text"),
        ('{"question": "a", "answer": ' + "[" * 100_000, ", line 1: nested too deep"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", ", line 1: not valid JSON"),
        ('\r\n{"question": "a\\ud83d", "answer": "b"}', ", line 2: holds half of a surrogate pair"),
        ('{"question": "a", "answer": "b\\udc00"}', ", line 1: holds half of a surrogate pair"),
        ('{"question": "a", "answer": "b", "c": [{"d\\ud800": 1}]}', "holds half of a surrogate"),
        ('{"question": "a\\u0000", "answer": "b"}', r", line 1: holds a NUL, in 'a\x00'; take it"),
        ('{"question": "a\0", "answer": "b"}', ", line 1: not valid JSON"),
        (
            '{"question": "a", "answer": "b", "held_out": "False"}',
            """'held_out' is "False"; write true""",
        ),
        ('{"question": "a", "answer": "b", "held_out": 1}', "'held_out' is 1; write true or false"),
        (
            '{"question": "a", "answer": "b", "num_terms": "2"}',
            """'num_terms' is "2"; write a whole""",
        ),
        ('{"question": "a", "answer": "b", "num_digits": NaN}', "'num_digits' is NaN"),
        ('{"question": "a", "answer": "b", "num_digits": true}', "'num_digits' is true"),
        ("\n \n", ": holds no task"),
    ],
)
def test_what_is_no_task_is_named_with_its_line(tmp_path, text, complaint):
    assert complaint in complaint_about(write(tmp_path / "broken.jsonl", text))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path, line_end, mark):
    row = '{"question": "é", "answer": "1"}'
    good = f"{row}{line_end}{line_end}".encode()
    path = tmp_path / "latin.jsonl"
    path.write_bytes(mark + good + row.encode("latin-1"))
    assert complaint_about(path).startswith(", line 3: not UTF-8 (byte 0xe9); save the file")


def test_a_whole_pair_of_surrogates_is_one_character(tmp_path):
    task = task_of(tmp_path, '{"question": "\\ud83d\\ude00", "answer": "1"}')
    assert task.question == "😀"


def test_columns_that_nobody_reads_may_hold_anything(tmp_path):
    task = task_of(tmp_path, '{"question": "q", "answer": "1", "document": 7, "score": NaN}')
    assert task.columns["document"] == 7


def test_columns_of_an_experiment_have_types_and_null_is_no_value(tmp_path):
    row = '{"question": "q", "answer": "1", "document": %s, "held_out": null, "num_terms": 2.0}'
    assert task_of(tmp_path, row % "null", document=str).columns == {"num_terms": 2.0}
    assert task_of(tmp_path, row % '"a.md"', document=str).columns["document"] == "a.md"
    path = write(tmp_path / "typed.jsonl", "\n" + row % 7)
    assert (
        complaint_about(path, document=str) == ", line 2: its 'document' is 7; write text in quotes"
    )


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "no such file" in complaint_about(tmp_path / "missing.jsonl")
    assert "is a directory; give a file" in complaint_about(tmp_path)


COLUMNS = st.sampled_from(
    (
        "question",
        "answer",
        "problem",
        "solution",
        "messages",
        "prompt",
        "role",
        "content",
        "held_out",
    )
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(COLUMNS | st.text(max_size=9), part),
    max_leaves=9,
)
ROW = st.dictionaries(
    COLUMNS | st.text(max_size=9), JSON_VALUES, max_size=5
) | st.fixed_dictionaries({"question": st.text(min_size=1), "answer": JSON_VALUES})
LINES = st.lists(st.builds(json.dumps, ROW) | st.text(max_size=20), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.builds("\n".join, LINES).map(lambda text: text.encode("utf-8")))
def test_any_file_is_tasks_or_one_line(tmp_path, content):
    path = tmp_path / "any.jsonl"
    path.write_bytes(content)
    tasks, message = [], "one line"
    try:
        tasks = load_tasks(path)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    message.encode()
    for task in tasks:
        assert all(answer.strip() for answer in task.answers)
        assert unstorable_in([task.question, *task.answers]) is None
        assert isinstance(task.columns.get("held_out", True), bool)
