"""What is said of a completion: each function is asked once, and what does not apply counts not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import UserError
from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.own_function import OwnFunction
from common.rewards.reward import TEXT_REWARDS, Reward
from common.rewards.rubric import Criterion, Rubric
from common.rewards.transcript import Transcript
from common.tasks.task import Task

TASK = Task(0, "?", "2")
RIGHT = Transcript("<answer>2</answer>")


def own(function) -> OwnFunction:
    return OwnFunction("--reward", "my.py:f", function).bound()


def test_a_function_is_asked_once_whatever_is_made_of_its_score():
    asked: list[str] = []

    def graded(completion, task):
        asked.append(completion)
        return float(completion)

    rubric = Rubric("r", [Criterion("c", own(graded), 2.0, 0.0, 4.0)])
    rewards = [Reward("graded", own(graded), 1.0), Reward("rubric", rubric, 10.0)]
    judge = Judge(rewards, Notion(own(graded), 3.0))
    low, high = judge([Transcript("1"), Transcript("3")], [TASK] * 2)
    assert sorted(asked) == ["1", "3"]
    assert low.scores == {"graded": 1.0, "rubric": 0.25, "criteria/r/c": 1.0}
    assert (low.reward, high.reward) == (1 + 2.5, 3 + 7.5)
    assert (low.correct, high.correct) == (False, True)


def test_what_does_not_apply_is_no_part_of_the_sum_and_nothing_right():
    rewards = [
        Reward("a", own(lambda completion, task: None), 1.0),
        Reward("b", own(lambda completion, task: 0.5), 2.0),
        Reward("logged", own(lambda completion, task: 7.0), 0.0),
    ]
    (judgement,) = Judge(rewards, Notion(rewards[0].function, -1.0))([RIGHT], [TASK])
    assert judgement.scores == {"a": None, "b": 0.5, "logged": 7.0}
    assert judgement.weights == {"a": 1.0, "b": 2.0}
    assert (judgement.reward, judgement.correct, judgement.failure) == (1.0, False, None)


def test_a_failure_of_any_function_is_one_of_the_completion():
    def broken(completion, task):
        raise KeyError("x")

    fine, bad = Reward("fine", is_correct, 1.0), own(broken)
    of_reward = Judge([fine, Reward("bad", bad, 0.1)], Notion(is_correct))([RIGHT], [TASK])[0]
    of_notion = Judge([fine], Notion(bad))([RIGHT], [TASK])[0]
    assert of_reward.scores == {"fine": 1.0, "bad": None}
    assert (of_reward.correct, of_notion.correct) == (True, False)
    for judgement in (of_reward, of_notion):
        assert judgement.failure is not None
        assert "raised KeyError" in judgement.failure.text
        assert not judgement.comparable


def test_a_failure_of_what_is_only_logged_is_said_and_costs_nothing():
    def broken(completion, task):
        raise KeyError("x")

    def absent(completion, task):
        raise OSError

    fine, bad = Reward("fine", is_correct, 1.0), own(broken)
    rubric = Rubric("r", [Criterion("c", is_correct), Criterion("d", bad, 0.0)])
    of_reward = Judge([fine, Reward("bad", bad, 0.0)], Notion(is_correct))([RIGHT], [TASK])[0]
    of_rubric = Judge([Reward("rubric", rubric, 1.0)], Notion(is_correct))([RIGHT], [TASK])[0]
    assert of_reward.scores == {"fine": 1.0, "bad": None}
    assert of_rubric.scores == {"rubric": 1.0, "criteria/r/c": 1.0, "criteria/r/d": None}
    for judgement in (of_reward, of_rubric):
        assert (judgement.reward, judgement.correct, judgement.comparable) == (1.0, True, True)
        assert judgement.failure is not None
        assert "raised KeyError" in judgement.failure.text
    rewards = [Reward("bad", bad, 0.0), Reward("absent", own(absent), 1.0)]
    (of_both,) = Judge(rewards, Notion(is_correct))([RIGHT], [TASK])
    assert not of_both.comparable
    assert "raised OSError" in str(of_both.failure)


def test_a_function_of_a_scripts_that_gives_no_number_is_an_error():
    with pytest.raises(UserError, match="reward odd gave nan; it must give a finite number"):
        Judge([Reward("odd", lambda c, t: float("nan"), 1.0)], Notion(is_correct))([RIGHT], [TASK])


def test_a_function_that_takes_batches_gets_one():
    class Counting:
        def __call__(self, completion, task):
            raise AssertionError

        def of_batch(self, completions, tasks, meanwhile):
            return [float(len(completions))] * len(tasks)

    counting = Counting()
    judge = Judge([Reward("counting", counting, 1.0)], Notion(counting, 2.0))
    assert [judgement.reward for judgement in judge([RIGHT] * 3, [TASK] * 3)] == [3.0] * 3
    assert not judge([RIGHT], [TASK])[0].correct


def test_what_looks_for_answer_tags_is_known():
    length = own(lambda completion, task: len(completion))
    weighted = [
        Reward("format_exact", TEXT_REWARDS["format_exact"], 0.1),
        Reward("number_check", TEXT_REWARDS["number_check"], 0.0),
        Reward("length", length, 1.0),
    ]
    assert Judge(weighted, Notion(is_correct)).looking_for_tags == ["format_exact", "the accuracy"]
    judge = Judge([Reward("length", length, 1.0)], Notion(length, 3.0))
    assert (judge.looking_for_tags, judge.right_in_tags) == ([], False)
    rubric = Rubric("r", [Criterion("c", TEXT_REWARDS["answer_check"], 1.0)])
    judge = Judge([Reward("rubric", rubric, 1.0)], Notion(rubric, 0.9))
    assert judge.looking_for_tags == ["rubric", "the accuracy"]
    other = Criterion("d", TEXT_REWARDS["last_number"], 0.0)
    for weight, found in ((0.0, ["rubric"]), (1.0, [])):
        mixed = Rubric("r", [*rubric.criteria, replace(other, weight=weight)])
        judge = Judge([Reward("rubric", mixed, 1.0)], Notion(length))
        assert judge.looking_for_tags == found
