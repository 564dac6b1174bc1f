import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rewards.tags import extract_tag, format_approx, format_exact, split_thought
from common.rewards.transcript import Transcript
from common.tasks.task import Task

TASK = Task(0, "What is 1+1?", "2")
PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", "\n"]))


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
        ("<think>a</think><answer>2</answer>", "2"),
        ("a</think><answer>2</answer>", "2"),
        ("<think>not <answer>5</answer></think><answer>2</answer>", "2"),
        ("<think>I write <answer> next</think><answer>2</answer>", "2"),
        ("<think>after </think> I write</think><answer>2</answer>", "2"),
        ("<think>a</think><think>b</think><answer>2</answer>", "2"),
        ("<think>a<answer>2</answer></think>", None),
        ("<think>a<answer>2</answer>", None),
        ("<think>a</think><think>b<answer>2</answer>", None),
        ("<answer>2</answer><think>a</think>", None),
        ("<answer>2</answer><think>a", None),
        ("<think>a</think><answer>2</answer> I used <think> tags", "2"),
        ("<think>a</think><answer>2</answer><think><answer>3</answer>", "2"),
    ],
)
def test_the_answer_is_in_its_tags_after_the_thought(completion, expected):
    assert extract_tag(completion, "answer") == expected


@pytest.mark.parametrize(
    ("completion", "thought", "after"),
    [
        ("<think> a </think> b", " a ", " b"),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("<think>a<think>b</think>c", "a<think>b", "c"),
        ("well <think>a</think>b", "a", "b"),
        ("a</think>b", None, "b"),
        ("<think>a", None, ""),
        ("a</think>b<think>c", None, "b"),
        ("<think>a</think>b<think>c<think>", "a", "b"),
        ("a", None, "a"),
        ("", None, ""),
    ],
)
def test_the_thought_and_what_stands_after_it(completion, thought, after):
    assert split_thought(completion) == (thought, after)
    assert extract_tag(completion, "think") == (thought if thought is None else thought.strip())


@pytest.mark.parametrize(
    ("completion", "exact", "approximate"),
    [
        ("<think> 1+1=2</think><answer> 2</answer>", 1, 1),
        (" <think>a\nb</think>\n<answer>2</answer>\n", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("<think>so <answer>3</answer>?</think><answer>2</answer>", 1, 1),
        ("<think><think>a</think><answer>2</answer>", 1, 1),
        ("<think>a</think>b</think><answer>2</answer>", 1, 1),
        ("Well: <think>a</think><answer>2</answer>", 0, 1),
        ("<think>a</think><answer>2</answer> done", 0, 1),
        ("<think>a</think><answer>2</answer><think>", 0, 1),
        ("<think>a</think>So <answer>2</answer>", 0, 1),
        ("</think><think></think><answer>2</answer>", 0, 1),
        ("<answer>2</answer><think>a</think>", 0, 0.5),
        ("<think>a<answer>2</answer></think>", 0, 0.5),
        ("<think>a<answer>2</answer>", 0, 0.25),
        ("a</think><answer>2</answer>", 0, 0.75),
        ("<answer>2</answer>", 0, 0.5),
        ("<think>a</think><answer>2", 0, 0.75),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0, 0.5),
        ("2", 0, 0),
    ],
)
def test_formats_by_hand(completion, exact, approximate):
    assert format_exact(completion, TASK) == exact
    assert format_approx(completion, TASK) == approximate


def test_a_transcript_knows_its_own_reasoning_tag():
    text = "<why>a <answer>1</answer></why><answer>2</answer>"
    known = Transcript(text, reasoning_tag="why")
    assert format_exact(known, TASK) == 1
    assert extract_tag(known, "answer") == "2"
    assert extract_tag(known, "why") == "a <answer>1</answer>"
    assert format_exact(text, TASK) == 0
    assert extract_tag(text, "answer") is None


@given(PIECES)
def test_exact_form_implies_every_tag(pieces):
    completion = "".join(pieces)
    if format_exact(completion, TASK):
        assert format_approx(completion, TASK) == 1
        assert completion.strip().startswith("<think>")
        assert completion.strip().endswith("</answer>")


@given(PIECES, PIECES)
def test_a_thought_says_nothing_about_the_answer(thought, rest):
    """Whatever is thought, what stands after it reads as it does alone."""
    after = "".join(rest)
    if "think>" in after:
        return
    completion = f"<think>{''.join(thought)}</think>{after}"
    assert extract_tag(completion, "answer") == extract_tag(after, "answer")
    assert format_approx(completion, TASK) == format_approx(after, TASK) + 0.5
