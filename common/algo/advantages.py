"""How much better a completion is than its group."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Keeps a group whose rewards differ by rounding alone from being blown up to unit variance.
STD_EPSILON = 1e-4


def group_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """GRPO's advantage: (reward - mean) / (standard deviation + epsilon), inside one group.

    The standard deviation has Bessel's correction. A group of equal rewards gets exactly zero,
    decided by comparison: the mean of fifteen rewards of 17.3 is not 17.3 in floating point.

    Raises `ValueError` for fewer than two rewards, which have no baseline.

    DeepSeekMath, arXiv 2402.03300.
    """
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two rewards, got {len(rewards)}")
    if bool((rewards == rewards[0]).all()):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPSILON)
