"""What was experienced, what of it waits, and in which batches it is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.algo.advantages import ComparedBatch
from common.algo.aggregation import BatchTotals
from common.algo.kl import kl_divergence_k1
from common.algo.tokens import TokenBatch
from common.models.device import moved
from common.models.kept_sets import KeptSets
from common.models.log_probs import AdaptersOff, TokenLogProbs
from common.rollout.outline import Outline
from common.rollout.trajectory import Group, Rollout, Trajectory

LogProbModel = TokenLogProbs | AdaptersOff

# What models say of an experience's tokens: None until they have.
SCORES = ("log_probs_old", "log_probs_ref", "entropy")
Waiting = TypeVar("Waiting")


@dataclass(eq=False)
class Experience:
    """One sequence to learn from. Log-probs and entropy are zero where `sampled` is False.

    Of the policy that sampled they are filled in by the first pass under it, which may be that of
    an optimizer step.
    """

    task_id: int
    token_ids: Int[Tensor, " time"]
    sampled: Bool[Tensor, " time"]
    turns: Int[Tensor, " time"]
    """The turn of the policy that a token was sampled in, from 0; -1 where it was given."""
    log_probs_sampler: Float[Tensor, " time"]
    """As the sampler saw them; compared with `log_probs_old` to find mismatches."""
    log_probs_old: Float[Tensor, " time"] | None
    """Under the policy that sampled, or the sampler's in their place; None until they are known."""
    kept: KeptSets | None = None
    """What a restricted sampler chose each token from: all log-probs are those of these sets."""
    scored_at: int | None = None
    """How many optimizer steps the policy that sampled had done; None where `log_probs_old` are the
    sampler's."""
    log_probs_ref: Float[Tensor, " time"] | None = None
    entropy: Float[Tensor, " time"] | None = None
    advantages: Float[Tensor, " time"] | None = None
    """Of each token, in float64: the sequence's on all of them, or one each where it is sampled."""
    holder: int | None = None
    """The rank that has tokens and log-probs; None where all have them. Elsewhere they are tensors
    without data, which nothing can be computed from, and None where the holder has none either."""

    @classmethod
    def from_trajectory(cls, task_id: int, trajectory: Trajectory) -> Experience:
        log_probs = trajectory.log_probs
        return cls(
            task_id,
            torch.tensor(trajectory.token_ids),
            trajectory.sampled_mask,
            trajectory.turns,
            log_probs_sampler=log_probs,
            log_probs_old=log_probs,
            kept=trajectory.kept,
        )

    @classmethod
    def from_outline(cls, task_id: int, trajectory: Trajectory) -> Experience:
        """One that another rank has."""
        nothing = elsewhere(len(trajectory))
        return cls(
            task_id,
            nothing.long(),
            trajectory.sampled_mask,
            trajectory.turns,
            log_probs_sampler=nothing,
            log_probs_old=nothing,
        )

    def forget(self) -> None:
        """Let go of what another rank has now."""
        nothing = elsewhere(len(self))
        self.token_ids, self.log_probs_sampler, self.kept = nothing.long(), nothing, None
        for name in SCORES:
            if getattr(self, name) is not None:
                setattr(self, name, nothing)

    @property
    def mismatch(self) -> Float[Tensor, " tokens"] | None:
        """How far sampler and learner differ about each sampled token, in nats, if it is known."""
        if self.scored_at is None or self.log_probs_old is None:
            return None
        difference = self.log_probs_old.double() - self.log_probs_sampler.double()
        return difference[self.sampled].abs()

    def __len__(self) -> int:
        return len(self.token_ids)


def elsewhere(count: int) -> Tensor:
    """So many numbers that another rank has."""
    return torch.empty(count, device="meta")


def blank_experience() -> Experience:
    """A sequence without a token to learn from: its loss is 0, and so is its gradient."""
    zeros = torch.zeros(2)
    return Experience(
        task_id=-1,
        token_ids=zeros.long(),
        sampled=zeros.bool(),
        turns=zeros.long() - 1,
        log_probs_sampler=zeros,
        log_probs_old=zeros,
        log_probs_ref=zeros,
        advantages=zeros,
    )


