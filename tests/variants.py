"""The objectives of `common/algo/variants.py`, and each once more as a slow loop written from its
paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    "grpo_dual_clip": Parameters(
        surrogate="dual_clipped",
        surrogate_parameters={"clip_below": 0.2, "clip_above": 0.2, "dual_clip": 3.0},
    ),
    "sapo": Parameters(
        surrogate="soft_gate",
        surrogate_parameters={"tau_positive": 1.0, "tau_negative": 1.05},
    ),
    "gspo_token": Parameters(
        ratio="sequence_value",
        surrogate_parameters={"clip_below": 3e-4, "clip_above": 4e-4},
        stop_gradient=True,
    ),
    "gmpo": Parameters(
        ratio="clipped_geometric_mean",
        ratio_parameters={"clip_below": 0.4, "clip_above": 0.4},
        surrogate="unclipped",
        surrogate_parameters={},
    ),
    "luspo": Parameters(
        ratio="sequence",
        surrogate_parameters={"clip_below": 2e-3, "clip_above": 2.5e-3},
        aggregation="constant_length",
        constant_length=1,
    ),
    "dppo_tv": Parameters(
        ratio="to_sampler",
        surrogate="divergence_mask",
        surrogate_parameters={"delta_below": 0.15, "delta_above": 0.15, "max_weight": 20.0},
        stop_gradient=True,
        aggregation="constant_length",
        constant_length=MAX_TOKENS,
        std_epsilon=None,
        std_ddof=None,
    ),
    "ipo": Parameters(
        ratio="to_sampler",
        surrogate="probability_mask",
        surrogate_parameters={"epsilon": 0.3},
        aggregation="token_mean",
        std_epsilon=None,
        std_ddof=None,
    ),
    "vespo": Parameters(
        ratio="product_to_sampler",
        surrogate="gamma",
        surrogate_parameters={
            **{"power_positive": 2.0, "rate_positive": 3.0},
            **{"power_negative": 3.0, "rate_negative": 2.0},
        },
        stop_gradient=True,
        aggregation="token_mean",
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


def sequence_value(sampled: Sampled) -> Sloped:
    """The same, whose value alone is the sequence's: sg[s] pi / sg[pi]."""
    values = sequence_ratio(sampled).values
    return Sloped(values, diagonal(values))


def clipped_geometric_mean(sampled: Sampled, *, clip_below: float, clip_above: float) -> Sloped:
    """The root of the product of pi / pi_old, each clipped where its advantage pushes it out of
    exp(-clip_below) to exp(clip_above)."""
    size, product, moves = len(sampled), 1.0, []
    for ratio, advantage in zip(token_ratio(sampled).values, sampled.advantages, strict=True):
        low, high = math.exp(-clip_below), math.exp(clip_above)
        moves.append(ratio <= high if advantage > 0 else ratio >= low or advantage == 0)
        product *= ratio if moves[-1] else min(max(ratio, low), high)
    value = product ** (1 / size)
    return Sloped([value] * size, [[value / size * moving for moving in moves]] * size)


def to_sampler(sampled: Sampled) -> Sloped:
    """pi / mu of each token."""
    return token_ratio(replace(sampled, old=sampled.sampler))


def product_to_sampler(sampled: Sampled) -> Sloped:
    """pi(y) / mu(y) of the whole sequence: a number to the gradient."""
    size = len(sampled)
    value = math.prod(to_sampler(sampled).values)
    return Sloped([value] * size, [[0.0] * size] * size)


RATIOS: Mapping[str, Callable[..., Sloped]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "sequence_value": sequence_value,
    "clipped_geometric_mean": clipped_geometric_mean,
    "to_sampler": to_sampler,
    "product_to_sampler": product_to_sampler,
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


def dual_clipped(token: Token, *, clip_below: float, clip_above: float, dual_clip: float) -> Loss:
    """-max(min(r A, clip(r) A), c A) where A < 0."""
    if token.advantage < 0 and token.ratio > dual_clip:
        return Loss(-dual_clip * token.advantage)
    return clipped(token, clip_below=clip_below, clip_above=clip_above)


def soft_gate(token: Token, *, tau_positive: float, tau_negative: float) -> Loss:
    """-4 / tau sigmoid(tau (r - 1)) A."""
    tau = tau_positive if token.advantage > 0 else tau_negative
    gate = 1 / (1 + math.exp(-tau * (token.ratio - 1)))
    return Loss(-4 / tau * gate * token.advantage, -4 * gate * (1 - gate) * token.advantage)


def divergence_mask(
    token: Token, *, delta_below: float, delta_above: float, max_weight: float
) -> Loss:
    """-min(w, C) A log pi, or 0 where A > 0 and pi - mu > delta, or A < 0 and mu - pi > delta."""
    rise = math.exp(token.log_prob) - math.exp(token.sampler)
    if rise > delta_above if token.advantage > 0 else -rise > delta_below:
        return Loss(0.0)
    factor = -min(token.ratio, max_weight) * token.advantage
    return Loss(factor * token.log_prob, in_log_prob=factor)


def probability_mask(token: Token, *, epsilon: float) -> Loss:
    """-w A where |pi - mu| is at most epsilon, else 0."""
    if abs(math.exp(token.log_prob) - math.exp(token.sampler)) > epsilon:
        return Loss(0.0)
    return unclipped(token)


def gamma(token: Token, **of_sign: float) -> Loss:
    """-e^rate W^power e^(-rate W) A log pi."""
    sign = "positive" if token.advantage > 0 else "negative"
    power, rate = of_sign[f"power_{sign}"], of_sign[f"rate_{sign}"]
    phi = math.exp(rate) * token.ratio**power * math.exp(-rate * token.ratio)
    return Loss(-phi * token.advantage * token.log_prob, in_log_prob=-phi * token.advantage)


SURROGATES: Mapping[str, Callable[..., Loss]] = {
    "clipped": clipped,
    "weight": weight,
    "unclipped": unclipped,
    "dual_clipped": dual_clipped,
    "soft_gate": soft_gate,
    "divergence_mask": divergence_mask,
    "probability_mask": probability_mask,
    "gamma": gamma,
}


def slow_loss(name: str, arrays: Arrays, totals: BatchTotals) -> tuple[float, np.ndarray]:
    """Loss, and its gradient with respect to the log-probs, one token at a time."""
    parameters = PARAMETERS[name]
    loss, gradient = 0.0, np.zeros(arrays.log_probs.shape)
    for i, row in enumerate(arrays.mask):
        positions = [t for t in range(len(row)) if row[t]]
        if not positions:
            continue
        share = share_of(parameters, len(positions), totals)
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


def share_of(parameters: Parameters, length: int, totals: BatchTotals) -> float:
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
