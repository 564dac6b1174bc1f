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
    best_alone_advantages,
    group_advantages,
    leave_one_out_advantages,
    mean_centred_advantages,
    mean_normalised_advantages,
    within_groups,
)
from common.algo.aggregation import constant_length_mean, sequence_mean, token_mean
from common.algo.batch_advantages import (
    batch_scaled_advantages,
    decoupled_advantages,
    length_weighted_advantages,
    over_all_tokens,
    reward_to_go,
)
from common.algo.objective import Extras, Objective
from common.algo.sampler_surrogate import (
    divergence_masked_weight,
    gamma_weight,
    probability_masked_ratio,
)
from common.algo.surrogate import (
    clipped_surrogate,
    clipped_weight,
    dual_clipped_surrogate,
    geometric_mean_surrogate,
    sequence_log_ratio,
    sequence_token_log_ratio,
    soft_gated_surrogate,
    token_log_ratio,
    unclipped_surrogate,
)
from common.errors import UserError


@runtime_checkable
class ObjectiveFlags(Protocol):
    """The flags that the rows look at."""

    @property
    def clip_eps(self) -> float: ...

    @property
    def clip_eps_high(self) -> float | None: ...

    @property
    def max_completion_tokens(self) -> int: ...

    @property
    def kl_in(self) -> str: ...


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


def lite_ppo(flags: ObjectiveFlags) -> Objective:
    """Lite PPO: the mean of the group, the deviation of the batch, and every token the same.

    Part I: Tricks or Traps?, arXiv 2508.08221.
    """
    return Objective(
        advantages=batch_scaled_advantages,
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=token_mean,
    )


def max_rl(flags: ObjectiveFlags) -> Objective:
    """MaxRL: advantages in means of the group, sums over tokens as in Dr. GRPO.

    On policy, with rewards of 0 and 1, it is the gradient of the likelihood of right answers, as
    far as a group can tell. arXiv 2602.02710.
    """
    return Objective(
        advantages=partial(within_groups, advantages=mean_normalised_advantages),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=partial(constant_length_mean, max_tokens=flags.max_completion_tokens),
    )


def gdpo(flags: ObjectiveFlags) -> Objective:
    """GDPO: GRPO whose rewards are each compared on their own before they are added up.

    arXiv 2601.05242. Raises `UserError` for a KL in the reward, which is none of them.
    """
    if flags.kl_in == "reward":
        raise UserError(
            "--kl-in reward: gdpo compares rewards one by one, and a KL is none; use --kl-in loss"
        )
    return Objective(
        advantages=decoupled_advantages,
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=sequence_mean,
    )


def pass_at_k(flags: ObjectiveFlags) -> Objective:
    """pass@k, with k the size of the group: the best by its lead, sums over tokens as in Dr. GRPO.

    On policy it is the gradient of the best reward of a group. arXiv 2503.19595.
    """
    return Objective(
        advantages=partial(within_groups, advantages=best_alone_advantages),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=partial(constant_length_mean, max_tokens=flags.max_completion_tokens),
    )


def reinforce_pp(flags: ObjectiveFlags) -> Objective:
    """REINFORCE++: rewards to go in deviations of all tokens of the batch, no groups.

    The paper goes with `--kl-in reward`. arXiv 2501.03262.
    """
    return Objective(
        advantages=partial(over_all_tokens, values=reward_to_go),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=token_mean,
    )


def reinforce_pp_baseline(flags: ObjectiveFlags) -> Objective:
    """REINFORCE++ with the mean of the group as baseline. arXiv 2501.03262."""
    centred = partial(within_groups, advantages=mean_centred_advantages)
    return Objective(
        advantages=partial(over_all_tokens, values=centred),
        log_ratio=token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=token_mean,
    )


def opo(flags: ObjectiveFlags) -> Objective:
    """OPO: RLOO with a baseline in which long completions count more.

    The paper goes with one update per batch and neither KL nor entropy. arXiv 2505.23585.
    """
    del flags
    return Objective(
        advantages=length_weighted_advantages,
        log_ratio=token_log_ratio,
        surrogate=unclipped_surrogate,
        aggregate=partial(constant_length_mean, max_tokens=1),
    )