def experiences_from(groups: Sequence[Group], *, mask_truncated: bool = False) -> list[Experience]:
    """One experience per rollout, group by group.

    With `mask_truncated` a completion that did not end by itself has no token to learn from; its
    reward stays in the baseline of its group and its sequence in the denominator.

    Raises `ValueError` for a group of another rank that does not say of which.
    """
    experiences = [
        replace(
            _experience_from(group, rollout),
            log_probs_ref=rollout.log_probs_ref,
            holder=group.holder,
        )
        for group in groups
        for rollout in group.rollouts
    ]
    if not mask_truncated:
        return experiences
    truncated = [rollout.trajectory.truncated for group in groups for rollout in group.rollouts]
    return [
        replace(experience, sampled=torch.zeros_like(experience.sampled)) if cut else experience
        for experience, cut in zip(experiences, truncated, strict=True)
    ]


def _experience_from(group: Group, rollout: Rollout) -> Experience:
    if not isinstance(rollout, Outline):
        return Experience.from_trajectory(group.task.task_id, rollout.trajectory)
    if group.holder is None:
        raise ValueError(
            f"nothing says which rank has the group of task {group.task.task_id} whole: make it "
            "from another one with dataclasses.replace, which keeps its `holder`"
        )
    return Experience.from_outline(group.task.task_id, rollout.trajectory)


