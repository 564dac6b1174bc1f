"""What makes up for a sampler that is not quite the policy that learns.

Another engine, another precision or weights that are some steps old sample from mu, where the loss
takes tokens for those of pi_old. Each function gives the weight of every token in the policy's
loss, made of w = pi_old / mu. 0 drops a token, which stays in all denominators: what is dropped
does not change what the others count for. Weights have no gradient. Outside the mask they mean
nothing, but are finite whatever stands there; NaN within it is handed on.

Bounds are inclusive. `CORRECTIONS` has the functions by name, with the bounds that are usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from common.algo.aggregation import masked_mean, masked_sum
from common.algo.kl import MAX_LOG_RATIO, bounded
from common.algo.tokens import TokenBatch


def token_truncated(tokens: TokenBatch, *, cap: float) -> Float[Tensor, "batch time"]:
    """min(w, cap) of each token: truncated importance sampling, which drops nothing.

    F. Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    return _log_weights(tokens).exp().clamp(max=cap)


def token_masked(tokens: TokenBatch, *, low: float, high: float) -> Float[Tensor, "batch time"]:
    """w of each token, which is dropped where w is outside the bounds.

    IcePop, Every Step Evolves, arXiv 2510.18855.
    """
    weights = _log_weights(tokens).exp()
    return _kept_within(weights, weights, low, high)


def sequence_truncated(tokens: TokenBatch, *, cap: float) -> Float[Tensor, "batch time"]:
    """The product of w over a sequence, at most `cap`, for each of its tokens.

    Exact but for the cap, and of a variance that grows with the length. Sequence-level truncated
    importance sampling, J. Liu et al., "When Speed Kills Stability" (2025).
    """
    return _products(tokens).clamp(max=cap)


def sequence_masked(tokens: TokenBatch, *, low: float, high: float) -> Float[Tensor, "batch time"]:
    """The product of w over a sequence, which is dropped where that is outside the bounds.

    Sequence-level masked importance sampling, J. Liu et al., "When Speed Kills Stability" (2025).
    """
    products = _products(tokens)
    return _kept_within(products, products, low, high)


def sequence_geometric(
    tokens: TokenBatch, *, low: float, high: float
) -> Float[Tensor, "batch time"]:
    """w of each token; a sequence whose geometric mean of w is outside the bounds is dropped.

    The mean of log(w), not its sum, so that bounds mean the same at any length. J. Liu et al.,
    "When Speed Kills Stability" (2025).
    """
    log_weights = _log_weights(tokens)
    means = masked_mean(log_weights, tokens.mask).exp()[:, None]
    return _kept_within(log_weights.exp(), means, low, high)


def opsm(tokens: TokenBatch, *, cap: float) -> Float[Tensor, "batch time"]:
    """1, or 0 where the advantage is negative and the policy has left the sequence behind.

    It has where the mean of log(mu / pi) over the sequence exceeds `cap`, in nats, under the policy
    as it is now. Off-policy sequence masking, DeepSeek-V3.2, arXiv 2512.02556.
    """
    shift = masked_mean(tokens.log_probs_sampler - tokens.log_probs, tokens.mask)
    shift = shift.detach()[:, None].expand(tokens.mask.shape)
    kept = torch.where(shift.isnan(), shift, 1.0)
    return torch.where((tokens.advantages < 0) & (shift > cap), 0.0, kept)


CORRECTIONS: Mapping[str, partial[Tensor]] = {
    "token_truncated": partial(token_truncated, cap=2.0),
    "token_masked": partial(token_masked, low=0.5, high=5.0),
    "sequence_truncated": partial(sequence_truncated, cap=2.0),
    "sequence_masked": partial(sequence_masked, low=0.5, high=2.0),
    "sequence_geometric": partial(sequence_geometric, low=0.99, high=1.01),
    "opsm": partial(opsm, cap=0.5),
}

# Their weights are made of pi_old / mu, and 1 where mu takes the place of pi_old.
OF_OLD_POLICY = CORRECTIONS.keys() - {"opsm"}


def _log_weights(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    """log(pi_old / mu) in nats, at most `MAX_LOG_RATIO` either way; 0 outside the mask."""
    log_weights = tokens.log_probs_old - tokens.log_probs_sampler
    return bounded(torch.where(tokens.mask, log_weights, 0.0), MAX_LOG_RATIO).detach()


def _products(tokens: TokenBatch) -> Float[Tensor, "batch time"]:
    total = bounded(masked_sum(_log_weights(tokens), tokens.mask), MAX_LOG_RATIO)
    return total.exp()[:, None].expand(tokens.mask.shape)


def _kept_within(
    weights: Float[Tensor, "batch time"], judged: Float[Tensor, "batch _"], low: float, high: float
) -> Float[Tensor, "batch time"]:
    """The weights, 0 where what is `judged` is outside the bounds; NaN is outside of none."""
    return torch.where((judged < low) | (judged > high), 0.0, weights)
