"""How much better a completion, or a token of it, is: by more than the rewards of its group.

Deviations have Bessel's correction and `STD_EPSILON` added, as those of a group have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.advantages import (
    STD_EPSILON,
    ComparedBatch,
    group_advantages,
    mean_centred_advantages,
    within_groups,
    without_signal,
)


def batch_scaled_advantages(batch: ComparedBatch) -> Float[Tensor, " batch"]:
    """Lite PPO: (reward - mean of the group) / standard deviation of the batch's rewards.

    Part I: Tricks or Traps?, arXiv 2508.08221.
    """
    centred = within_groups(batch, advantages=mean_centred_advantages)
    return centred / (batch.returns.std() + STD_EPSILON)


def decoupled_advantages(batch: ComparedBatch) -> Float[Tensor, " batch"]:
    """GDPO: each reward in standard deviations of its own group, then the weighted sum of them in
    standard deviations of the batch.

    A reward that does not apply to a rollout, or to no other of the group, adds nothing. The sum
    over a group is 0, so that the mean of the batch is, too, and is not subtracted. arXiv
    2601.05242.

    Raises `ValueError` for penalties at tokens, which belong to none of the rewards.
    """
    if batch.penalties is not None:
        raise ValueError("penalties at tokens belong to no reward that could be compared")
    total = torch.zeros_like(batch.rewards)
    for name, weight in batch.weights.items():
        groups = [_among_applicable(scores) for scores in batch.by_group(batch.scores[name])]
        total += weight * torch.cat(groups)
    return total / (total.std() + STD_EPSILON)


def _among_applicable(scores: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
    applies = ~scores.isnan()
    advantages = torch.zeros_like(scores)
    if applies.sum() > 1 or len(scores) < 2:
        advantages[applies] = group_advantages(scores[applies])
    return advantages


def length_weighted_advantages(batch: ComparedBatch) -> Float[Tensor, " batch"]:
    """OPO: reward - mean of the group in which each reward counts as often as it has tokens.

    It is the baseline of least variance if the gradients of tokens are orthogonal and of one size.
    arXiv 2505.23585.
    """
    lengths = batch.by_group(batch.mask.sum(dim=-1).to(batch.rewards))
    groups = zip(batch.by_group(batch.returns), lengths, strict=True)
    return torch.cat([_less_weighted_mean(returns, weights) for returns, weights in groups])


def _less_weighted_mean(
    rewards: Float[Tensor, " group"], weights: Float[Tensor, " group"]
) -> Float[Tensor, " group"]:
    if without_signal(rewards) or not weights.any():
        return torch.zeros_like(rewards)
    return rewards - (weights * rewards).sum() / weights.sum()


def reward_to_go(batch: ComparedBatch) -> Float[Tensor, "batch time"]:
    """At each token the reward, less the penalties of this token and of all that follow."""
    rewards = batch.rewards[:, None].expand(batch.mask.shape)
    if batch.penalties is None:
        return rewards
    penalties = batch.penalties.to(rewards)
    return rewards - penalties.flip(-1).cumsum(dim=-1).flip(-1)


def over_all_tokens(
    batch: ComparedBatch, *, values: Callable[[ComparedBatch], Tensor]
) -> Float[Tensor, "batch time"]:
    """REINFORCE++: (value - mean) / standard deviation over all tokens of the batch.

    `values` are one per rollout or per token. Values that are all equal give exactly zero. arXiv
    2501.03262.
    """
    given = values(batch)
    of_tokens = (given if given.ndim == 2 else given[:, None]).expand(batch.mask.shape)
    learned = of_tokens[batch.mask]
    if learned.numel() < 2 or without_signal(learned):
        return torch.zeros_like(of_tokens)
    normalised = (of_tokens - learned.mean()) / (learned.std() + STD_EPSILON)
    return torch.where(batch.mask, normalised, 0.0)


def of_top_entropy(
    batch: ComparedBatch, *, advantages: Callable[[ComparedBatch], Tensor], share: float
) -> Float[Tensor, "batch time"]:
    """The advantages of that share of the batch's tokens at which the policy was least sure, and 0
    for the others, which stay in all denominators.

    As many are kept as the share of the tokens is when rounded, one at least, and all that are
    level with the last of them. Beyond the 80/20 Rule, arXiv 2506.01939.

    Raises `ValueError` for a batch without entropies.
    """
    if batch.entropy is None:
        raise ValueError("the entropy of these tokens has not been computed")
    given = advantages(batch)
    of_tokens = (given if given.ndim == 2 else given[:, None]).expand(batch.mask.shape)
    return torch.where(_highest(batch.entropy, batch.mask, share), of_tokens, 0.0)


def _highest(
    values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], share: float
) -> Bool[Tensor, "batch time"]:
    among = values[mask]
    if not len(among):
        return mask
    count = max(1, round(share * len(among)))
    return mask & (values >= among.topk(count).values[-1])
