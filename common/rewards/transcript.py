"""What reward functions look at: what the policy wrote, and what came of its tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.tools.calls import CallRecord

DEFAULT_REASONING_TAG = "think"

Role = Literal["user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation after the question; a user's is what an environment adds to it."""

    role: Role
    content: str


class Transcript(str):
    """What the policy wrote last, unless that is a call: the only place for an answer.

    A string, so that a function of a completion's text scores a conversation too; its turns and its
    calls are beside it.
    """

    messages: tuple[Message, ...]
    calls: tuple[CallRecord, ...]
    environment_reward: float | None
    """What the conversation's environment made of it, if there is one that gives a reward."""
    reasoning_tag: str
    """The tag around a thought, after which an answer stands."""

    def __new__(
        cls,
        text: str,
        messages: Sequence[Message] = (),
        calls: Sequence[CallRecord] = (),
        environment_reward: float | None = None,
        reasoning_tag: str = DEFAULT_REASONING_TAG,
    ) -> Transcript:
        self = super().__new__(cls, text)
        self.messages = tuple(messages)
        self.calls = tuple(calls)
        self.environment_reward = environment_reward
        self.reasoning_tag = reasoning_tag
        return self
