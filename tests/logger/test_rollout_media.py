"""What a batch looks like, from groups made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.logger.rollout_media import (
    MOST_GENERATIONS,
    as_text,
    generations,
    histograms,
    reward_breakdown,
)
from common.rewards.transcript import Message, Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task

TEXT = "<think> 1+1</think><answer> 2</answer>"


def make_rollout(reward: float, text: str = TEXT) -> Rollout:
    trajectory = Trajectory((Segment((9,), False), Segment((1, 1), True, (-0.5, -0.5))), "stop")
    scores = {"a": reward, "b": 1.0, "criteria/r/c": 9.0}
    transcript = Transcript(text, [Message("assistant", text)])
    return Rollout(trajectory, transcript, scores, reward, reward == 1)


def make_group(number: int, *rewards: float) -> Group:
    rollouts = [make_rollout(reward) for reward in rewards]
    return Group(Task(number, f"Q{number}?", "2"), rollouts, [r - 0.5 for r in rewards])


GROUPS = [make_group(0, 0.0, 1.0, 0.5, 0.5), make_group(1, 1.0, 1.0)]


def test_histograms_count_every_rollout():
    found = histograms(GROUPS)
    assert {name: sum(histogram.counts) for name, histogram in found.items()} == {
        "rewards/a_hist": 6,
        "rewards/b_hist": 6,
        "rewards/distribution": 6,
        "rollouts/advantages_hist": 6,
        "rollouts/completion_tokens_hist": 6,
    }
    counts = found["rewards/a_hist"].counts
    assert (counts[0], counts[len(counts) // 2], counts[-1]) == (1, 2, 3)


def test_bars_are_means_of_the_rewards():
    assert reward_breakdown(GROUPS).values == {"a": pytest.approx(4 / 6), "b": 1.0}


def test_generations_are_the_best_the_worst_and_another():
    table = generations(7, GROUPS)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["question"], row["reward"]) for row in rows] == [
        ("Q0?", 1.0),
        ("Q0?", 0.0),
        ("Q0?", 0.5),
        ("Q1?", 1.0),
        ("Q1?", 1.0),
    ]
    assert rows[1] == {
        "step": 7,
        "question": "Q0?",
        "reasoning": "1+1",
        "answer": "2",
        "ground_truth": "2",
        "reward": 0.0,
        "a": 0.0,
        "b": 1.0,
        "criteria/r/c": 9.0,
        "advantage": -0.5,
        "stop_reason": "stop",
        "completion_tokens": 2,
    }
    assert generations(7, GROUPS) == table


def test_no_more_generations_than_a_table_can_show_and_no_longer_ones():
    many = [make_group(number, 0.0, 0.5, 1.0) for number in range(20)]
    assert len(generations(1, many).rows) == MOST_GENERATIONS
    endless = replace(many[0], rollouts=[make_rollout(0.0, "x" * 100_000)], advantages=[0.0])
    (row,) = generations(1, [endless]).rows
    assert len(str(row[2])) == 4000


def test_an_example_has_the_question_and_every_turn():
    assert as_text(GROUPS[0]) == f"Q0?\n\nassistant: {TEXT}"
