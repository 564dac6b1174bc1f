"""Which tasks a run takes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from common.tasks.task import Task
from common.training.task_order import drawn

TASKS = [Task(number, f"What is {number}+1?", str(number + 1)) for number in range(40)]


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


def test_every_task_is_as_likely_whatever_its_place_in_the_file():
    """Of 400 seeds each takes 10 of 40: a task is taken 100 times, give or take 5 deviations of
    sqrt(400 / 4 * 3 / 4) = 8.7."""
    counts = Counter(number for seed in range(400) for number in ids(drawn(TASKS, 10, seed)))
    assert all(100 - 44 < counts[number] < 100 + 44 for number in range(40))
