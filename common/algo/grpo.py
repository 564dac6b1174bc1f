"""GRPO as one row of four choices: what the experiments that are not about the loss learn with."""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

from common.algo.advantages import group_advantages
from common.algo.aggregation import sequence_mean
from common.algo.clip import clipped_surrogate
from common.algo.objective import Objective
from common.algo.ratio import token_log_ratio


@runtime_checkable
class ClipRange(Protocol):
    """Flags that say how far a ratio may go from 1."""

    @property
    def clip_eps(self) -> float: ...

    @property
    def clip_eps_high(self) -> float | None: ...


def grpo(flags: ClipRange) -> Objective:
    """Advantages in standard deviations of the group, token ratios, clipping, sequence means.

    DeepSeekMath, arXiv 2402.03300.
    """
    eps, eps_high = flags.clip_eps, flags.clip_eps_high or flags.clip_eps
    return Objective(
        advantages=group_advantages,
        log_ratio=token_log_ratio,
        clip=partial(clipped_surrogate, clip_eps=eps, clip_eps_high=eps_high),
        aggregate=sequence_mean,
    )
