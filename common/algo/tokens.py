"""What the functions of an objective are given."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.aggregation import BatchTotals


@dataclass(frozen=True)
class TokenBatch:
    """What is known of the tokens of a micro-batch when their loss is computed.

    Log-probs are in nats, and mean nothing where `mask` is False.
    """

    log_probs: Float[Tensor, "batch time"]
    """Under the policy that learns: the only ones with a gradient."""
    log_probs_old: Float[Tensor, "batch time"]
    """Under the same policy before the first update from this batch, as the learner computes it."""
    log_probs_sampler: Float[Tensor, "batch time"]
    """Under what sampled, as the sampler saw them."""
    log_probs_ref: Float[Tensor, "batch time"] | None
    """Under the model that the run started from, if it is there."""
    advantages: Float[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    """True on the tokens that the policy sampled and learns from."""
    totals: BatchTotals
    """Of the optimizer batch that this is a part of."""
