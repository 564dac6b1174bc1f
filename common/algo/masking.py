"""Sums and means over the positions that count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
