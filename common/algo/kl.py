"""Divergence of the policy from its reference: as numbers, and as what a loss descends.

What is said of a gradient here is said per token, under the prefixes that were sampled: how a token
changes those after it is left out, as in any loss that is a sum over given tokens. `docs/kl.md` has
each estimator beside the exact divergences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.tokens import TokenBatch

# exp overflows float32 beyond 88; at 40 a product of two such numbers is still finite. The slope of
# k2 is the log-ratio itself, so that this bounds it, too: no token takes over a batch with it.
MAX_LOG_RATIO = 40.0

# k3 grows as the exponential of how much likelier a token is to the reference: one token that is
# 100,000 times likelier takes over the gradient of its whole batch. 10 nats, as in verl and other
# frameworks, are reached where it is 14 times likelier, or 60,000 times less likely.
MAX_K3 = 10.0

# A weight of policy / sampler has the mean 1; one token may count as ten, and no more.
MAX_WEIGHT = 10.0


def bounded(values: Float[Tensor, "*shape"], limit: float) -> Float[Tensor, "*shape"]:
    """Within +-`limit`, beyond which there is no gradient.

    Unlike `torch.clamp`, whose gradient for NaN is 0, it hands NaN on to the gradient: what is
    broken has to be seen in its norm.
    """
    return torch.where(values.abs() > limit, limit * values.detach().sign(), values)


def kl_divergence_k1(
    log_probs: Float[Tensor, "batch time"],
    log_probs_ref: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """log(policy / reference) of each token in nats, at most `MAX_LOG_RATIO` either way.

    Its mean over tokens sampled by the policy is KL(policy || reference); single ones may be
    negative. Its mean gradient there is zero, whatever the reference: it is right in the reward and
    nothing in a loss. Outside the mask it is 0 and has no gradient. J. Schulman, "Approximating KL
    Divergence" (2020), estimator k1.
    """
    return bounded(torch.where(mask, log_probs - log_probs_ref, 0.0), MAX_LOG_RATIO)


def kl_divergence_k3(
    log_probs: Float[Tensor, "batch time"],
    log_probs_ref: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Per-token estimate of KL(policy || reference) in nats from tokens sampled by the policy.

    `expm1(d) - d` with `d = log_probs_ref - log_probs`: never negative, and of low variance but
    for its tail, so it is at most `MAX_K3`; a token beyond that counts as `MAX_K3` and has no
    gradient. Without the bound it is unbiased. `exp(d) - d - 1` would come out negative for many
    small `d` in float32. Outside the mask it is 0 and has no gradient.

    J. Schulman, "Approximating KL Divergence" (2020), estimator k3.
    """
    difference = bounded(torch.where(mask, log_probs_ref - log_probs, 0.0), MAX_LOG_RATIO)
    return bounded(torch.expm1(difference) - difference, MAX_K3)


Penalty = Callable[[TokenBatch], Float[Tensor, "batch time"]]


def k2_penalty(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """Half the square of log(policy / reference). Descends KL(policy || reference).

    That is its gradient on tokens sampled by the policy; its value is no estimate of a KL far from
    the reference. Its slope is k1, which grows slowly, so that it is bounded by `MAX_LOG_RATIO`
    alone. J. Schulman (2020), estimator k2; arXiv 2512.21852.
    """
    assert tokens.log_probs_ref is not None
    return kl_divergence_k1(tokens.log_probs, tokens.log_probs_ref, tokens.mask).square() / 2


def k3_penalty(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """k3 itself. Descends KL(reference || policy), although its value estimates the other one.

    That is its gradient on tokens sampled by the policy: its slope is 1 - reference / policy.
    DeepSeekMath, arXiv 2402.03300, equation 4.
    """
    assert tokens.log_probs_ref is not None
    return kl_divergence_k3(tokens.log_probs, tokens.log_probs_ref, tokens.mask)


def k3_weighted_penalty(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """policy / sampler times k3, with the gradient of the weight. Descends KL(policy || reference).

    It does so whatever sampled the tokens, and its value stays an estimate of it. The derivative of
    the product is policy / sampler times k1, which is the slope of k2 under a weight without
    gradient. It is computed so: from the product it would be lost to rounding where the reference
    is much likelier, and have the wrong sign where k3 is bounded. The weight is at most
    `MAX_WEIGHT`; k3 and k1 have their own bounds.

    DeepSeek-V3.2, arXiv 2512.02556, which takes the old policy for the sampler.
    """
    with torch.no_grad():
        log_weight = torch.where(tokens.mask, tokens.log_probs - tokens.log_probs_sampler, 0.0)
        weight = bounded(bounded(log_weight, MAX_LOG_RATIO).exp(), MAX_WEIGHT)
        value = weight * k3_penalty(tokens)
    descended = weight * k2_penalty(tokens)
    return value + (descended - descended.detach())


def no_penalty(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """Zero: for a KL that is taken from the reward."""
    return torch.zeros_like(tokens.log_probs)


PENALTIES: Mapping[str, Penalty] = {
    "k2": k2_penalty,
    "k3": k3_penalty,
    "k3_weighted": k3_weighted_penalty,
}
"""What a loss can descend, by the estimator's name."""
