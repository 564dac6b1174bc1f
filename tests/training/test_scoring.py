"""What judges a run: one notion of right, the names of rewards, and what is said of mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.logger.metrics import TAKEN_BY_METRICS, reward_metric_names
from common.rewards.answers import is_correct
from common.rewards.own_function import OwnFunction
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.training.scoring import load_judge
from tests.helpers import REPOSITORY, load_script

TASK = Task(0, "?", "2")
TAGGED, BARE, WRONG = (Transcript(t) for t in ("<answer>2</answer>", "It is 2", "It is 3"))

OWN = """
asked = []

def ends(completion, task):
    asked.append(completion)
    return completion.endswith(task.answer)

def graded(completion, task):
    return 0.6 if completion.endswith(task.answer) else 0.2
"""


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with a module of rewards, where the user is."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(functions=None, notion=is_correct, **flags):
    return load_judge(Config(**flags), TASK, print, functions, notion)


def test_the_default_is_the_experiments_own_notion():
    tagged, bare = load()([TAGGED, BARE], [TASK] * 2)
    assert (tagged.correct, bare.correct) == (True, False)
    longer = load(notion=lambda completion, task: len(completion) > 7)
    assert [j.correct for j in longer([BARE, TAGGED], [TASK] * 2)] == [False, True]


def test_a_function_of_the_users_is_what_is_right_and_what_the_default_reward_asks(own):
    judge = load(correct="mine.py:ends")
    tagged, bare = judge([TAGGED, BARE], [TASK] * 2)
    assert (tagged.correct, bare.correct) == (False, True)
    assert (tagged.scores["answer_check"], bare.scores["answer_check"]) == (0.0, 1.0)
    assert (tagged.scores["number_check"], bare.scores["number_check"]) == (1.0, 0.0)
    assert bare.reward == 1.0
    assert not judge.right_in_tags
    function = judge.notion.function
    assert isinstance(function, OwnFunction)
    asked = function.function.__globals__["asked"]
    assert sorted(asked) == sorted([Transcript(""), TAGGED, BARE])


@pytest.mark.parametrize("experiment", ["multiturn_tool_calling", "multiturn_qa"])
def test_it_is_what_the_experiments_with_tools_reward_as_well(own, experiment):
    script = load_script(f"experiment_{experiment}")
    if experiment == "multiturn_qa":
        functions = script.make_rewards(script.load_retriever(script.Config(passage_tokens=160)))
    else:
        functions = script.TOOL_REWARDS
    weights = script.Config().reward_weights
    judge = load(functions, correct="mine.py:ends", reward_weights=weights)
    (bare,) = judge([BARE], [TASK])
    assert (bare.correct, bare.scores["answer_correct"], bare.reward) == (True, 1.0, 1.0)


def test_a_reward_can_be_what_is_right(own):
    flags = {"reward": ("mine.py:graded",), "correct": "graded"}
    assert [j.correct for j in load(**flags)([BARE, WRONG], [TASK] * 2)] == [False, False]
    judge = load(**flags, correct_threshold=0.6)
    assert [j.correct for j in judge([BARE, WRONG], [TASK] * 2)] == [True, False]
    assert [j.scores["answer_check"] for j in judge([BARE, WRONG], [TASK] * 2)] == [1.0, 0.0]
    assert judge.looking_for_tags == ["format_exact"]
    partial = load(correct="answer_check", correct_threshold=0.5)
    (about,) = partial([Transcript("<answer>about 2</answer>")], [TASK])
    assert (about.correct, about.scores["answer_check"]) == (True, 0.5)
    assert partial.right_in_tags


def test_a_rubric_can_be_what_is_right(own):
    (own / "rubric.yaml").write_text(
        "criteria: [{name: long, check: length, parameters: {least: 8}}]"
    )
    judge = load(rubric_file=own / "rubric.yaml", correct="rubric")
    judgements = judge([BARE, TAGGED], [TASK] * 2)
    assert [j.correct for j in judgements] == [False, True]
    assert [j.scores["answer_check"] for j in judgements] == [0.0, 1.0]
    assert not judge.right_in_tags


def test_what_is_right_is_what_the_default_reward_asks_whoever_says_it(own):
    """Partial credit of `answer_check` is gone, a score is above the threshold or not."""
    about, bare = Transcript("<answer>about 2</answer>"), Transcript("so 2")
    for flags in (
        {"correct": "last_number"},
        {"correct": "mine.py:graded", "correct_threshold": 0.5},
        {"correct": "graded", "correct_threshold": 0.5, "reward": ("mine.py:graded",)},
    ):
        judgements = load(**flags)([bare, WRONG, about], [TASK] * 3)
        right = [flags["correct"] == "last_number"]
        assert [j.correct for j in judgements] == [True, False, *right]
        assert [j.scores["answer_check"] for j in judgements] == [1.0, 0.0, *map(float, right)]
        assert judgements[0].reward == (1.6 if "reward" in flags else 1.0)


def test_a_criterion_asks_what_is_right_unless_its_rubric_says_it(own):
    (own / "rubric.yaml").write_text("criteria: [{name: a, function: answer_check}]")
    flags = {"rubric_file": own / "rubric.yaml"}
    about = Transcript("<answer>about 2</answer>")
    (judgement,) = load(**flags, correct="mine.py:ends")([BARE], [TASK])
    assert judgement.scores["rubric"] == 1.0
    (judgement,) = load(**flags, correct="rubric", correct_threshold=0.5)([about], [TASK])
    assert (judgement.scores["rubric"], judgement.scores["answer_check"]) == (0.5, 1.0)
    (own / "rubric.yaml").write_text(
        "criteria: [{name: a, function: answer_check, parameters: {x: 1}}]"
    )
    with pytest.raises(UserError, match="criterion a, parameters: 'x' is unknown; there are none"):
        load(**flags, correct="mine.py:ends")


def test_a_notion_that_there_is_not_is_named_with_those_that_there_are(own):
    with pytest.raises(UserError) as caught:
        load(correct="ends", reward=("mine.py:graded",))
    assert str(caught.value).startswith(
        "--correct ends: there is no reward of that name; there are answer_check, number_check, "
    )
    assert "format_approx, graded, or module:function or file.py:function" in str(caught.value)
    complaint = "--correct-threshold 0.5: a threshold of nothing; add --correct with the function"
    with pytest.raises(UserError, match=f"^{complaint} or reward that it is of$"):
        load(correct_threshold=0.5)
    with pytest.raises(UserError, match="has no function 'nope'"):
        load(correct="mine.py:nope")


@pytest.mark.parametrize(
    "name",
    [
        *("reward", "completion", "step", "question", "answer", "correct", "split", "reasoning"),
        *("conversation", "calls", "failure", "ground_truth", "advantage", "stop_reason"),
        *("completion_tokens", "total", "returns", "turns"),
    ],
)
def test_names_that_are_taken_are_refused(own, name):
    (own / "mine.py").write_text(f"def {name}(completion, task):\n    return 1.0\n")
    with pytest.raises(UserError) as caught:
        load(reward=(f"mine.py:{name}",))
    kind = "a metric" if name in ("total", "returns", "turns") else "a column of the samples"
    assert str(caught.value) == (
        f"--reward mine.py:{name}: {kind} is called {name}; rename your function"
    )


def test_two_of_one_name_are_refused(own):
    (own / "others.py").write_text(OWN)
    with pytest.raises(UserError) as caught:
        load(reward=("mine.py:ends", "others.py:ends"))
    assert str(caught.value).startswith("--reward others.py:ends: there is another reward called")
    (own / "more.py").write_text("def score(c, t):\n    return 1\n\nscore_recent = score\n")
    with pytest.raises(UserError, match="--reward score_recent: its metric rewards/score_recent_"):
        load(reward=("more.py:score", "more.py:score_recent"))


def test_the_names_that_metrics_take_are_those_that_metrics_have():
    """Every metric of docs/metrics.md that would be a reward's, if there were one of that name."""
    page = (REPOSITORY / "docs/metrics.md").read_text(encoding="utf-8")
    metrics = set(re.findall(r"^\| `([\w/]+)` \|", page, flags=re.MULTILINE))
    words = {m.rpartition("_")[0].rpartition("/")[2] for m in metrics}
    assert {w for w in words if metrics & set(reward_metric_names(w))} == TAKEN_BY_METRICS


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("(completion, task): return float('nan')", "gave nan; it must give a finite number"),
        ("(completion, task): raise ValueError('\\ud83d')", "raised ValueError: \ufffd ("),
        ("(completion, task): import time; time.sleep(9)", "no score within 0.2 s; raise --rew"),
        ("(completion): return 1", "takes (completion); write (completion, task)"),
        ("(completions, tasks): return [1, 2]", "gave 2 scores for 1 completions"),
    ],
)
def test_what_fails_on_the_example_is_one_line(own, body, complaint):
    (own / "mine.py").write_text(f"def f{body}\n")
    for flags in ({"reward": ("mine.py:f",)}, {"correct": "mine.py:f"}):
        with pytest.raises(UserError) as caught:
            load(reward_timeout=0.2, **flags)
        assert str(caught.value).startswith(f"--{next(iter(flags))} mine.py:f: {complaint}")
        assert "\n" not in str(caught.value)


