"""The calculator's tasks: right, of the promised size, and as their file has them."""

import pytest

from common.tasks.calculator_tasks import DATA_FILE, Calculation, generate_calculator_tasks
from common.tasks.task import split_tasks
from common.tasks.task_file import load_tasks
from common.tools.calculator import calculate


@pytest.mark.slow
def test_the_data_file_is_what_the_generator_makes():
    made, read = generate_calculator_tasks(seed=0), load_tasks(DATA_FILE)
    assert [(t.question, t.answer, t.columns) for t in read] == [
        (t.question, t.answer, t.columns) for t in made
    ]


def test_every_task_is_distinct_right_and_of_two_to_four_digits():
    tasks = load_tasks(DATA_FILE)
    assert len({task.question for task in tasks}) == len(tasks)
    for task in tasks:
        text = task.question.removeprefix("What is ").removeprefix("How much is ")
        text = text.rstrip("?").replace("plus", "+").replace("times", "*")
        assert calculate(text) == task.answer
        numbers = [word for word in text.split() if word.isdigit()]
        assert 2 <= len(numbers) <= 4
        assert all(2 <= len(number) <= 4 for number in numbers)
    train, held_out = split_tasks(tasks)
    assert len(train) == 3600
    assert len(held_out) == 600


def test_a_calculation_is_asked_for_in_signs_or_in_words():
    assert Calculation((12, 345), "*", in_words=False).question == "What is 12 * 345?"
    words = Calculation((12, 345, 67), "+", in_words=True)
    assert words.question == "How much is 12 plus 345 plus 67?"
    assert words.value == 424
    assert words.as_task(3).columns == {"num_terms": 3, "num_digits": 3}
