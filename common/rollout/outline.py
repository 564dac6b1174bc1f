"""What the ranks of a run know of one another's rollouts: all that a statistic is made of, and
neither tokens nor words.

An outline stands where the rollout would. Whoever reads what it lacks gets a `LookupError` and
never an empty text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from common.rollout.trajectory import Rollout, Segment, Trajectory
from common.tools.calls import Outcome, Status


@dataclass(frozen=True, eq=False)
class Absent(Sequence[Any]):
    """So many numbers, which another rank has."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> NoReturn:
        raise LookupError("the tokens of this rollout are with the rank that sampled it")

    def __iter__(self) -> Iterator[NoReturn]:
        return self[0]

    def __eq__(self, other: object) -> bool:
        return self[0]

    def __hash__(self) -> int:
        return self[0]


@dataclass(frozen=True)
class SegmentOutline(Segment):
    """A run of tokens that another rank has."""

    token_ids: Absent  # pyright: ignore[reportIncompatibleVariableOverride]
    log_probs: Absent = Absent(0)  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True)
class CallOutline:
    """What became of a call, in the place of a `CallRecord`."""

    tool: str
    status: Status
    outcome: Outcome
    seconds: float
    succeeded: bool


@dataclass(frozen=True, eq=False)
class Untold:
    """What became of a conversation without what was said in it, in the place of a `Transcript`."""

    calls: tuple[CallOutline, ...]
    num_turns: int
    is_tagged: bool

    def __getattr__(self, name: str) -> NoReturn:
        # How copies and pickles ask whether there is a way of its own.
        if name.startswith("__"):
            raise AttributeError(name)
        raise LookupError("the words of this rollout are with the rank that sampled it")

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return self.text

    def __hash__(self) -> int:
        return self.text


@dataclass(frozen=True)
class Outline(Rollout):
    """A rollout that another rank has whole."""

    completion: Untold  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def is_tagged(self) -> bool:
        return self.completion.is_tagged

    @property
    def num_turns(self) -> int:
        return self.completion.num_turns


def outline(rollout: Rollout) -> Outline:
    """What other ranks are told of it."""
    calls = tuple(
        CallOutline(call.tool, call.status, call.outcome, call.seconds, call.succeeded)
        for call in rollout.completion.calls
    )
    untold = Untold(calls, rollout.num_turns, rollout.is_tagged)
    trajectory = Trajectory(
        tuple(map(_without_tokens, rollout.trajectory.segments)), rollout.trajectory.stop_reason
    )
    return Outline(
        trajectory,
        untold,
        rollout.scores,
        rollout.reward,
        rollout.correct,
        rollout.failure,
        rollout.weights,
    )


def _without_tokens(segment: Segment) -> SegmentOutline:
    nothing = Absent(len(segment.token_ids))
    return SegmentOutline(nothing, segment.sampled, nothing if segment.sampled else Absent(0))
