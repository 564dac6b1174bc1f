"""How much better a completion is than the others of its group.

An objective sees a whole batch, with all that is known of it before it is learned from. Most
compare within groups: their functions take the rewards of one and give one advantage per reward. A
group of equal rewards gets exactly zero, decided by comparison: the mean of fifteen rewards of 17.3
is not 17.3 in floating point. Fewer than two rewards have no baseline and raise `ValueError`.
`common.algo.batch_advantages` has those that look beyond a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ComparedBatch:
    """All rollouts of a step side by side, scored by rewards and by models."""

    rewards: Float[Tensor, " batch"]
    """The weighted sums that are to be maximised, in float64."""
    scores: Mapping[str, Float[Tensor, " batch"]]
    """What each reward function gave, by name; NaN where it does not apply to the task."""
    groups: Int[Tensor, " batch"]
    """The number of the group that a rollout belongs to, from 0 and in order."""
    turns: Int[Tensor, "batch time"]
    """The turn of the policy that a token was sampled in, from 0; -1 where it was given."""
    kl: Float[Tensor, "batch time"] | None
    """log(policy / reference) of each token in nats (k1), if there is a reference."""
    mask: Bool[Tensor, "batch time"]
    """True on the tokens that are learned from."""
    entropy: Float[Tensor, "batch time"] | None = None
    """Of the policy where it sampled each token, in nats, if the learner has computed it."""
    penalties: Float[Tensor, "batch time"] | None = None
    """What is taken from the reward at each token, as a KL in the reward is; 0 outside the mask."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much the scores count in the rewards, by name; those that are only logged are not in."""

    @property
    def returns(self) -> Float[Tensor, " batch"]:
        """Rewards less the penalties of all tokens."""
        if self.penalties is None:
            return self.rewards
        return self.rewards - self.penalties.to(self.rewards).sum(dim=-1)

    def by_group(self, values: Float[Tensor, " batch"]) -> tuple[Float[Tensor, " group"], ...]:
        """What belongs to the rollouts of each group.

        Raises `ValueError` for groups that are not in order, whose rollouts may be apart.
        """
        if bool((self.groups.diff() < 0).any()):
            raise ValueError(f"groups are not in order and side by side: {self.groups.tolist()}")
        _, sizes = self.groups.unique_consecutive(return_counts=True)
        return values.split(sizes.tolist())


def within_groups(
    batch: ComparedBatch, *, advantages: Callable[[Tensor], Tensor]
) -> Float[Tensor, " batch"]:
    """One advantage per rollout, from the returns of its own group alone."""
    return torch.cat([advantages(returns) for returns in batch.by_group(batch.returns)])


def with_kl_in_reward(
    batch: ComparedBatch, *, advantages: Callable[[ComparedBatch], Tensor], kl_weight: float
) -> Tensor:
    """The advantages of rewards from which the KL of each token has been taken.

    It is k1 between the policy that sampled and its reference, times `kl_weight`: a number without
    gradient, so that the policy gradient is that of E[reward] - kl_weight * KL(policy || reference)
    of whole completions. For k2 and k3 it would lack their own gradient (arXiv 2512.21852).
    """
    assert batch.kl is not None
    return advantages(replace(batch, penalties=kl_weight * batch.kl))


# Keeps a group whose rewards differ by rounding alone from being blown up to unit variance.
STD_EPSILON = 1e-4


def group_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """GRPO: (reward - mean) / (standard deviation + epsilon), with Bessel's correction.

    DeepSeekMath, arXiv 2402.03300.
    """
    if without_signal(rewards):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPSILON)


def mean_centred_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """Dr. GRPO: reward - mean. Dividing by the deviation favours tasks that are nearly always or
    nearly never solved.

    Understanding R1-Zero-Like Training, arXiv 2503.20783.
    """
    if without_signal(rewards):
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()


def leave_one_out_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """RLOO: reward - mean of the *other* rewards, a baseline that is independent of the sample.

    Back to Basics, arXiv 2402.14740.
    """
    if without_signal(rewards):
        return torch.zeros_like(rewards)
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


# A mean so much below the largest reward is 0: of a group of rewards that are not negative it is at
# least a share of it.
ROUNDING = 1e-6


def mean_normalised_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """MaxRL: (reward - mean) / mean, and 0 where the mean is not positive but for rounding.

    With rewards of 0 and 1 a task that is solved in a share p of the attempts weighs 1 / p as much,
    as in the logarithm of p. For rewards that are not negative. arXiv 2602.02710.
    """
    mean = rewards.mean()
    if without_signal(rewards) or mean <= ROUNDING * rewards.abs().max():
        return torch.zeros_like(rewards)
    return (rewards - mean) / mean


def best_alone_advantages(rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    """pass@k with k the size of the group: what the best of k loses without this one.

    That is best - second best for the best alone, and 0 for all others, and for all where two are
    best. Optimizing Language Models for Inference Time Objectives, arXiv 2503.19595.
    """
    if without_signal(rewards):
        return torch.zeros_like(rewards)
    second, best = rewards.sort().values[-2:]
    return torch.where(rewards == best, best - second, 0.0)


def without_signal(rewards: Float[Tensor, " group"]) -> bool:
    """Whether all are equal. Raises `ValueError` for fewer than two."""
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two rewards, got {len(rewards)}")
    return bool((rewards == rewards[0]).all())
