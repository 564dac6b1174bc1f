"""A policy-gradient objective as four choices; the variants of the literature are its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.aggregation import BatchTotals


@dataclass(frozen=True)
class Objective:
    """Four functions that say what is maximised. CONTRIBUTING has a table of combinations."""

    advantages: Callable[[Tensor], Tensor]
    """From the rewards of a group to one advantage each (`common.algo.advantages`)."""
    log_ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From log-probs, old log-probs and mask to log(ratio) per token (`common.algo.ratio`)."""
    clip: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """From log-ratio, log-probs and advantages to loss per token, and which tokens were clipped
    (`common.algo.clip`)."""
    aggregate: Callable[[Tensor, Tensor, BatchTotals], Tensor]
    """From loss per token, mask and totals of the optimizer batch to the micro-batch's share
    (`common.algo.aggregation`)."""

    def per_token(
        self,
        log_probs: Float[Tensor, "batch time"],
        log_probs_old: Float[Tensor, "batch time"],
        advantages: Float[Tensor, " batch"],
        mask: Bool[Tensor, "batch time"],
    ) -> tuple[
        Float[Tensor, "batch time"], Float[Tensor, "batch time"], Bool[Tensor, "batch time"]
    ]:
        """Loss per token, ratio per token, and which tokens were clipped."""
        log_ratio = self.log_ratio(log_probs, log_probs_old, mask)
        loss, clipped = self.clip(log_ratio, log_probs, advantages)
        return loss, log_ratio.detach().exp(), clipped
