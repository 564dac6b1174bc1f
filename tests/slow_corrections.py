"""Each correction of `common/algo/correction.py` once more, as a loop over Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tests.variants import Sampled


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
