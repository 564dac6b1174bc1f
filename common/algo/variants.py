"""The objectives of the literature by name: what `--objective` chooses from.

A row is a function from a run's flags to an `Objective`. Where its paper has other bounds than
those of GRPO, `own_defaults` says so; a flag that the user gives beats them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from common.algo.advantages import (
    group_advantages,
    leave_one_out_advantages,
    mean_centred_advantages,
    within_groups,
)
from common.algo.aggregation import constant_length_mean, sequence_mean, token_mean
from common.algo.objective import Extras, Objective
from common.algo.surrogate import (
    clipped_surrogate,
    clipped_weight,
    sequence_log_ratio,
    token_log_ratio,
    unclipped_surrogate,
)


@runtime_checkable
class ObjectiveFlags(Protocol):
    """The flags that the rows look at."""

    @property
    def clip_eps(self) -> float: ...

    @property
    def clip_eps_high(self) -> float | None: ...

    @property
    def max_completion_tokens(self) -> int: ...


Row = TypeVar("Row", bound=Callable[..., Objective])


def own_defaults(**defaults: float) -> Callable[[Row], Row]:
    """Say what flags are for an objective where the user gives none."""

    def remember(row: Row) -> Row:
        vars(row)["own_defaults"] = defaults
        return row

    return remember


def defaults_of(row: Callable[..., Objective]) -> Mapping[str, Any]:
    return getattr(row, "own_defaults", {})


def grpo(flags: ObjectiveFlags) -> Objective:
    """GRPO: advantages in standard deviations of the group, token ratios, sequence means.

    DeepSeekMath, arXiv 2402.03300.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=sequence_mean,
    )


def dr_grpo(flags: ObjectiveFlags) -> Objective:
    """Dr. GRPO: advantages without the deviation, lengths without the length.

    The loss is the sum over tokens / (N x L_max): N counts every sequence of the optimizer batch,
    also those with zero advantage and empty ones; L_max is `--max-completion-tokens`.
    Understanding R1-Zero-Like Training, arXiv 2503.20783.
    """
    return Objective(
        advantages=partial(within_groups, advantages=mean_centred_advantages),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=partial(constant_length_mean, max_tokens=flags.max_completion_tokens),
        extras=Extras(
            advantage_moments,
            policy_loss="dr_component_policy",
            kl_loss="dr_component_kl",
            notes={"dr_grpo/critic_type": "group mean, no value network"},
        ),
    )


@own_defaults(clip_eps=0.2, clip_eps_high=0.28)
def dapo(flags: ObjectiveFlags) -> Objective:
    """DAPO: clips higher above 1 than below, and counts every token of the batch the same.

    The paper goes with `--dynamic-sampling`, `--overlong penalty` and no KL. arXiv 2503.14476.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=token_mean,
    )


@own_defaults(clip_eps=3e-4, clip_eps_high=4e-4)
def gspo(flags: ObjectiveFlags) -> Objective:
    """GSPO: one ratio per sequence, the geometric mean, and bounds that fit it.

    arXiv 2507.18071.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=sequence_log_ratio,
        surrogate=_clipped(flags),
        aggregate=sequence_mean,
    )


@own_defaults(clip_eps_high=0.3)
def cispo(flags: ObjectiveFlags) -> Objective:
    """CISPO: the ratio as a bounded weight without gradient, so that every token keeps its own.

    MiniMax-M1, arXiv 2506.13585.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(clipped_weight, clip_eps_high=_upper(flags)),
        aggregate=token_mean,
    )


def rloo(flags: ObjectiveFlags) -> Objective:
    """RLOO: the mean of the others as baseline, nothing clipped, sums over tokens.

    Back to Basics, arXiv 2402.14740.
    """
    del flags
    return Objective(
        advantages=partial(within_groups, advantages=leave_one_out_advantages),
        log_ratio=token_log_ratio,
        surrogate=unclipped_surrogate,
        aggregate=partial(constant_length_mean, max_tokens=1),
    )


VARIANTS: Mapping[str, Callable[[ObjectiveFlags], Objective]] = {
    row.__name__: row for row in (grpo, dr_grpo, dapo, gspo, cispo, rloo)
}


def advantage_moments(advantages: Sequence[float]) -> Mapping[str, float]:
    """Variance and skewness (third standardised moment, 0 for a constant) of a batch's advantages.

    GRPO forces the variance within each group to 1; here it says how much there was to learn.
    """
    values = np.array(advantages)
    deviations = values - values.mean()
    variance = float(np.mean(deviations**2))
    skewness = float(np.mean(deviations**3)) / variance**1.5 if variance else 0.0
    return {"dr_grpo/advantages_variance": variance, "dr_grpo/advantages_skewness": skewness}


def _clipped(flags: ObjectiveFlags) -> Callable[..., Any]:
    return partial(clipped_surrogate, clip_eps=flags.clip_eps, clip_eps_high=_upper(flags))


def _upper(flags: ObjectiveFlags) -> float:
    return flags.clip_eps_high or flags.clip_eps
