"""What is measured of the tokens of a batch, as sums: each rank has those of its share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.kl import MAX_K3, no_penalty
from common.algo.objective import Objective
from common.replay_buffer import Experience, ExperienceBatch


@dataclass(frozen=True)
class Moments:
    """Count, mean, spread and largest of some values, without the values."""

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0
    """From the mean, added up."""
    largest: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray | Sequence[float]) -> Moments:
        numbers = np.asarray(values, dtype=np.float64)
        if not len(numbers):
            return cls()
        mean = float(numbers.mean())
        squared = float(((numbers - mean) ** 2).sum())
        return cls(len(numbers), mean, squared, float(numbers.max()))

    @property
    def std(self) -> float:
        return math.sqrt(self.squared_deviations / self.count)

    def plus(self, other: Moments) -> Moments:
        """Those of the values of both (Chan, Golub and LeVeque, 1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + apart * share,
            self.squared_deviations + other.squared_deviations + apart**2 * share * self.count,
            float(np.maximum(self.largest, other.largest)),
        )


@dataclass(frozen=True)
class ExperienceSums:
    """Over the sampled tokens of a batch, as far as they are known, before it is learned from."""

    kl: Moments
    """k3 of each token, where policy and reference have scored it."""
    bounded: int
    """Tokens whose penalty is bounded."""
    with_reference: int
    """Tokens that the reference has scored."""
    entropy: Moments
    mismatch: Moments
    """How far sampler and learner differ, in nats; of nothing unless the learner has scored."""
    slopes: tuple[float, float] | None
    """The squared slopes of the loss along all log-probs: those of the KL penalty and those of the
    policy's loss, at the first update from a batch. None without a penalty in the loss."""
    chosen: Moments
    """log(policy / reference), summed over a completion, of those with a positive advantage."""
    rejected: Moments
    """Of those with a negative advantage."""

    @classmethod
    def of(
        cls,
        experiences: Sequence[Experience],
        totals: BatchTotals,
        kl_weight: float,
        objective: Objective,
    ) -> ExperienceSums:
        """From a share of a batch; `totals` are those of all of it."""
        compared = [one for one in experiences if one.log_probs_ref is not None]
        ref = _sampled_tokens(compared, "log_probs_ref")
        old = _sampled_tokens(compared, "log_probs_old")
        kl = np.empty(0)
        if len(old) == len(ref):
            kl = np.expm1(ref - old) - (ref - old)
        shifts = _shifts(compared)
        return cls(
            Moments.of(kl),
            int((kl > MAX_K3).sum()),
            len(ref),
            Moments.of(_sampled_tokens(experiences, "entropy")),
            Moments.of(mismatches(experiences)),
            _squared_slopes(experiences, totals, kl_weight, objective),
            Moments.of([shift for advantage, shift in shifts if advantage > 0]),
            Moments.of([shift for advantage, shift in shifts if advantage < 0]),
        )

    def plus(self, other: ExperienceSums) -> ExperienceSums:
        """Those of both shares."""
        slopes = None
        if self.slopes is not None and other.slopes is not None:
            slopes = (self.slopes[0] + other.slopes[0], self.slopes[1] + other.slopes[1])
        return ExperienceSums(
            self.kl.plus(other.kl),
            self.bounded + other.bounded,
            self.with_reference + other.with_reference,
            self.entropy.plus(other.entropy),
            self.mismatch.plus(other.mismatch),
            slopes,
            self.chosen.plus(other.chosen),
            self.rejected.plus(other.rejected),
        )

    def metrics(self) -> dict[str, float]:
        """`rollouts/*` of tokens, and `rewards/*` of how far the policy has moved from its
        reference on good and on bad completions.
        """
        metrics: dict[str, float] = {}
        if self.mismatch.count:
            metrics["rollouts/logprob_mismatch_mean"] = self.mismatch.mean
            metrics["rollouts/logprob_mismatch_max"] = self.mismatch.largest
        if self.entropy.count:
            metrics["rollouts/entropy_mean"] = self.entropy.mean
        if self.kl.count == self.with_reference > 0:
            metrics |= {
                "rollouts/kl_mean": self.kl.mean,
                "rollouts/kl_std": self.kl.std,
                "rollouts/kl_max": self.kl.largest,
                "rollouts/kl_bounded_fraction": self.bounded / self.kl.count,
            }
        if self.slopes is not None and (both := sum(self.slopes)):
            metrics["rollouts/kl_gradient_share"] = self.slopes[0] / both
        if self.chosen.count and self.rejected.count:
            metrics |= {
                "rewards/chosen": self.chosen.mean,
                "rewards/rejected": self.rejected.mean,
                "rewards/margins": self.chosen.mean - self.rejected.mean,
            }
        return metrics


def mismatches(experiences: Sequence[Experience]) -> np.ndarray:
    """Of sampler and learner at all sampled tokens; empty unless the learner has scored them."""
    known = [one.mismatch for one in experiences if one.mismatch is not None]
    return torch.cat(known).numpy() if known else np.empty(0)


def _sampled_tokens(experiences: Sequence[Experience], name: str) -> np.ndarray:
    """All values of that name in a row, float64, of the experiences that have them."""
    rows = [
        values[experience.sampled]
        for experience in experiences
        if (values := getattr(experience, name)) is not None
    ]
    return torch.cat(rows).double().numpy() if rows else np.empty(0)


def _squared_slopes(
    experiences: Sequence[Experience], totals: BatchTotals, kl_weight: float, objective: Objective
) -> tuple[float, float] | None:
    """As `ExperienceSums.slopes`. At a ratio of 1 those of the policy's loss are the advantages, as
    the objective aggregates them."""
    if not kl_weight or objective.kl_penalty is no_penalty:
        return None
    if not experiences:
        return 0.0, 0.0
    batch = ExperienceBatch.collate(experiences, torch.device("cpu"))
    if batch.log_probs_old is None or batch.log_probs_ref is None or batch.advantages is None:
        return None
    log_probs = batch.log_probs_old.double().requires_grad_()
    tokens = batch.tokens(log_probs, totals)

    def squared(per_token: Tensor) -> float:
        loss = objective.aggregate(per_token, tokens.mask, tokens.totals)
        (slopes,) = torch.autograd.grad(loss, log_probs)
        return float(slopes.square().sum())

    of_penalty = squared(kl_weight * objective.kl_penalty(tokens))
    return of_penalty, squared(tokens.advantages * log_probs)


def _shifts(experiences: Iterable[Experience]) -> list[tuple[float, float]]:
    """Advantage and log(policy / reference) of each completion. One of which no token is learned
    from has none."""
    return [
        (
            float(one.advantages.mean()),
            float((one.log_probs_old - one.log_probs_ref).double().sum()),
        )
        for one in experiences
        if one.log_probs_old is not None
        and one.log_probs_ref is not None
        and one.advantages is not None
        and one.sampled.any()
    ]
