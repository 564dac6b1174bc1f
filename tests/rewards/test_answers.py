from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rewards.answers import answer_check, is_correct, number_check, parse_number
from common.tasks.task import Task


def answered(text: str) -> str:
    return f"<think>x</think><answer> {text}</answer>"


@pytest.mark.parametrize(
    ("answer", "oracle", "score"),
    [
        ("6", "6", 1),
        ("The result is 6.", "6", 0.5),
        ("6 apples", "6", 0.5),
        ("16", "6", 0),
        ("6.5", "6", 0),
        ("-6", "6", 0),
        ("6 or 7", "7", 0.5),
        ("Paris", "Paris", 1),
        ("in Paris, France", "Paris", 0.5),
        ("Parisian", "Paris", 0),
        ("", "6", 0),
    ],
)
def test_answer_check_by_hand(answer, oracle, score):
    assert answer_check(answered(answer), Task(0, "?", oracle)) == score


def test_an_answer_outside_its_tags_does_not_count():
    task = Task(0, "?", "6")
    for completion in ("6", "<answer>6", "<answer>5</answer><answer>6</answer>"):
        assert answer_check(completion, task) == 0
        assert number_check(completion, task) == 0
        assert not is_correct(completion, task)


@pytest.mark.parametrize("answer", ["1,234", "1234", "1234.0", " 1234.", "+1234", "$1,234.00"])
def test_equal_numbers_count_however_they_are_written(answer):
    task = Task(0, "?", "1234")
    assert number_check(answered(answer), task) == 1
    assert is_correct(answered(answer), task)


@pytest.mark.parametrize(
    "answer", ["12,34", "1234 apples", "", "1e3", "nan", "inf", "1234.5", "-1234", "١٢٣٤", "."]
)
def test_other_text_is_not_that_number(answer):
    assert number_check(answered(answer), Task(0, "?", "1234")) == 0


def test_an_oracle_that_is_no_number_equals_no_number():
    assert number_check(answered("Paris"), Task(0, "?", "Paris")) == 0
    assert is_correct(answered("Paris"), Task(0, "?", "Paris"))


@given(st.integers(-(10**12), 10**12))
def test_numbers_survive_thousands_separators(value):
    assert parse_number(f"{value:,}") == value == parse_number(str(value))


@given(st.text(max_size=200))
def test_parsing_any_text_gives_a_finite_number_or_none(text):
    number = parse_number(text)
    assert number is None or (isinstance(number, Decimal) and number.is_finite())


def test_a_huge_number_is_refused_quickly():
    assert parse_number("9" * 1_000_000) is None
