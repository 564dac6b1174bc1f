"""The objectives of `common/algo/variants.py`, and each once more as a slow loop written from its
paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch
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
class Parameters:
    """What a paper leaves to choose, as it chose; None where it has no such thing."""

    ratio: str = "token"
    """token, or sequence: the geometric mean over its tokens."""
    surrogate: str = "clipped"
    """clipped (PPO's minimum), weight (bounded, without a gradient), or unclipped."""
    clip_below: float | None = 0.2
    clip_above: float | None = 0.2
    """The ratio is clipped to 1 - clip_below and 1 + clip_above."""
    aggregation: str = "sequence_mean"
    """sequence_mean, token_mean, or constant_length: the sum / (sequences x constant_length)."""
    constant_length: int | None = None
    baseline: str = "group_mean"
    """group_mean, or mean_of_others."""
    std_epsilon: float | None = 1e-4
    """Added to the standard deviation of the group, by which advantages are divided."""
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
    "dapo": Parameters(clip_above=0.28, aggregation="token_mean"),
    "gspo": Parameters(ratio="sequence", clip_below=3e-4, clip_above=4e-4),
    "cispo": Parameters(
        surrogate="weight", clip_below=None, clip_above=0.3, aggregation="token_mean"
    ),
    "rloo": Parameters(
        surrogate="unclipped",
        clip_below=None,
        clip_above=None,
        aggregation="constant_length",
        constant_length=1,
        baseline="mean_of_others",
        std_epsilon=None,
        std_ddof=None,
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
    parameters = PARAMETERS[name]
    loss, gradient = 0.0, np.zeros(arrays.log_probs.shape)
    for i, row in enumerate(arrays.mask):
        sampled = [t for t in range(len(row)) if row[t]]
        if not sampled:
            continue
        weight = _weight(parameters, len(sampled), totals)
        new = [float(arrays.log_probs[i, t]) for t in sampled]
        differences = [float(arrays.log_probs[i, t] - arrays.old[i, t]) for t in sampled]
        if parameters.ratio == "sequence":
            # d loss / d log-prob is a mean over the sequence, and so the same for each token.
            differences = [sum(differences) / len(sampled)] * len(sampled)
        for t, log_prob, difference in zip(sampled, new, differences, strict=True):
            term, slope = _token(parameters, log_prob, difference, float(arrays.advantages[i]))
            loss += weight * term
            gradient[i, t] = weight * slope
    return loss, gradient


def _token(
    parameters: Parameters, log_prob: float, difference: float, advantage: float
) -> tuple[float, float]:
    """The loss of a token, and its slope in the log-prob that its ratio depends on."""
    ratio = math.exp(difference)
    if parameters.surrogate == "unclipped":
        return -ratio * advantage, -ratio * advantage
    highest = 1 + (parameters.clip_above or 0.0)
    if parameters.surrogate == "weight":
        weight = min(ratio, highest)
        return -weight * advantage * log_prob, -weight * advantage
    bounded = min(max(ratio, 1 - (parameters.clip_below or 0.0)), highest)
    moves = ratio * advantage <= bounded * advantage
    return -min(ratio * advantage, bounded * advantage), -ratio * advantage if moves else 0.0


def _weight(parameters: Parameters, length: int, totals: BatchTotals) -> float:
    """Of a token, from the length of its sequence and the totals of the optimizer batch."""
    if parameters.aggregation == "sequence_mean":
        return 1 / length / totals.sequences
    if parameters.aggregation == "token_mean":
        return 1 / totals.tokens
    return 1 / (totals.sequences * (parameters.constant_length or 1))


def slow_advantages(name: str, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
    """One per reward, from those of its group."""
    parameters, advantages = PARAMETERS[name], []
    for reward, number in zip(rewards, groups, strict=True):
        group = [r for r, g in zip(rewards, groups, strict=True) if g == number]
        if len(set(group)) == 1:
            advantages.append(0.0)
            continue
        size, total = len(group), math.fsum(group)
        others = (total - reward) / (size - 1)
        mean = total / size
        advantage = reward - (mean if parameters.baseline == "group_mean" else others)
        if parameters.std_epsilon is not None:
            squares = math.fsum((r - mean) ** 2 for r in group)
            deviation = math.sqrt(squares / (size - (parameters.std_ddof or 0)))
            advantage /= deviation + parameters.std_epsilon
        advantages.append(advantage)
    return advantages


def slow_k3(log_prob: float, log_prob_ref: float, bound: float) -> tuple[float, float]:
    """Estimate of a token, and its slope in the policy's log-prob."""
    difference = log_prob_ref - log_prob
    estimate = math.expm1(difference) - difference
    return (estimate, -math.expm1(difference)) if estimate <= bound else (bound, 0.0)
