"""The objectives of `common/algo/variants.py`, and each once more as a slow loop written from its
paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.objective import Objective, TokenBatch
from common.algo.variants import VARIANTS as ROWS
from common.algo.variants import defaults_of

MAX_TOKENS = 11


@dataclass(frozen=True)
class Flags:
    """Those of a run in which the user gives none, but for the generation budget."""

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    max_completion_tokens: int = MAX_TOKENS


VARIANTS = {name: row(Flags(**defaults_of(row))) for name, row in ROWS.items()}


def token_losses(
    objective: Objective, log_probs: Tensor, log_probs_old: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """The loss of each token, as the train scripts compute it, from the advantages of sequences or
    of tokens."""
    tokens = TokenBatch(
        log_probs,
        log_probs_old,
        log_probs_old,
        None,
        advantages if advantages.ndim == 2 else advantages[:, None].expand(mask.shape),
        mask,
        BatchTotals(1, 1),
    )
    log_ratio = objective.log_ratio(log_probs, log_probs_old, mask)
    loss, _ = objective.surrogate(log_ratio, tokens)
    return loss


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
    "grpo": partial(_ppo, low=0.2, high=0.2),
    "dr_grpo": partial(_ppo, low=0.2, high=0.2),
    "dapo": partial(_ppo, low=0.2, high=0.28),
    "gspo": _gspo,
    "cispo": _cispo,
    "rloo": _reinforce,
}
_WEIGHTS: dict[str, Callable[[int, BatchTotals], float]] = {
    "grpo": lambda length, totals: 1 / length / totals.sequences,
    "dr_grpo": lambda length, totals: 1 / (totals.sequences * MAX_TOKENS),
    "dapo": lambda length, totals: 1 / totals.tokens,
    "gspo": lambda length, totals: 1 / length / totals.sequences,
    "cispo": lambda length, totals: 1 / totals.tokens,
    "rloo": lambda length, totals: 1 / totals.sequences,
}