def side_by_side(groups: Sequence[Group], experiences: Sequence[Experience]) -> ComparedBatch:
    """The rollouts of all groups with their experiences, as advantages are made of them."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    sizes = torch.tensor([len(group.rollouts) for group in groups if group.rollouts])
    names = dict.fromkeys(chain.from_iterable(rollout.scores for rollout in rollouts))
    turns = [experience.turns for experience in experiences]
    mask = _padded([experience.sampled for experience in experiences])
    ref = _padded_if_known([experience.log_probs_ref for experience in experiences])
    old = _padded_if_known([experience.log_probs_old for experience in experiences])
    return ComparedBatch(
        rewards=torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64),
        scores={
            name: torch.tensor(
                [math.nan if (s := rollout.scores[name]) is None else s for rollout in rollouts],
                dtype=torch.float64,
            )
            for name in names
        },
        groups=torch.arange(len(sizes)).repeat_interleave(sizes),
        turns=pad_sequence(turns, batch_first=True, padding_value=-1),
        kl=None if old is None or ref is None else kl_divergence_k1(old, ref, mask),
        mask=mask,
        entropy=_padded_if_known([experience.entropy for experience in experiences]),
        weights={name: weight for one in rollouts for name, weight in one.weights.items()},
    )


def with_advantages(
    groups: Sequence[Group],
    experiences: Sequence[Experience],
    advantages: Callable[[ComparedBatch], Tensor],
) -> tuple[list[Group], list[Experience]]:
    """Groups and experiences with the advantages of an objective.

    A group has one per rollout: where tokens have their own, the mean of those that are not 0.
    """
    batch = side_by_side(groups, experiences)
    values = advantages(batch)
    if values.ndim == 1:
        of_rollouts = values.tolist()
        of_tokens = [a.expand(len(e)) for e, a in zip(experiences, values, strict=True)]
    else:
        values = torch.where(batch.mask, values, 0.0)
        of_rollouts = (values.sum(dim=-1) / (values != 0).sum(dim=-1).clamp(min=1)).tolist()
        of_tokens = [row[: len(e)] for e, row in zip(experiences, values, strict=True)]
    rest = iter(of_rollouts)
    return (
        [replace(group, advantages=[next(rest) for _ in group.rollouts]) for group in groups],
        [replace(e, advantages=a) for e, a in zip(experiences, of_tokens, strict=True)],
    )


@dataclass(frozen=True)
class ExperienceBatch:
    """Experiences padded on the right to the longest among them."""

    experiences: Sequence[Experience]
    token_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"]
    sampled: Bool[Tensor, "batch time"]
    log_probs_sampler: Float[Tensor, "batch time"]
    log_probs_old: Float[Tensor, "batch time"] | None
    log_probs_ref: Float[Tensor, "batch time"] | None
    advantages: Float[Tensor, "batch time"] | None
    kept: KeptSets | None = None
    """What the sampler chose each token from, if it was restricted."""
    on_policy: bool = False
    """Whether the policy is still the one that sampled."""

    @classmethod
    def collate(cls, experiences: Sequence[Experience], device: torch.device) -> ExperienceBatch:
        def padded(name: str) -> Tensor:
            return moved(_padded([getattr(experience, name) for experience in experiences]), device)

        lengths = torch.tensor([len(experience) for experience in experiences])
        time = torch.arange(int(lengths.max()))
        sampler = padded("log_probs_sampler")
        old = _padded_if_known([experience.log_probs_old for experience in experiences])
        ref = _padded_if_known([experience.log_probs_ref for experience in experiences])
        advantages = _padded_if_known([experience.advantages for experience in experiences])
        dtype = (sampler if old is None else old).dtype
        return cls(
            experiences,
            padded("token_ids"),
            moved(time < lengths[:, None], device),
            padded("sampled"),
            sampler,
            None if old is None else moved(old, device),
            None if ref is None else moved(ref, device),
            None if advantages is None else moved(advantages.to(dtype), device),
            _kept_of(experiences, device),
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    def tokens(self, log_probs: Float[Tensor, "batch time"], totals: BatchTotals) -> TokenBatch:
        """What the loss is made of, with the log-probs under the policy as it is now.

        On policy they are the old ones, too, and the experiences keep them as such. So the ratio is
        1: in low precision rounding, which differs with the shape of a batch, would move it out of
        a narrow clip range.

        Raises `ValueError` for experiences without advantages, and for those without old log-probs
        whose policy has moved.
        """
        if self.advantages is None:
            raise ValueError("nothing says which of these experiences are good: no advantages")
        old = self.log_probs_old
        if self.on_policy:
            old = log_probs.detach()
            for experience, row in zip(self.experiences, old, strict=True):
                if experience.log_probs_old is None:
                    experience.log_probs_old = row[: len(experience)]
        if old is None:
            raise ValueError(
                "no old log-probs: Learner.score computes them, before the first optimizer step"
            )
        return TokenBatch(
            log_probs,
            old,
            self.log_probs_sampler,
            self.log_probs_ref,
            self.advantages,
            self.sampled,
            totals,
        )

    def keep_entropy(self, entropy: Float[Tensor, "batch time"]) -> None:
        """Keep that of the policy that sampled with the experiences."""
        if self.on_policy:
            for experience, row in zip(self.experiences, entropy.detach(), strict=True):
                if experience.entropy is None:
                    experience.entropy = row[: len(experience)]


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


def _padded_if_known(rows: Sequence[Tensor | None]) -> Tensor | None:
    known = [row for row in rows if row is not None and not row.is_meta]
    return _padded(known) if len(known) == len(rows) else None


def _kept_of(experiences: Sequence[Experience], device: torch.device) -> KeptSets | None:
    if all(experience.kept is None for experience in experiences):
        return None
    kept = [experience.kept or KeptSets.empty(len(experience)) for experience in experiences]
    sizes = _padded([sets.sizes for sets in kept])
    return KeptSets(torch.cat([sets.token_ids for sets in kept]), sizes).to(device)


def totals_of(batch: Sequence[Experience]) -> BatchTotals:
    """The denominators of an optimizer batch."""
    tokens = sum(int(experience.sampled.sum()) for experience in batch)
    return BatchTotals(len(batch), tokens)


@dataclass(frozen=True)
class MicroBatchLimits:
    """How much goes through a model at a time: memory, and no number beyond rounding."""

    tokens: int
    """Rows times the longest of them, padding included; a longer sequence goes alone."""
    sequences: int | None = None
    """Rows, None for as many as `tokens` allow."""

    def hold(self, experiences: Sequence[Experience]) -> bool:
        """Whether they may go together."""
        count = len(experiences)
        if self.sequences is not None and count > self.sequences:
            return False
        return count <= 1 or count * max(map(len, experiences)) <= self.tokens


def micro_batches(
    experiences: Sequence[Experience], limits: MicroBatchLimits
) -> list[list[Experience]]:
    """What goes through a model together: a task's sequences wherever they fit, as what they have
    in common is computed once, and neighbours of similar length.

    Memory and speed are all that depends on it: losses are shares of the whole optimizer batch. The
    longest come first, so that memory that does not suffice runs out at once.
    """
    batches: list[list[Experience]] = []
    for task in _by_task(experiences):
        for part in [task] if limits.hold(task) else [[one] for one in task]:
            if batches and limits.hold(together := [*batches[-1], *part]):
                batches[-1] = together
            else:
                batches.append(part)
    return batches


def even_parts(experiences: Sequence[Experience], count: int) -> list[list[Experience]]:
    """The experiences in parts with as many tokens each, give or take a sequence.

    Tasks stay together but for those at the cuts.
    """
    parts: list[list[Experience]] = [[] for _ in range(count)]
    total, before = sum(map(len, experiences)), 0
    for experience in chain.from_iterable(_by_task(experiences)):
        middle = before + len(experience) / 2
        parts[int(count * middle / total)].append(experience)
        before += len(experience)
    return parts


def _by_task(experiences: Sequence[Experience]) -> list[list[Experience]]:
    """Each task's experiences, the longest first, and so the tasks among themselves."""
    tasks: dict[int, list[Experience]] = {}
    for experience in sorted(experiences, key=len, reverse=True):
        tasks.setdefault(experience.task_id, []).append(experience)
    return list(tasks.values())


