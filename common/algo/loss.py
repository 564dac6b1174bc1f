"""The clipped policy-gradient objective, its aggregation, and what is worth watching about both."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.kl import MAX_LOG_RATIO
from common.algo.masking import masked_mean


def token_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """log(policy / policy at sampling time) per token; 0, without gradient, outside the mask."""
    log_ratio = torch.where(mask, log_probs - log_probs_old, 0.0)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_loss(
    log_ratio: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    clip_eps: float,
    clip_eps_high: float,
) -> Float[Tensor, "batch time"]:
    """PPO's pessimistic surrogate per token, negated: -min(rA, clip(r, 1 - eps, 1 + eps_high) A).

    PPO, arXiv 1707.06347; `clip_eps_high > clip_eps` is DAPO's clip-higher, arXiv 2503.14476.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps_high)
    return -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])


def sequence_mean(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], num_sequences: int
) -> Float[Tensor, ""]:
    """GRPO's aggregation: the mean over sequences of the mean over their tokens.

    `num_sequences` counts the whole optimizer batch, so that the results of its micro-batches (and
    of all ranks) add up to the loss of the batch, however it was split.

    DeepSeekMath, arXiv 2402.03300, equation 3.
    """
    return masked_mean(per_token, mask).sum() / num_sequences


def clipped_tokens(
    log_ratio: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    clip_eps: float,
    clip_eps_high: float,
) -> Bool[Tensor, "batch time"]:
    """Tokens whose gradient `clipped_loss` took away: the ratio has left the clip range on the side
    to which the advantage pushes it."""
    ratio = log_ratio.exp()
    too_high = (ratio > 1 + clip_eps_high) & (advantages[:, None] > 0)
    too_low = (ratio < 1 - clip_eps) & (advantages[:, None] < 0)
    return too_high | too_low
