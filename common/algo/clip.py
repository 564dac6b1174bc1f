"""What keeps a step from going too far: the third of four choices.

Each function takes the log-ratio, the log-probs and one advantage per sequence, and gives the loss
per token and which tokens were clipped. Bind the bounds with `functools.partial`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-min(r A, clip(r, 1 - clip_eps, 1 + clip_eps_high) A), PPO's pessimistic surrogate.

    A token is clipped where that takes its gradient away: the ratio has left the range on the side
    to which the advantage pushes it. PPO, arXiv 1707.06347; `clip_eps_high` above `clip_eps` is
    DAPO's clip-higher, arXiv 2503.14476.
    """
    del log_probs
    ratio, advantage = log_ratio.exp(), advantages[:, None]
    bounded = ratio.clamp(1 - clip_eps, 1 + clip_eps_high)
    too_high = (ratio > 1 + clip_eps_high) & (advantage > 0)
    too_low = (ratio < 1 - clip_eps) & (advantage < 0)
    return -torch.minimum(ratio * advantage, bounded * advantage), too_high | too_low


def clipped_weight(
    log_ratio: Float[Tensor, "batch time"],
    log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
    *,
    clip_eps_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-stop_gradient(min(r, 1 + clip_eps_high)) A log(policy): every token keeps a gradient.

    A token is clipped where its weight was bounded. CISPO, MiniMax-M1, arXiv 2506.13585.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(max=1 + clip_eps_high)
    return -weight * advantages[:, None] * log_probs, ratio > 1 + clip_eps_high


def unclipped_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    log_probs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-r A: on policy the plain policy gradient, REINFORCE (Williams, 1992)."""
    del log_probs
    return -log_ratio.exp() * advantages[:, None], torch.zeros_like(log_ratio, dtype=torch.bool)
