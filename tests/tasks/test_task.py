import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tasks.task import Task, final_answer, is_held_out, select_tasks, split_tasks


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
