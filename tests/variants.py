"""The objectives of `common/algo/variants.py`, and each once more as a slow loop written from its
paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch
from common.algo.variants import VARIANTS as ROWS
from common.algo.variants import defaults_of
from tests.slow_advantages import ESTIMATORS, Advantages, Compared, Settings

MAX_TOKENS = 11


@dataclass(frozen=True)
class Flags:
    """Those of a run in which the user gives none, but for the generation budget."""

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    max_completion_tokens: int = MAX_TOKENS
    kl_in: str = "loss"


VARIANTS = {name: row(Flags(**defaults_of(row))) for name, row in ROWS.items()}


def token_losses(
    objective: Objective,
    log_probs: Tensor,
    log_probs_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    log_probs_sampler: Tensor | None = None,
) -> Tensor:
    """The loss of each token, as the train scripts compute it, from the advantages of sequences or
    of tokens. Without log-probs of its own the sampler is the old policy."""
    tokens = TokenBatch(
        log_probs,
        log_probs_old,
        log_probs_old if log_probs_sampler is None else log_probs_sampler,
        None,
        advantages if advantages.ndim == 2 else advantages[:, None].expand(mask.shape),
        mask,
        BatchTotals(1, 1),
    )
    log_ratio = objective.log_ratio(log_probs, log_probs_old, mask)
    loss, _ = objective.surrogate(log_ratio, tokens)
    return loss


@dataclass(frozen=True)
class Parameters:
    """What a paper leaves to choose, as it chose; None where it has no such thing."""

    ratio: str = "token"
    """A key of `RATIOS`."""
    ratio_parameters: Mapping[str, float] = field(default_factory=dict)
    """What the ratio takes by name."""
    surrogate: str = "clipped"
    """A key of `SURROGATES`."""
    surrogate_parameters: Mapping[str, float] = field(
        default_factory=lambda: {"clip_below": 0.2, "clip_above": 0.2}
    )
    """What the surrogate takes by name."""
    stop_gradient: bool = False
    """Whether a part of the loss is a number to its gradient, which is not that of its value."""
    aggregation: str = "sequence_mean"
    """sequence_mean, token_mean, or constant_length: the sum / (sequences x constant_length)."""
    constant_length: int | None = None
    estimator: str = "of_group"
    """A key of `ESTIMATORS`: how advantages come from rewards."""
    baseline: str | None = "group_mean"
    """group_mean, or mean_of_others."""
    std_epsilon: float | None = 1e-4
    """Added to the standard deviation by which advantages are divided."""
    std_ddof: int | None = 1
    """1: Bessel's correction."""
    temperature: float = 1.0
    """At which log-probs are taken; they are given at it."""


PARAMETERS = {
    "grpo": Parameters(),
    "dr_grpo": Parameters(
        aggregation="constant_length",
        constant_length=MAX_TOKENS,
        std_epsilon=None,
        std_ddof=None,
    ),
    "dapo": Parameters(
        surrogate_parameters={"clip_below": 0.2, "clip_above": 0.28}, aggregation="token_mean"
    ),
    "gspo": Parameters(
        ratio="sequence", surrogate_parameters={"clip_below": 3e-4, "clip_above": 4e-4}
    ),
    "cispo": Parameters(
        surrogate="weight",
        surrogate_parameters={"clip_above": 0.3},
        stop_gradient=True,
        aggregation="token_mean",
    ),
    "rloo": Parameters(
        surrogate="unclipped",
        surrogate_parameters={},
        aggregation="constant_length",
        constant_length=1,
        baseline="mean_of_others",
        std_epsilon=None,
        std_ddof=None,
    ),
    "lite_ppo": Parameters(aggregation="token_mean", estimator="batch_deviation"),
    "max_rl": Parameters(
        aggregation="constant_length",
        constant_length=MAX_TOKENS,
        estimator="group_mean",
        std_epsilon=None,
        std_ddof=None,
    ),
    "gdpo": Parameters(estimator="decoupled"),
    "pass_at_k": Parameters(
        aggregation="constant_length",
        constant_length=MAX_TOKENS,
        estimator="best_of_others",
        baseline=None,
        std_epsilon=None,
        std_ddof=None,
    ),
    "reinforce_pp": Parameters(aggregation="token_mean", estimator="all_tokens", baseline=None),
    "reinforce_pp_baseline": Parameters(aggregation="token_mean", estimator="all_tokens"),
    "opo": Parameters(
        surrogate="unclipped",
        surrogate_parameters={},
        aggregation="constant_length",
        constant_length=1,
        estimator="length_weighted",
        baseline=None,
        std_epsilon=None,
        std_ddof=None,
    ),
}


