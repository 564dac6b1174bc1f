"""Conversations as tokens. Every token is born with the answer to: did the policy sample it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.models.kept_sets import KeptSets
from common.rewards.answers import is_tagged
from common.rewards.outcome import Failure
from common.rewards.transcript import Transcript
from common.tasks.task import Task

# Why a conversation ends that was cut at a limit of tokens, and one that no one can be blamed for:
# a tool broke it off, or a function of the user's could not say what it is worth.
TRUNCATED = frozenset({"length", "context", "max_length"})
UNSCORED = frozenset({"reward_error", "reward_timeout"})
ERRORED = frozenset({"tool_timeout", "error"}) | UNSCORED


@dataclass(frozen=True)
class Segment:
    """A run of tokens that were either all sampled by the policy or all given to it."""

    token_ids: tuple[int, ...]
    sampled: bool
    log_probs: tuple[float, ...] = ()
    """The sampler's log-probability of each sampled token; empty for given tokens."""
    kept: KeptSets | None = None
    """What a restricted sampler chose each token from."""

    def __post_init__(self) -> None:
        expected = len(self.token_ids) if self.sampled else 0
        if len(self.log_probs) != expected:
            raise ValueError(f"{len(self.log_probs)} log-probs where {expected} belong")
        if self.kept is not None and not self.kept.hold(self.token_ids):
            raise ValueError("a token is not in the set that it was sampled from")


@dataclass(frozen=True)
class Trajectory:
    """What the model read and wrote, in order. Ids, mask and log-probs all derive from segments."""

    segments: tuple[Segment, ...]
    stop_reason: str

    def __len__(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def token_ids(self) -> list[int]:
        return list(chain.from_iterable(segment.token_ids for segment in self.segments))

    @property
    def sampled_mask(self) -> Bool[Tensor, " time"]:
        """True on each token that the policy sampled."""
        return self._repeated([segment.sampled for segment in self.segments])

    @property
    def log_probs(self) -> Float[Tensor, " time"]:
        """The sampler's log-probability of each token, 0 where it was given."""
        of_sampled = list(chain.from_iterable(segment.log_probs for segment in self.segments))
        return torch.zeros(len(self)).masked_scatter(self.sampled_mask, torch.tensor(of_sampled))

    @property
    def kept(self) -> KeptSets | None:
        """What each token was chosen from, nothing where it was given; None if all could be."""
        if all(segment.kept is None for segment in self.segments):
            return None
        return KeptSets.joined(
            [segment.kept or KeptSets.empty(len(segment.token_ids)) for segment in self.segments]
        )

    @property
    def sampled_ids(self) -> list[int]:
        return list(
            chain.from_iterable(segment.token_ids for segment in self.segments if segment.sampled)
        )

    @property
    def turns(self) -> Int[Tensor, " time"]:
        """The turn in which the policy sampled each token, from 0; -1 where it was given."""
        numbers = count()
        return self._repeated(
            [next(numbers) if segment.sampled else -1 for segment in self.segments]
        )

    def _repeated(self, of_segments: Sequence[int]) -> Tensor:
        """A number of each segment, for each of its tokens."""
        lengths = torch.tensor([len(segment.token_ids) for segment in self.segments])
        return torch.tensor(of_segments).repeat_interleave(lengths)

    @property
    def truncated(self) -> bool:
        """Whether it ends where a limit of tokens cut it."""
        return self.stop_reason in TRUNCATED

    @property
    def errored(self) -> bool:
        """Whether a tool broke it off, or a reward could not score it."""
        return self.stop_reason in ERRORED

    @property
    def num_sampled(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments if segment.sampled)


@dataclass(frozen=True)
class Rollout:
    """A finished conversation about a task, with its scores."""

    trajectory: Trajectory
    completion: Transcript
    """What the policy wrote, decoded without turn delimiters."""
    scores: Mapping[str, float | None]
    """The raw score of every reward function; None where it does not apply to the task."""
    reward: float
    """The weighted sum of the scores."""
    correct: bool
    failure: Failure | None = None
    """What came of a reward that gave no score."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much the scores count in the reward, by name; those that are only logged are not in."""
    log_probs_ref: Float[Tensor, " time"] | None = field(default=None, compare=False)
    """Of each token under the reference, if they came with it; 0 where it was not sampled."""

    @property
    def is_tagged(self) -> bool:
        """Whether there is an answer in tags."""
        return is_tagged(self.completion)

    @property
    def num_turns(self) -> int:
        """Those of the policy."""
        return sum(message.role == "assistant" for message in self.completion.messages)


@dataclass(frozen=True)
class Group:
    """All rollouts of one task in one batch, each with its advantage over the others."""

    task: Task
    rollouts: Sequence[Rollout]
    advantages: Sequence[float] = field(default=())
    errored: Sequence[Rollout] = field(default=())
    """Conversations that a tool broke off, or that a reward could not score: counted, and neither
    compared nor learned from."""
    holder: int | None = field(default=None, compare=False)
    """The rank that has it whole; None where all have. Others have outlines of its rollouts
    (`common.rollout.outline`)."""

    @property
    def rewards(self) -> list[float]:
        return [rollout.reward for rollout in self.rollouts]

    @property
    def has_signal(self) -> bool:
        """Whether any reward differs from another; without that every advantage is zero."""
        return len(set(self.rewards)) > 1

    @property
    def is_solved_in_part(self) -> bool:
        """Whether some rollouts are right and others wrong."""
        return len({rollout.correct for rollout in self.rollouts}) > 1
