"""Divergence of the policy from its reference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp overflows float32 beyond 88; at 40 a product of two such numbers is still finite.
MAX_LOG_RATIO = 40.0


def bounded(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Within +-`MAX_LOG_RATIO`, beyond which there is no gradient.

    Unlike `torch.clamp`, whose gradient for NaN is 0, it hands NaN on to the gradient: what is
    broken has to be seen in its norm.
    """
    too_large = log_ratio.abs() > MAX_LOG_RATIO
    return torch.where(too_large, MAX_LOG_RATIO * log_ratio.detach().sign(), log_ratio)


def kl_divergence_k3(
    log_probs: Float[Tensor, "batch time"],
    log_probs_ref: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Per-token estimate of KL(policy || reference) in nats from tokens sampled by the policy.

    `expm1(d) - d` with `d = log_probs_ref - log_probs`: unbiased, never negative and of low
    variance. `exp(d) - d - 1` would come out negative for many small `d` in float32. Outside the
    mask it is 0 and has no gradient.

    J. Schulman, "Approximating KL Divergence" (2020), estimator k3.
    """
    difference = bounded(torch.where(mask, log_probs_ref - log_probs, 0.0))
    return torch.expm1(difference) - difference