def grpo_dual_clip(flags: ObjectiveFlags) -> Objective:
    """GRPO in which a token with A < 0 costs three times |A| at most, however likely it became.

    Mastering Complex Control in MOBA Games, arXiv 1912.09729.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(dual_clipped_surrogate, **_range(flags), dual_clip=3.0),
        aggregate=sequence_mean,
    )


def sapo(flags: ObjectiveFlags) -> Objective:
    """SAPO: a gradient that fades with the distance from the old policy, instead of a clip range.

    arXiv 2511.20347.
    """
    del flags
    gate = partial(soft_gated_surrogate, temperature_positive=1.0, temperature_negative=1.05)
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=gate,
        aggregate=sequence_mean,
    )


@own_defaults(clip_eps=3e-4, clip_eps_high=4e-4)
def gspo_token(flags: ObjectiveFlags) -> Objective:
    """GSPO-token: GSPO's ratio and clip range, and for each token a gradient of its own.

    It differs from GSPO where the tokens of a sequence have different advantages.
    arXiv 2507.18071, section 4.3.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=sequence_token_log_ratio,
        surrogate=_clipped(flags),
        aggregate=sequence_mean,
    )


@own_defaults(clip_eps=0.4)
def gmpo(flags: ObjectiveFlags) -> Objective:
    """GMPO: the geometric mean of a sequence's clipped ratios in place of their arithmetic mean.

    arXiv 2507.20673.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(geometric_mean_surrogate, **_range(flags)),
        aggregate=sequence_mean,
    )


@own_defaults(clip_eps=2e-3, clip_eps_high=2.5e-3)
def luspo(flags: ObjectiveFlags) -> Objective:
    """LUSPO: GSPO in which each sequence counts by its length, so that no token counts less.

    arXiv 2602.05261.
    """
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=sequence_log_ratio,
        surrogate=_clipped(flags),
        aggregate=partial(constant_length_mean, max_tokens=1),
    )


@own_defaults(clip_eps=0.15)
def dppo_tv(flags: ObjectiveFlags) -> Objective:
    """DPPO with binary total variation: drops what its advantage has pushed away from the sampler
    by a probability of more than 0.15.

    Advantages and lengths as in Dr. GRPO. arXiv 2602.04879.
    """
    return Objective(
        advantages=partial(within_groups, advantages=mean_centred_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(divergence_masked_weight, **_range(flags), max_weight=20.0),
        aggregate=partial(constant_length_mean, max_tokens=flags.max_completion_tokens),
        uses_sampler=True,
    )


@own_defaults(clip_eps=0.3)
def ipo(flags: ObjectiveFlags) -> Objective:
    """IPO, INTELLECT policy optimization: drops what is further than a probability of 0.3 from the
    sampler, on either side.

    Documentation of prime-rl, whose penalty on the squared log-ratio is 0 by default.
    """
    return Objective(
        advantages=partial(within_groups, advantages=mean_centred_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(probability_masked_ratio, **_range(flags)),
        aggregate=token_mean,
        uses_sampler=True,
    )


def vespo(flags: ObjectiveFlags) -> Objective:
    """VESPO: weighs a sequence by a smooth function of its whole importance weight.

    arXiv 2602.10693.
    """
    del flags
    powers = {"power_positive": 2.0, "power_negative": 3.0}
    rates = {"rate_positive": 3.0, "rate_negative": 2.0}
    return Objective(
        advantages=partial(within_groups, advantages=group_advantages),
        log_ratio=token_log_ratio,
        surrogate=partial(gamma_weight, **powers, **rates),
        aggregate=token_mean,
        uses_sampler=True,
    )


VARIANTS: Mapping[str, Callable[[ObjectiveFlags], Objective]] = {
    row.__name__: row
    for row in (
        *(grpo, dr_grpo, dapo, gspo, cispo, rloo),
        *(grpo_dual_clip, sapo, gspo_token, gmpo, luspo, dppo_tv, ipo, vespo),
        *(lite_ppo, max_rl, gdpo, pass_at_k, reinforce_pp, reinforce_pp_baseline, opo),
    )
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
    return partial(clipped_surrogate, **_range(flags))


def _range(flags: ObjectiveFlags) -> dict[str, float]:
    return {"clip_eps": flags.clip_eps, "clip_eps_high": _upper(flags)}


def _upper(flags: ObjectiveFlags) -> float:
    return flags.clip_eps_high or flags.clip_eps
