"""How far the policy has moved since it sampled: the second of four choices.

Each function takes log-probs, the log-probs at sampling time and the mask, and gives log(ratio) per
token; 0 and without gradient outside the mask, whatever stands there.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.kl import bounded
from common.algo.masking import masked_mean


def token_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Every token has the ratio of its own probabilities. PPO, arXiv 1707.06347."""
    return bounded(torch.where(mask, log_probs - log_probs_old, 0.0))


def sequence_log_ratio(
    log_probs: Float[Tensor, "batch time"],
    log_probs_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Every token has its sequence's ratio, the geometric mean over its tokens.

    Goes with `sequence_mean`. GSPO, arXiv 2507.18071, equation 7.
    """
    mean = masked_mean(log_probs - log_probs_old, mask)
    return torch.where(mask, bounded(mean)[:, None], 0.0)