@dataclass(frozen=True)
class Arrays:
    """A micro-batch as numpy arrays, batch x time."""

    log_probs: np.ndarray
    old: np.ndarray
    sampler: np.ndarray
    advantages: np.ndarray
    """One per sequence, or one per token."""
    mask: np.ndarray


@dataclass(frozen=True)
class Sampled:
    """The sampled tokens of a sequence, as Python floats."""

    new: Sequence[float]
    old: Sequence[float]
    sampler: Sequence[float]
    advantages: Sequence[float]

    def __len__(self) -> int:
        return len(self.new)


@dataclass(frozen=True)
class Sloped:
    """A number of each token of a sequence."""

    values: Sequence[float]
    slopes: Sequence[Sequence[float]]
    """`slopes[t][j]`: of the value of token t in the policy's log-prob of token j."""


def diagonal(slopes: Sequence[float]) -> list[list[float]]:
    """Each token depends on its own log-prob alone."""
    return [[s if t == j else 0.0 for j in range(len(slopes))] for t, s in enumerate(slopes)]


def token_ratio(sampled: Sampled) -> Sloped:
    """pi / pi_old of each token."""
    values = [math.exp(n - o) for n, o in zip(sampled.new, sampled.old, strict=True)]
    return Sloped(values, diagonal(values))


def sequence_ratio(sampled: Sampled) -> Sloped:
    """The geometric mean of pi / pi_old over the tokens."""
    size = len(sampled)
    value = math.exp(sum(n - o for n, o in zip(sampled.new, sampled.old, strict=True)) / size)
    return Sloped([value] * size, [[value / size] * size] * size)


RATIOS: Mapping[str, Callable[..., Sloped]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
}


@dataclass(frozen=True)
class Token:
    """What the surrogate of a token depends on."""

    ratio: float
    advantage: float
    log_prob: float
    sampler: float
    """Its log-prob under what sampled it."""


@dataclass(frozen=True)
class Loss:
    """Of a token."""

    value: float
    in_ratio: float = 0.0
    """Its slope in the ratio."""
    in_log_prob: float = 0.0
    """Its slope in the log-prob where that stands by itself."""


def clipped(token: Token, *, clip_below: float, clip_above: float) -> Loss:
    """-min(r A, clip(r) A)."""
    bounded = min(max(token.ratio, 1 - clip_below), 1 + clip_above)
    if token.ratio * token.advantage <= bounded * token.advantage:
        return unclipped(token)
    return Loss(-bounded * token.advantage)


def weight(token: Token, *, clip_above: float) -> Loss:
    """-min(r, 1 + clip_above) A log pi, in which the ratio is a number."""
    factor = -min(token.ratio, 1 + clip_above) * token.advantage
    return Loss(factor * token.log_prob, in_log_prob=factor)


def unclipped(token: Token) -> Loss:
    """-r A."""
    return Loss(-token.ratio * token.advantage, in_ratio=-token.advantage)


SURROGATES: Mapping[str, Callable[..., Loss]] = {
    "clipped": clipped,
    "weight": weight,
    "unclipped": unclipped,
}


