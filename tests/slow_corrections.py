"""Each correction of `common/algo/correction.py` once more, as a loop over Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common.algo.aggregation import BatchTotals
from tests.variants import PARAMETERS, Arrays, Sampled, sampled_of, slow_token_losses


def _ratios(sampled: Sampled) -> list[float]:
    """pi_old / mu of each token."""
    return [math.exp(o - m) for o, m in zip(sampled.old, sampled.sampler, strict=True)]


def token_truncated(sampled: Sampled, cap: float) -> list[float]:
    return [min(ratio, cap) for ratio in _ratios(sampled)]


def token_masked(sampled: Sampled, low: float, high: float) -> list[float]:
    return [ratio if low <= ratio <= high else 0.0 for ratio in _ratios(sampled)]


def sequence_truncated(sampled: Sampled, cap: float) -> list[float]:
    return [min(math.prod(_ratios(sampled)), cap)] * len(sampled)


def sequence_masked(sampled: Sampled, low: float, high: float) -> list[float]:
    product = math.prod(_ratios(sampled))
    return [product if low <= product <= high else 0.0] * len(sampled)


def sequence_geometric(sampled: Sampled, low: float, high: float) -> list[float]:
    ratios = _ratios(sampled)
    mean = math.prod(ratios) ** (1 / len(ratios))
    return ratios if low <= mean <= high else [0.0] * len(ratios)


def opsm(sampled: Sampled, cap: float) -> list[float]:
    shifts = [m - n for m, n in zip(sampled.sampler, sampled.new, strict=True)]
    left_behind = sum(shifts) / len(shifts) > cap
    return [0.0 if left_behind and advantage < 0 else 1.0 for advantage in sampled.advantages]


SLOW_CORRECTIONS: Mapping[str, Callable[..., Sequence[float]]] = {
    function.__name__: function
    for function in (
        *(token_truncated, token_masked, sequence_truncated, sequence_masked),
        *(sequence_geometric, opsm),
    )
}

BOUNDS: Mapping[str, Mapping[str, float]] = {
    "token_truncated": {"cap": 2.0},
    "token_masked": {"low": 0.5, "high": 5.0},
    "sequence_truncated": {"cap": 2.0},
    "sequence_masked": {"low": 0.5, "high": 2.0},
    "sequence_geometric": {"low": 0.99, "high": 1.01},
    "opsm": {"cap": 0.5},
}
"""Those of the vectors, which are usual here."""


def slow_corrected(
    name: str, arrays: Arrays, totals: BatchTotals
) -> tuple[np.ndarray, float, np.ndarray]:
    """Weights, GRPO's loss with them, and its gradient. What is dropped still counts."""
    weights, gradient = (np.zeros(arrays.mask.shape) for _ in range(2))
    loss = 0.0
    for i, row in enumerate(arrays.mask):
        positions = [t for t in range(len(row)) if row[t]]
        if not positions:
            continue
        sampled = sampled_of(arrays, i, positions)
        losses = slow_token_losses(PARAMETERS["grpo"], sampled)
        share = 1 / len(positions) / totals.sequences
        for j, weight in enumerate(SLOW_CORRECTIONS[name](sampled, **BOUNDS[name])):
            weights[i, positions[j]] = weight
            loss += share * weight * losses.values[j]
            for k, slope in enumerate(losses.slopes[j]):
                gradient[i, positions[k]] += share * weight * slope
    return weights, loss, gradient
