"""Divergence of the policy from its reference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.tokens import TokenBatch

# exp overflows float32 beyond 88; at 40 a product of two such numbers is still finite.
MAX_LOG_RATIO = 40.0

# k3 grows as the exponential of how much likelier a token is to the reference: one token that is
# 100,000 times likelier takes over the gradient of its whole batch. 10 nats, as in verl and other
# frameworks, are reached where it is 14 times likelier, or 60,000 times less likely.
MAX_K3 = 10.0


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
    negative. Outside the mask it is 0 and has no gradient. J. Schulman, "Approximating KL
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


def k3_penalty(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """k3 itself. DeepSeekMath, arXiv 2402.03300, equation 4."""
    assert tokens.log_probs_ref is not None
    return kl_divergence_k3(tokens.log_probs, tokens.log_probs_ref, tokens.mask)
