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


def sequence_token_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Every token has the value of its sequence's ratio and the gradient of its own log-prob.

    With one advantage per sequence and `sequence_mean` that is the gradient of
    `sequence_log_ratio`; with one per token each keeps its own. GSPO-token, arXiv 2507.18071.
    """
    value = sequence_log_ratio(log_probs, log_probs_old, mask).detach()
    return torch.where(mask, value + (log_probs - log_probs.detach()), 0.0)


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
    clipped = pushed_out(ratio, advantage, 1 - clip_eps, 1 + clip_eps_high)
    return -torch.minimum(ratio * advantage, within_range * advantage), clipped


def dual_clipped_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    clip_eps: float,
    clip_eps_high: float,
    dual_clip: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """`clipped_surrogate`, in which a token with A < 0 counts as `dual_clip` |A| at most.

    Beyond a ratio of `dual_clip`, which is at least 1, such a token is clipped, too. Dual-clip
    PPO, arXiv 1912.09729.
    """
    loss, clipped = clipped_surrogate(
        log_ratio, tokens, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    too_costly = (log_ratio.exp() > dual_clip) & (tokens.advantages < 0)
    return torch.where(too_costly, -dual_clip * tokens.advantages, loss), clipped | too_costly


def geometric_mean_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    clip_eps: float,
    clip_eps_high: float,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-A exp(mean over the sequence of log r), each token's log r clipped by itself first.

    The range is [-clip_eps, clip_eps_high] of the *logarithm*, one-sided as in
    `clipped_surrogate`; a clipped token has no gradient, and the others of its sequence keep
    theirs. Goes with `token_log_ratio` and `sequence_mean`. GMPO, arXiv 2507.20673.
    """
    clipped = pushed_out(log_ratio, tokens.advantages, -clip_eps, clip_eps_high)
    within = torch.where(clipped, log_ratio.detach().clamp(-clip_eps, clip_eps_high), log_ratio)
    ratio = masked_mean(within, tokens.mask).exp()
    return -torch.where(tokens.mask, ratio[:, None], 0.0) * tokens.advantages, clipped


def soft_gated_surrogate(
    log_ratio: Float[Tensor, "batch time"],
    tokens: TokenBatch,
    *,
    temperature_positive: float,
    temperature_negative: float,
) -> tuple[Float[Tensor, "batch time"], None]:
    """-A sigmoid(t (r - 1)) 4 / t: the gradient fades with the ratio's distance from 1.

    It is that of `unclipped_surrogate` on policy, whatever the temperature t, which depends on the
    sign of A: the higher, the faster it fades. SAPO, arXiv 2511.20347.
    """
    temperature = by_sign(tokens.advantages, temperature_positive, temperature_negative)
    gate = torch.sigmoid(temperature * (log_ratio.exp() - 1)) * 4 / temperature
    return -gate * tokens.advantages, None


def clipped_weight(
    log_ratio: Float[Tensor, "batch time"], tokens: TokenBatch, *, clip_eps_high: float
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """-stop_gradient(min(r, 1 + clip_eps_high)) A log(policy): every token keeps a gradient.

    A token is clipped where its weight was bounded. CISPO, MiniMax-M1, arXiv 2506.13585.
    """
    ratio = log_ratio.exp()
    return weighted_log_prob(ratio.clamp(max=1 + clip_eps_high), tokens), ratio > 1 + clip_eps_high


def unclipped_surrogate(
    log_ratio: Float[Tensor, "batch time"], tokens: TokenBatch
) -> tuple[Float[Tensor, "batch time"], None]:
    """-r A: on policy the plain policy gradient, REINFORCE (Williams, 1992)."""
    return -log_ratio.exp() * tokens.advantages, None


def weighted_log_prob(
    weight: Float[Tensor, "batch time"], tokens: TokenBatch
) -> Float[Tensor, "batch time"]:
    """-stop_gradient(weight) A log(policy), whose gradient is that of `unclipped_surrogate` at a
    ratio of `weight`; 0 outside the mask."""
    log_probs = torch.where(tokens.mask, tokens.log_probs, 0.0)
    return -weight.detach() * tokens.advantages * log_probs


def by_sign(
    advantages: Float[Tensor, "batch time"], positive: float, negative: float
) -> Float[Tensor, "batch time"]:
    """`positive` where A > 0 and `negative` elsewhere, in the precision of the advantages."""
    choices = advantages.new_tensor([negative, positive])
    return choices[(advantages > 0).long()]


def pushed_out(
    moved: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    low: float,
    high: float,
) -> Bool[Tensor, "batch time"]:
    """Where something has left [low, high] on the side to which the advantage pushes it."""
    return ((moved > high) & (advantages > 0)) | ((moved < low) & (advantages < 0))
