"""`--kl-estimator` and `--kl-in`: what they choose, and what a KL in the reward is taken from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from common.algo.objective import Objective
from common.errors import UserError
from common.flags.objective_flag import load_objective
from common.flags.train_config import resolve_defaults
from common.replay_buffer import Experience, with_advantages
from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from tests.helpers import load_script

OWN = """
from dataclasses import replace

from common.algo.variants import grpo


def penalty(tokens):
    return tokens.log_probs * 0


def mine(flags):
    return replace(grpo(flags), kl_penalty=penalty)
"""


def resolved(**flags: Any) -> Any:
    return resolve_defaults(load_script("experiment_base").Config(**flags), bundled=True)


def objective_of(config: Any) -> Objective:
    return load_objective(config, use_bfloat16=False)


@pytest.mark.parametrize(
    ("flags", "estimator", "penalty"),
    [
        ({}, "k3", "k3_penalty"),
        ({"kl_estimator": "k2"}, "k2", "k2_penalty"),
        (
            {"kl_estimator": "k3_weighted", "objective": "rloo"},
            "k3_weighted",
            "k3_weighted_penalty",
        ),
        ({"kl_in": "reward"}, "k1", "no_penalty"),
        ({"kl_in": "reward", "kl_estimator": "k1"}, "k1", "no_penalty"),
    ],
)
def test_what_is_chosen_stands_in_config_and_record(flags, estimator, penalty):
    config = resolved(**flags)
    assert config.kl_estimator == estimator
    functions = objective_of(config).describe()
    assert functions["kl_penalty"] == penalty
    assert ("with_kl_in_reward" in functions["advantages"]) == (config.kl_in == "reward")


def test_a_penalty_of_a_row_s_own_is_kept_and_takes_no_flag(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    objective = f"{tmp_path / 'own.py'}:mine"
    assert objective_of(resolved(objective=objective)).describe()["kl_penalty"] == "penalty"
    for flags in ({"kl_estimator": "k2"}, {"kl_in": "reward"}):
        with pytest.raises(UserError, match="mine: it has a KL penalty of its own; leave out"):
            objective_of(resolved(objective=objective, **flags))


def given_and_sampled(ref: list[float]) -> Experience:
    """A given token, of which nothing is known, and two sampled ones of log-prob -1."""
    old = torch.tensor([float("nan"), -1.0, -1.0])
    return Experience(
        0,
        torch.tensor([9, 1, 2]),
        torch.tensor([False, True, True]),
        torch.tensor([-1, 0, 0]),
        log_probs_sampler=old,
        log_probs_old=old,
        log_probs_ref=torch.tensor([float("inf"), *ref]),
    )


def group_of(*rewards: float) -> Group:
    trajectory = Trajectory((Segment((9,), False), Segment((1, 2), True, (-1.0, -1.0))), "stop")
    rollouts = [Rollout(trajectory, Transcript(""), {}, reward, True) for reward in rewards]
    return Group(Task(0, "", ""), rollouts)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("dr_grpo", 0.05),
        ("rloo", 0.1),
        # By the deviation of the returns, 0.1 / sqrt(2), the KL counts as much as any reward would.
        ("grpo", 0.05 / (0.1 / 2**0.5 + 1e-4)),
    ],
)
def test_a_group_of_equal_rewards_is_told_apart_by_its_kl(objective, expected):
    """Its completions have k1 of 0.75 - 0.25 = 0.5 and 0: 0.2 times that is what one lacks."""
    config = resolved(objective=objective, kl_in="reward", kl_weight=0.2)
    group, experiences = group_of(1.0, 1.0), [[-1.75, -0.75], [-1.0, -1.0]]
    learned = [given_and_sampled(ref) for ref in experiences]
    (compared,), learned = with_advantages([group], learned, objective_of(config).advantages)
    assert compared.advantages == pytest.approx([-expected, expected])
    assert not compared.has_signal
    assert learned[0].advantages is not None
    in_loss = objective_of(dataclasses.replace(config, kl_in="loss", kl_estimator="k3"))
    (compared,), _ = with_advantages([group], learned, in_loss.advantages)
    assert list(compared.advantages) == [0.0, 0.0]
