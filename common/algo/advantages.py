"""How much better a completion is than the others of its group: the first of four choices.

Each function takes the rewards of one group and gives one advantage per reward. A group of equal
rewards gets exactly zero, decided by comparison: the mean of fifteen rewards of 17.3 is not 17.3 in
floating point. Fewer than two rewards have no baseline and raise `ValueError`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Keeps a group whose rewards differ by rounding alone from being blown up to unit variance.
STD_EPSILON = 1e-4


def group_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """GRPO: (reward - mean) / (standard deviation + epsilon), with Bessel's correction.

    DeepSeekMath, arXiv 2402.03300.
    """
    if _without_signal(rewards):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPSILON)


def mean_centred_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """Dr. GRPO: reward - mean. Dividing by the deviation favours tasks that are nearly always or
    nearly never solved.

    Understanding R1-Zero-Like Training, arXiv 2503.20783.
    """
    if _without_signal(rewards):
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()


def leave_one_out_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """RLOO: reward - mean of the *other* rewards, a baseline that is independent of the sample.

    Back to Basics, arXiv 2402.14740.
    """
    if _without_signal(rewards):
        return torch.zeros_like(rewards)
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def _without_signal(rewards: Float[Tensor, " group"]) -> bool:
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two rewards, got {len(rewards)}")
    return bool((rewards == rewards[0]).all())
