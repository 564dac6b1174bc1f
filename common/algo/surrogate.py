"""How far the policy has moved since it sampled, and what keeps a step from going too far.

The functions called `log_ratio` take log-probs, the old log-probs and the mask, and give log(ratio)
per token; 0 and without gradient outside the mask, whatever stands there. The surrogates take it
and the tokens it belongs to, and give the loss per token and which tokens were clipped, None if
there is nothing that clips. Bind their bounds with `functools.partial`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.aggregation import masked_mean
from common.algo.kl import MAX_LOG_RATIO, bounded
from common.algo.tokens import TokenBatch


def token_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Every token has the ratio of its own probabilities. PPO, arXiv 1707.06347."""
    return bounded(torch.where(mask, log_probs - log_probs_old, 0.0), MAX_LOG_RATIO)


def sequence_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Every token has its sequence's ratio, the geometric mean over its tokens.

    Goes with `sequence_mean`. GSPO, arXiv 2507.18071, equation 7.
    """
    mean = masked_mean(log_probs - log_probs_old, mask)
    return torch.where(mask, bounded(mean, MAX_LOG_RATIO)[:, None], 0.0)


def clipped_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-min(r A, clip(r, 1 - clip_eps, 1 + clip_eps_high) A), PPO's pessimistic surrogate.

    A token is clipped where that takes its gradient away: the ratio has left the range on the side
    to which the advantage pushes it. PPO, arXiv 1707.06347; `clip_eps_high` above `clip_eps` is
    DAPO's clip-higher, arXiv 2503.14476.
    """
    ratio, advantage = log_ratio.exp(), tokens.advantages
    within_range = ratio.clamp(1 - clip_eps, 1 + clip_eps_high)
    too_high = (ratio > 1 + clip_eps_high) & (advantage > 0)
    too_low = (ratio < 1 - clip_eps) & (advantage < 0)
    return -torch.minimum(ratio * advantage, within_range * advantage), too_high | too_low


def clipped_weight(
    log_ratio: Float[Tensor, "batch time"], tokens: TokenBatch, *, clip_eps_high: float
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-stop_gradient(min(r, 1 + clip_eps_high)) A log(policy): every token keeps a gradient.

    A token is clipped where its weight was bounded. CISPO, MiniMax-M1, arXiv 2506.13585.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(max=1 + clip_eps_high)
    return -weight * tokens.advantages * tokens.log_probs, ratio > 1 + clip_eps_high


def unclipped_surrogate(
    log_ratio: Float[Tensor, "batch time"], tokens: TokenBatch
) -> tuple[Float[Tensor, "batch time"], None]:
    """-r A: on policy the plain policy gradient, REINFORCE (Williams, 1992)."""
    return -log_ratio.exp() * tokens.advantages, None
