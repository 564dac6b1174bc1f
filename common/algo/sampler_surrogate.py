"""Surrogates that compare the policy with what sampled, rather than with the old policy.

They look past the log-ratio that they are given, and bound the mismatch between sampler and learner
and the update alike: an objective of theirs says `uses_sampler` and takes no correction. What they
drop has neither value nor gradient, counts as clipped, and stays in the denominators.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.aggregation import masked_sum
from common.algo.kl import MAX_LOG_RATIO, bounded
from common.algo.surrogate import by_sign, pushed_out, token_log_ratio, weighted_log_prob
from common.algo.tokens import TokenBatch


def divergence_masked_weight(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    clip_eps: float,
    clip_eps_high: float,
    max_weight: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-stop_gradient(min(w, max_weight)) A log(policy) with w = policy / sampler, of the tokens
    whose *probability* the advantage has not yet pushed far.

    With A > 0 a token is dropped where policy - sampler > clip_eps_high, with A < 0 where it is
    < -clip_eps: the total variation of a binary choice between this token and all others. DPPO,
    arXiv 2602.04879.
    """
    del log_ratio
    dropped = pushed_out(_moved(tokens), tokens.advantages, -clip_eps, clip_eps_high)
    weight = _log_ratio_to_sampler(tokens).exp().clamp(max=max_weight)
    return torch.where(dropped, 0.0, weighted_log_prob(weight, tokens)), dropped


def probability_masked_ratio(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-w A with w = policy / sampler, of the tokens with policy - sampler within
    [-clip_eps, clip_eps_high], whatever the sign of A.

    IPO, INTELLECT policy optimization: documentation of prime-rl.
    """
    del log_ratio
    moved = _moved(tokens)
    dropped = (moved > clip_eps_high) | (moved < -clip_eps)
    loss = -_log_ratio_to_sampler(tokens).exp() * tokens.advantages
    return torch.where(dropped, 0.0, loss), dropped


def gamma_weight(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    power_positive: float,
    power_negative: float,
    rate_positive: float,
    rate_negative: float,
) -> tuple[Float[Tensor, "batch time"], None]:
    """-stop_gradient(phi(W)) A log(policy) with phi(W) = W^power exp(rate (1 - W)), and W the
    product of policy / sampler over the sequence.

    phi is 1 at W = 1, greatest at power / rate, and falls to 0 on both sides; power and rate depend
    on the sign of A. VESPO, arXiv 2602.10693.
    """
    del log_ratio
    difference = tokens.log_probs - tokens.log_probs_sampler
    log_weight = bounded(masked_sum(difference, tokens.mask), MAX_LOG_RATIO)[:, None]
    power = by_sign(tokens.advantages, power_positive, power_negative)
    rate = by_sign(tokens.advantages, rate_positive, rate_negative)
    return weighted_log_prob((power * log_weight - rate * log_weight.expm1()).exp(), tokens), None


def _moved(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """Probability of each token under the policy, less that under its sampler."""
    moved = tokens.log_probs.detach().exp() - tokens.log_probs_sampler.exp()
    return torch.where(tokens.mask, moved, 0.0)


def _log_ratio_to_sampler(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    return token_log_ratio(tokens.log_probs, tokens.log_probs_sampler, tokens.mask)