FORMULA = Transcript(r"so \boxed{\frac{4}{2}}")


def test_mathematical_equality_is_asked_for_only_where_it_is_named(tmp_path, monkeypatch):
    assert "math_verify" not in [reward.name for reward in load().rewards]
    weighted = load(reward_weights="math_verify=2")
    assert [j.reward for j in weighted([FORMULA, BARE, TAGGED], [TASK] * 3)] == [2, 0, 2]
    (right,) = load(correct="math_verify")([FORMULA], [TASK])
    assert right.correct
    assert right.scores["math_verify"] == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs math-verify; run pip install"):
        load(reward_weights="math_verify=1")


def test_a_rubric_may_ask_for_mathematical_equality(tmp_path):
    rubric = tmp_path / "r.yaml"
    rubric.write_text("criteria: [{name: equal, function: math_verify}]")
    (judgement,) = load(rubric_file=rubric)([FORMULA], [TASK])
    assert judgement.scores["criteria/r/equal"] == 1
    assert "math_verify" not in judgement.scores


@pytest.mark.parametrize("name", ["last_number", "boxed"])
def test_what_needs_no_tags_can_be_what_is_right(name):
    judge = load(correct=name)
    plain, tagged = judge([Transcript(r"It is \boxed{2}"), WRONG], [TASK] * 2)
    assert (plain.correct, tagged.correct) == (True, False)
