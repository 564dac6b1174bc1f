"""The advantages of each objective once more, as slow loops over Python floats written from its
paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Compared:
    """A batch of rollouts, group by group."""

    rewards: Sequence[float]
    groups: Sequence[int]
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """By name; None where one does not apply."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of the scores that the rewards are the sums of."""
    mask: Sequence[Sequence[int]] = ()
    """1 on the tokens that are learned from."""
    penalties: Sequence[Sequence[float]] = ()
    """What is taken from the reward at each token."""

    @property
    def returns(self) -> list[float]:
        if not self.penalties:
            return list(self.rewards)
        return [
            reward - math.fsum(taken)
            for reward, taken in zip(self.rewards, self.penalties, strict=True)
        ]


@dataclass(frozen=True)
class Settings:
    """What papers leave to choose; None where one has no such thing."""

    baseline: str | None
    std_epsilon: float | None
    std_ddof: int | None


Advantages = list[float] | list[list[float]]


def deviation(values: Sequence[float], settings: Settings) -> float:
    """With what is added to it."""
    assert settings.std_ddof is not None
    assert settings.std_epsilon is not None
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - settings.std_ddof)) + settings.std_epsilon


def centred(values: Sequence[float], groups: Sequence[int], baseline: str | None) -> list[float]:
    """Each value less the mean of its group, or of the others in it; 0 where all are equal."""
    found: list[float] = []
    for value, number in zip(values, groups, strict=True):
        group = [v for v, g in zip(values, groups, strict=True) if g == number]
        size, total = len(group), math.fsum(group)
        if size < 2:
            raise ValueError("no baseline")
        mean = total / size if baseline == "group_mean" else (total - value) / (size - 1)
        found.append(0.0 if len(set(group)) == 1 else value - mean)
    return found


def of_group(compared: Compared, settings: Settings) -> Advantages:
    """Less the baseline, and in standard deviations of the group where a paper has it so."""
    returns, groups = compared.returns, compared.groups
    found = centred(returns, groups, settings.baseline)
    if settings.std_epsilon is None:
        return found
    return [
        advantage / deviation([r for r, g in zip(returns, groups, strict=True) if g == n], settings)
        for advantage, n in zip(found, groups, strict=True)
    ]


def batch_deviation(compared: Compared, settings: Settings) -> Advantages:
    """Less the mean of the group, in standard deviations of all rewards."""
    found = centred(compared.returns, compared.groups, settings.baseline)
    return [advantage / deviation(compared.returns, settings) for advantage in found]


def group_mean(compared: Compared, settings: Settings) -> Advantages:
    """Less the mean of the group, in means of the group."""
    returns, groups = compared.returns, compared.groups
    found: list[float] = []
    for advantage, n in zip(centred(returns, groups, settings.baseline), groups, strict=True):
        group = [r for r, g in zip(returns, groups, strict=True) if g == n]
        mean = math.fsum(group) / len(group)
        positive = mean > 1e-6 * max(map(abs, group))
        found.append(advantage / mean if positive else 0.0)
    return found


def decoupled(compared: Compared, settings: Settings) -> Advantages:
    """The weighted sum of each score's own advantages, in standard deviations of the batch."""
    if compared.penalties:
        raise ValueError("no reward that they belong to")
    centred(compared.rewards, compared.groups, settings.baseline)
    sums = [0.0] * len(compared.rewards)
    for name, weight in compared.weights.items():
        scores = compared.scores[name]
        for number in set(compared.groups):
            at = [i for i, g in enumerate(compared.groups) if g == number and scores[i] is not None]
            if len(at) < 2:
                continue
            given = [float(scores[i] or 0.0) for i in at]
            own = of_group(Compared(given, [0] * len(at)), settings)
            for i, advantage in zip(at, own, strict=True):
                assert isinstance(advantage, float)
                sums[i] += weight * advantage
    mean, scale = math.fsum(sums) / len(sums), deviation(sums, settings)
    # The mean is 0 but for rounding, which would leave something to a group without a difference.
    assert abs(mean) < 1e-12
    return [total / scale for total in sums]


def best_of_others(compared: Compared, settings: Settings) -> Advantages:
    """The best reward of the group less the best without this rollout."""
    centred(compared.returns, compared.groups, settings.baseline)
    returns, found = compared.returns, []
    for i, number in enumerate(compared.groups):
        members = [j for j, g in enumerate(compared.groups) if g == number]
        best = max(returns[j] for j in members)
        found.append(best - max(returns[j] for j in members if j != i))
    return found


def length_weighted(compared: Compared, settings: Settings) -> Advantages:
    """Less the mean reward of the tokens of the group."""
    lengths, returns, found = [sum(row) for row in compared.mask], compared.returns, []
    centred(returns, compared.groups, settings.baseline)
    for i, number in enumerate(compared.groups):
        members = [j for j, g in enumerate(compared.groups) if g == number]
        tokens = [returns[j] for j in members for _ in range(lengths[j])]
        level = len({returns[j] for j in members}) == 1
        found.append(0.0 if level or not tokens else returns[i] - math.fsum(tokens) / len(tokens))
    return found


def all_tokens(compared: Compared, settings: Settings) -> Advantages:
    """In standard deviations of all tokens from their mean: the reward less the mean of the group,
    or without a baseline the reward less what is still to be taken from it."""
    to_go = [
        [reward] * len(row) for reward, row in zip(compared.rewards, compared.mask, strict=True)
    ]
    if settings.baseline == "group_mean":
        own = centred(compared.returns, compared.groups, settings.baseline)
        to_go = [[value] * len(row) for value, row in zip(own, compared.mask, strict=True)]
    elif compared.penalties:
        to_go = [
            [reward - math.fsum(row[t:]) for t in range(len(row))]
            for reward, row in zip(compared.rewards, compared.penalties, strict=True)
        ]
    tokens = [
        value
        for values, row in zip(to_go, compared.mask, strict=True)
        for value, kept in zip(values, row, strict=True)
        if kept
    ]
    if len(set(tokens)) < 2:
        return [[0.0] * len(row) for row in compared.mask]
    mean, scale = math.fsum(tokens) / len(tokens), deviation(tokens, settings)
    return [
        [(value - mean) / scale if kept else 0.0 for value, kept in zip(values, row, strict=True)]
        for values, row in zip(to_go, compared.mask, strict=True)
    ]


ESTIMATORS: Mapping[str, Callable[[Compared, Settings], Advantages]] = {
    "of_group": of_group,
    "batch_deviation": batch_deviation,
    "group_mean": group_mean,
    "decoupled": decoupled,
    "best_of_others": best_of_others,
    "length_weighted": length_weighted,
    "all_tokens": all_tokens,
}