Scored = tuple[Float[Tensor, " time"], Float[Tensor, " time"]]


@torch.no_grad()
def score_tokens(
    policy: LogProbModel,
    experiences: Sequence[Experience],
    limits: MicroBatchLimits,
    least_passes: int = 0,
) -> list[Scored]:
    """Log-probs and entropies of each experience's tokens under a model, on the CPU.

    With `least_passes` the model is gone through as often at least.
    """
    passes: list[tuple[list[Experience], Tensor, Tensor]] = []
    device = next(policy.parameters()).device
    split = micro_batches(experiences, limits)
    for together in split + [[blank_experience()]] * (least_passes - len(split)):
        batch = ExperienceBatch.collate(together, device)
        log_probs, entropy = policy(
            batch.token_ids, batch.attention_mask, batch.sampled, batch.kept
        )
        passes.append((together, log_probs, entropy))
    # Copied after all passes: a copy waits for the device.
    scored = {
        id(one): (of_one[: len(one)].clone(), entropy_of_one[: len(one)].clone())
        for together, log_probs, entropy in passes
        for one, of_one, entropy_of_one in zip(
            together, log_probs.cpu(), entropy.cpu(), strict=True
        )
    }
    return [scored[id(experience)] for experience in experiences]


class ReplayBuffer:
    """Experiences of the current step. With a limit, the oldest make room for the newest."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._items: list[Experience] = []

    def append(self, experience: Experience) -> None:
        self.extend([experience])

    def extend(self, experiences: Iterable[Experience]) -> None:
        self._items.extend(experiences)
        if self._limit is not None and len(self._items) > self._limit:
            del self._items[: len(self._items) - self._limit]

    def clear(self) -> None:
        self._items.clear()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Experience]:
        return iter(self._items)

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[list[Experience]]:
        """Each experience once, in shuffled optimizer batches; the last may be short."""
        order = rng.permutation(len(self._items)).tolist()
        for start in range(0, len(order), batch_size):
            yield [self._items[index] for index in order[start : start + batch_size]]


class WaitingBatches(Generic[Waiting]):
    """Whole batches that were sampled ahead, by the steps that are to learn from them.

    There is room for `limit`, and none makes room for another: a step has the batch of its number,
    or it is not that step.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: dict[int, Waiting] = {}

    def put(self, step: int, batch: Waiting) -> None:
        """Raises `ValueError` if there is one of that step, or no room."""
        if step in self._batches or len(self._batches) == self._limit:
            raise ValueError(f"no room for step {step} beside {sorted(self._batches)}")
        self._batches[step] = batch

    def forget_before(self, step: int) -> None:
        """Make room: what earlier steps have learned from is over."""
        self._batches = {n: batch for n, batch in self._batches.items() if n >= step}

    def __getitem__(self, step: int) -> Waiting:
        return self._batches[step]

    def __contains__(self, step: int) -> bool:
        return step in self._batches

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._batches))
