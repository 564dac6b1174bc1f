import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rewards.tags import extract_tag, format_approx, format_exact
from common.tasks.task import Task

TASK = Task(0, "What is 1+1?", "2")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer> 2</answer>", "2"),
        ("so <answer>two words </answer>!", "two words"),
        ("<answer></answer>", ""),
        ("<answer>2", None),
        ("2</answer>", None),
        ("</answer>2<answer>", None),
        ("<answer>1</answer><answer>2</answer>", None),
        ("<answer><answer>2</answer>", None),
        ("", None),
    ],
)
def test_extract_tag(completion, expected):
    assert extract_tag(completion, "answer") == expected


@pytest.mark.parametrize(
    ("completion", "exact", "approximate"),
    [
        ("<think> 1+1=2</think><answer> 2</answer>", 1, 1),
        (" <think>a\nb</think>\n<answer>2</answer>\n", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("Well: <think>a</think><answer>2</answer>", 0, 1),
        ("<think>a</think><answer>2</answer> done", 0, 1),
        ("<answer>2</answer><think>a</think>", 0, 1),
        ("<think>a<answer>2</answer></think>", 0, 1),
        ("<answer>2</answer>", 0, 0.5),
        ("<think>a</think><answer>2", 0, 0.75),
        ("<think><think>a</think><answer>2</answer>", 0, 0.75),
        ("2", 0, 0),
    ],
)
def test_formats_by_hand(completion, exact, approximate):
    assert format_exact(completion, TASK) == exact
    assert format_approx(completion, TASK) == approximate


def test_another_reasoning_tag():
    completion = "<why>a</why><answer>2</answer>"
    assert format_exact(completion, TASK, reasoning_tag="why") == 1
    assert format_exact(completion, TASK) == 0


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", "\n"])))
def test_exact_form_implies_every_tag_once(pieces):
    completion = "".join(pieces)
    if format_exact(completion, TASK):
        assert format_approx(completion, TASK) == 1
        assert completion.strip().startswith("<think>")
        assert completion.strip().endswith("</answer>")
