"""The variants of the literature, and each once more as a slow loop written from its paper.

The rows are those of the table in CONTRIBUTING.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from common.algo.advantages import (
    group_advantages,
    leave_one_out_advantages,
    mean_centred_advantages,
)
from common.algo.aggregation import (
    BatchTotals,
    constant_length_mean,
    sequence_mean,
    token_mean,
)
from common.algo.clip import clipped_surrogate, clipped_weight, unclipped_surrogate
from common.algo.objective import Objective
from common.algo.ratio import sequence_log_ratio, token_log_ratio

MAX_TOKENS = 11

VARIANTS = {
    "GRPO": Objective(
        group_advantages,
        token_log_ratio,
        partial(clipped_surrogate, clip_eps=0.2, clip_eps_high=0.2),
        sequence_mean,
    ),
    "Dr. GRPO": Objective(
        mean_centred_advantages,
        token_log_ratio,
        partial(clipped_surrogate, clip_eps=0.2, clip_eps_high=0.2),
        partial(constant_length_mean, max_tokens=MAX_TOKENS),
    ),
    "DAPO": Objective(
        group_advantages,
        token_log_ratio,
        partial(clipped_surrogate, clip_eps=0.2, clip_eps_high=0.28),
        token_mean,
    ),
    "GSPO": Objective(
        group_advantages,
        sequence_log_ratio,
        partial(clipped_surrogate, clip_eps=3e-4, clip_eps_high=4e-4),
        sequence_mean,
    ),
    "CISPO": Objective(
        group_advantages,
        token_log_ratio,
        partial(clipped_weight, clip_eps_high=0.3),
        token_mean,
    ),
    "RLOO": Objective(
        leave_one_out_advantages,
        token_log_ratio,
        unclipped_surrogate,
        partial(constant_length_mean, max_tokens=1),
    ),
}


@dataclass(frozen=True)
class Arrays:
    """A micro-batch as numpy arrays: batch x time, and one advantage per sequence."""

    log_probs: np.ndarray
    old: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray


def slow_loss(name: str, arrays: Arrays, totals: BatchTotals) -> tuple[float, np.ndarray]:
    """Loss, and its gradient with respect to the log-probs, one token at a time."""
    loss, gradient = 0.0, np.zeros(arrays.log_probs.shape)
    for i, row in enumerate(arrays.mask):
        sampled = np.flatnonzero(row)
        if len(sampled) == 0:
            continue
        sequence_loss, slopes = _SEQUENCE_LOSSES[name](
            arrays.log_probs[i, sampled], arrays.old[i, sampled], float(arrays.advantages[i])
        )
        weight = _WEIGHTS[name](len(sampled), totals)
        loss += weight * sequence_loss
        gradient[i, sampled] = weight * np.array(slopes)
    return loss, gradient


def _ppo(
    new: Sequence[float], old: Sequence[float], advantage: float, low: float, high: float
) -> tuple[float, list[float]]:
    loss, slopes = 0.0, []
    for t in range(len(new)):
        ratio = math.exp(new[t] - old[t])
        bounded = min(max(ratio, 1 - low), 1 + high)
        loss -= min(ratio * advantage, bounded * advantage)
        slopes.append(-ratio * advantage if ratio * advantage <= bounded * advantage else 0.0)
    return loss, slopes


def _gspo(
    new: Sequence[float], old: Sequence[float], advantage: float
) -> tuple[float, list[float]]:
    length = len(new)
    ratio = math.exp(sum(new[t] - old[t] for t in range(length)) / length)
    bounded = min(max(ratio, 1 - 3e-4), 1 + 4e-4)
    moves = ratio * advantage <= bounded * advantage
    slope = -ratio * advantage / length if moves else 0.0
    # One term per sequence; the weight below divides by its length.
    return -min(ratio * advantage, bounded * advantage) * length, [slope * length] * length


def _cispo(
    new: Sequence[float], old: Sequence[float], advantage: float
) -> tuple[float, list[float]]:
    weights = [min(math.exp(new[t] - old[t]), 1.3) for t in range(len(new))]
    loss = -sum(weight * advantage * new[t] for t, weight in enumerate(weights))
    return loss, [-weight * advantage for weight in weights]


def _reinforce(
    new: Sequence[float], old: Sequence[float], advantage: float
) -> tuple[float, list[float]]:
    ratios = [math.exp(new[t] - old[t]) for t in range(len(new))]
    return -sum(ratios) * advantage, [-ratio * advantage for ratio in ratios]


_SEQUENCE_LOSSES = {
    "GRPO": partial(_ppo, low=0.2, high=0.2),
    "Dr. GRPO": partial(_ppo, low=0.2, high=0.2),
    "DAPO": partial(_ppo, low=0.2, high=0.28),
    "GSPO": _gspo,
    "CISPO": _cispo,
    "RLOO": _reinforce,
}
_WEIGHTS: dict[str, Callable[[int, BatchTotals], float]] = {
    "GRPO": lambda length, totals: 1 / length / totals.sequences,
    "Dr. GRPO": lambda length, totals: 1 / (totals.sequences * MAX_TOKENS),
    "DAPO": lambda length, totals: 1 / totals.tokens,
    "GSPO": lambda length, totals: 1 / length / totals.sequences,
    "CISPO": lambda length, totals: 1 / totals.tokens,
    "RLOO": lambda length, totals: 1 / totals.sequences,
}
