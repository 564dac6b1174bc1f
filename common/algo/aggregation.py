"""From losses per token to the loss of an optimizer batch.

Each function gives the share of a micro-batch. Denominators are counted over the whole optimizer
batch, so that shares add up to its loss however it was split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class BatchTotals:
    """What an optimizer batch holds, over all its micro-batches and ranks."""

    sequences: int
    """All of them, those with zero advantage and empty ones included."""
    tokens: int
    """Sampled tokens."""


# From losses per token, their mask and the optimizer batch's totals to the micro-batch's share.
Aggregate = Callable[[Tensor, Tensor, BatchTotals], Tensor]


def sequence_mean(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], totals: BatchTotals
) -> Float[Tensor, ""]:
    """GRPO: the mean over sequences of the mean over their tokens, so that a token of a long
    sequence counts less. DeepSeekMath, arXiv 2402.03300, equation 3."""
    return masked_mean(per_token, mask).sum() / totals.sequences


def token_mean(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], totals: BatchTotals
) -> Float[Tensor, ""]:
    """DAPO: the mean over all tokens of the optimizer batch. arXiv 2503.14476, equation 8."""
    return masked_sum(per_token, mask).sum() / max(1, totals.tokens)


def constant_length_mean(
    per_token: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    totals: BatchTotals,
    *,
    max_tokens: int,
) -> Float[Tensor, ""]:
    """Dr. GRPO: the sum over tokens / (sequences x `max_tokens`), with the generation budget as a
    constant, so that every token counts the same whatever its sequence's length.

    Understanding R1-Zero-Like Training, arXiv 2503.20783.
    """
    return masked_sum(per_token, mask).sum() / (totals.sequences * max_tokens)


def masked_sum(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Sum over time. What the mask leaves out, NaN included, has no value and no gradient."""
    return torch.where(mask, values, 0.0).sum(dim=-1)


def masked_mean(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Mean over time; a row without a position that counts has mean 0."""
    return masked_sum(values, mask) / mask.sum(dim=-1).clamp(min=1)
