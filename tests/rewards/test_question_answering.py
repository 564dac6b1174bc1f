"""Scores worked out by hand."""

import pytest

from common.rewards.question_answering import answer_f1, is_exact_match, normalised
from common.tasks.task import Task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Black Sea.", "black sea"),
        ("  an  Apple a day ", "apple day"),
        ("Halley's comet", "halleys comet"),
        ("theatre", "theatre"),
        ("1,234", "1234"),
        ("born (in 1,234.50)", "born in 1234.5"),
        ("-5 a day", "-5 day"),
        ("$18 at 50%", "18 at 50"),
        ("18kg", "18kg"),
        ("...", ""),
    ],
)
def test_normalising(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "exact", "f1"),
    [
        ("the Black Sea", True, 1.0),
        ("Black", False, 2 / 3),
        ("the deep black sea", False, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("sea sea", False, 0.5),
        ("Baltic", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_scores(answer, exact, f1):
    task = Task(0, "", "Black Sea")
    completion = f"<think> so</think><answer> {answer}</answer>"
    assert is_exact_match(completion, task) == exact
    assert answer_f1(completion, task) == pytest.approx(f1)


def test_without_an_answer_in_tags_there_is_no_score():
    for completion in ("Black Sea", "<answer>Black Sea", "<answer>x</answer><answer>y</answer>"):
        assert not is_exact_match(completion, Task(0, "", "Black Sea"))
        assert answer_f1(completion, Task(0, "", "Black Sea")) == 0


@pytest.mark.parametrize(
    ("answer", "oracle", "exact", "f1"),
    [
        ("-5", "5", False, 0.0),
        ("1.5", "15", False, 0.0),
        ("1,234.0", "1234", True, 1.0),
        ("in 1,234", "1234", False, 2 / 3),
        ("50", "50%", False, 1.0),
    ],
)
def test_numbers_are_compared_as_numbers(answer, oracle, exact, f1):
    completion, task = f"<answer>{answer}</answer>", Task(0, "", oracle)
    assert is_exact_match(completion, task) == exact
    assert answer_f1(completion, task) == pytest.approx(f1)


def test_the_best_of_several_right_answers_counts():
    task = Task(0, "", "Big Apple", alternatives=("New York City",))
    assert is_exact_match("<answer>New York City</answer>", task)
    assert answer_f1("<answer>New York</answer>", task) == pytest.approx(0.8)
    assert answer_f1("<answer>Apple</answer>", task) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "oracle", "exact"),
    [
        ("A", "A", True),
        ("(a)", "A", True),
        ("B", "A", False),
        ("", "A", False),
        ("the", "A", False),
        ("...", "A", False),
        ("+", "+", True),
        ("-", "+", False),
        ("5", "5-", False),
        ("5-", "5-", True),
        ("#5", "5", True),
        ("[5]", "5", True),
    ],
)
def test_letters_articles_and_signs_are_themselves_alone(answer, oracle, exact):
    completion, task = f"<answer>{answer}</answer>", Task(0, "", oracle)
    assert is_exact_match(completion, task) == exact
    assert answer_f1(completion, task) == float(exact)
