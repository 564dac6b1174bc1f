import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tasks.math_tasks import DATA_FILE, Expression, generate_math_tasks, random_expression
from common.tasks.task import is_held_out, select_tasks, split_tasks
from common.tasks.task_file import load_tasks


def independent_value(question: str) -> int:
    """The sum of the signed terms, read from the text."""
    text = question.removeprefix("What is ").removesuffix("?")
    return sum(int(term) for term in re.findall(r"[+-]?\d+", text))


def test_an_expression_by_hand():
    expression = Expression((3, 5, 12), ("+", "-"))
    assert str(expression) == "3+5-12"
    assert expression.partial_results == [3, 8, -4]
    assert expression.num_digits == 2
    task = expression.as_task(7)
    assert (task.question, task.answer) == ("What is 3+5-12?", "-4")
    assert task.columns == {"num_terms": 3, "num_digits": 2}


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 3), st.booleans())
def test_random_expressions_are_as_asked_and_their_answers_right(seed, terms, digits, held_out):
    expression = random_expression(
        random.Random(seed), terms=(2, terms), digits=digits, held_out=held_out
    )
    task = expression.as_task(0)
    assert int(task.answer) == independent_value(task.question)
    assert 2 <= len(expression.terms) <= terms
    assert expression.num_digits == digits
    assert is_held_out(expression.question) == held_out


@pytest.mark.slow
def test_the_data_file_is_what_the_generator_makes():
    assert load_tasks(DATA_FILE) == generate_math_tasks(seed=0)


def test_train_and_held_out_tasks_of_the_data_file_are_disjoint_and_enough():
    tasks = load_tasks(DATA_FILE)
    train, held_out = split_tasks(select_tasks(tasks, max_terms=4, max_digits=1))
    assert not {task.question for task in train} & {task.question for task in held_out}
    assert len(train) >= 5000
    assert len(held_out) >= 512
    assert len({task.question for task in tasks}) == len(tasks)
    assert all(int(task.answer) == independent_value(task.question) for task in tasks)