def slow_loss(name: str, arrays: Arrays, totals: BatchTotals) -> tuple[float, np.ndarray]:
    """Loss, and its gradient with respect to the log-probs, one token at a time."""
    parameters = PARAMETERS[name]
    loss, gradient = 0.0, np.zeros(arrays.log_probs.shape)
    for i, row in enumerate(arrays.mask):
        positions = [t for t in range(len(row)) if row[t]]
        if not positions:
            continue
        share = _share(parameters, len(positions), totals)
        losses = slow_token_losses(parameters, sampled_of(arrays, i, positions))
        loss += share * sum(losses.values)
        for j, t in enumerate(positions):
            gradient[i, t] = share * sum(slopes[j] for slopes in losses.slopes)
    return loss, gradient


def sampled_of(arrays: Arrays, i: int, positions: Sequence[int]) -> Sampled:
    """Those positions of a row."""
    advantages = arrays.advantages.reshape(len(arrays.mask), -1)
    columns = (arrays.log_probs, arrays.old, arrays.sampler)
    values = (*columns, np.broadcast_to(advantages, arrays.mask.shape))
    return Sampled(*([float(column[i, t]) for t in positions] for column in values))


def slow_token_losses(parameters: Parameters, sampled: Sampled) -> Sloped:
    """The loss of each token of a sequence."""
    ratios = RATIOS[parameters.ratio](sampled, **parameters.ratio_parameters)
    values, slopes = [], []
    for t, ratio in enumerate(ratios.values):
        token = Token(ratio, sampled.advantages[t], sampled.new[t], sampled.sampler[t])
        loss = SURROGATES[parameters.surrogate](token, **parameters.surrogate_parameters)
        values.append(loss.value)
        slopes.append([loss.in_ratio * slope for slope in ratios.slopes[t]])
        slopes[t][t] += loss.in_log_prob
    return Sloped(values, slopes)


def _share(parameters: Parameters, length: int, totals: BatchTotals) -> float:
    """Of a token, from the length of its sequence and the totals of the optimizer batch."""
    if parameters.aggregation == "sequence_mean":
        return 1 / length / totals.sequences
    if parameters.aggregation == "token_mean":
        return 1 / totals.tokens
    return 1 / (totals.sequences * (parameters.constant_length or 1))


def slow_advantages(name: str, compared: Compared) -> Advantages:
    """One per rollout, or one per token. Raises `ValueError` where there are none to be had."""
    parameters = PARAMETERS[name]
    settings = Settings(parameters.baseline, parameters.std_epsilon, parameters.std_ddof)
    return ESTIMATORS[parameters.estimator](compared, settings)


def slow_k1(log_prob: float, log_prob_ref: float, largest: float) -> float:
    """Estimate of a token, of either sign and at most `largest`; it has no slope in the reward."""
    return max(-largest, min(largest, log_prob - log_prob_ref))


def slow_k2(log_prob: float, log_prob_ref: float, largest: float) -> tuple[float, float]:
    """Estimate of a token, and its slope in the policy's log-prob."""
    shift = log_prob - log_prob_ref
    return (shift**2 / 2, shift) if abs(shift) <= largest else (largest**2 / 2, 0.0)


def slow_k3(log_prob: float, log_prob_ref: float, bound: float) -> tuple[float, float]:
    """Estimate of a token, and its slope in the policy's log-prob."""
    difference = log_prob_ref - log_prob
    estimate = math.expm1(difference) - difference
    return (estimate, -math.expm1(difference)) if estimate <= bound else (bound, 0.0)


def slow_k3_weighted(
    log_prob: float,
    log_prob_ref: float,
    log_prob_sampler: float,
    bounds: Mapping[str, float],
) -> tuple[float, float]:
    """Estimate of a token, and its slope: the derivative of policy / sampler times k3."""
    weight = min(math.exp(log_prob - log_prob_sampler), bounds["largest_weight"])
    estimate, _ = slow_k3(log_prob, log_prob_ref, bounds["bound"])
    _, shift = slow_k2(log_prob, log_prob_ref, bounds["largest_log_ratio"])
    return weight * estimate, weight * shift
