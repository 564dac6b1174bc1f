"""Which tasks a run takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tasks.task import Task
from common.training.task_order import drawn

TASKS = [Task(number, f"What is {number}+1?", str(number + 1)) for number in range(40)]


# As where an environment has one question: all else is in the other columns.
ONE_QUESTION = [Task(n, "Which one?", str(n % 2), {"a": n, "b": [n]}) for n in range(40)]
TWO_QUESTIONS = [Task(n, f"Which {n // 20}?", str(n)) for n in range(40)]
TWINS = [Task(n, f"What is {n // 2}?", str(n // 2)) for n in range(40)]


def ids(tasks: list[Task]) -> list[int]:
    return [task.task_id for task in tasks]


@given(st.permutations(TASKS[:12]), st.integers(0, 12), st.integers(0, 2**63 - 1))
def test_what_is_drawn_depends_on_seed_and_questions_alone(tasks, count, seed):
    expected = set(ids(drawn(TASKS[:12], count, seed)))
    found = ids(drawn(tasks, count, seed))
    assert set(found) == expected
    assert len(found) == count
    assert found == [number for number in ids(tasks) if number in expected]
    assert expected <= set(ids(drawn(tasks, count + 1, seed)))


def test_without_a_count_all_tasks_are_taken():
    assert drawn(TASKS, None, 1) == drawn(TASKS, 100, 1) == TASKS


@pytest.mark.parametrize("tasks", [TASKS, ONE_QUESTION, TWO_QUESTIONS, TWINS])
def test_every_task_is_as_likely_whatever_its_place_in_the_file(tasks):
    """Of 400 seeds each takes 10 of 40: a task is taken 100 times, give or take 5 deviations of
    sqrt(400 / 4 * 3 / 4) = 8.7."""
    counts = Counter(number for seed in range(400) for number in ids(drawn(tasks, 10, seed)))
    assert all(100 - 44 < counts[number] < 100 + 44 for number in range(40))


@pytest.mark.parametrize("tasks", [ONE_QUESTION, TWO_QUESTIONS])
def test_of_equal_questions_no_place_in_the_file_decides(tasks):
    """Lines numbered anew from the last to the first, and columns the other way round."""
    anew = [
        replace(task, task_id=number, columns=dict(reversed(task.columns.items())))
        for number, task in enumerate(reversed(tasks))
    ]
    for seed in range(5):
        expected = [(t.answer, t.columns.get("a")) for t in drawn(tasks, 10, seed)]
        assert [(t.answer, t.columns.get("a")) for t in drawn(anew, 10, seed)][::-1] == expected


def test_a_draw_among_few_questions_takes_of_each():
    """10 of 20 and 20: 5 of either, give or take 3.5 deviations of sqrt(10 / 4 * 30 / 39) = 1.4."""
    of_the_first = [sum(n < 20 for n in ids(drawn(TWO_QUESTIONS, 10, seed))) for seed in range(40)]
    assert all(0 < count < 10 for count in of_the_first)
    assert 4 < sum(of_the_first) / 40 < 6


def test_copies_of_a_row_are_drawn_apart():
    """Among 10 of 40 that are 20 pairs, about 10 * 9 / 39 / 2 = 1.2 whole pairs."""
    pairs = [10 - len({t.question for t in drawn(TWINS, 10, seed)}) for seed in range(40)]
    assert 0.5 < sum(pairs) / 40 < 2


def test_distinct_questions_are_drawn_by_question_alone():
    """The draw of 3 by seed 1, sorted by BLAKE2 of the question keyed by the seed."""
    hashes = {n: blake2b(f"What is {n}+1?".encode(), key=b"1").hexdigest() for n in range(40)}
    expected = sorted(sorted(hashes, key=hashes.__getitem__)[:3])
    changed = [replace(task, answer="x", columns={"a": 1}) for task in TASKS]
    assert ids(drawn(TASKS, 3, 1)) == ids(drawn(changed, 3, 1)) == expected
