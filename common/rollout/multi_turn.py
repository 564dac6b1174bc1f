"""Conversations in which the policy calls tools, all of a step held together.

    ready -> generating -> done
      ^          |
      +-- tool <-+

What is ready joins the decode loop at the next chance; tools run beside it and hold nobody up. In
waves, what tools that take time have said joins when nothing is left to sample, all of it together:
who shares a batch with whom is then decided by tokens alone, and a run repeats to the bit.
Where there is an environment, each conversation has an instance of its own from beginning to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from common.rewards.tags import ANSWER_TAG, extract_tag
from common.rewards.transcript import Message, Transcript
from common.rollout import rollout
from common.rollout.generator import Completion, Decoding, Generator, Request
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.tool_chat import ToolChat
from common.rollout.trajectory import ERRORED, Segment, Trajectory
from common.tasks.task import Task
from common.tools.calls import Call, CallRecord
from common.tools.environment import Environment
from common.tools.runner import ToolRunner

# A reply after which there is less room than this, in tokens, is not worth reading.
ROOM_TO_ANSWER = 8

# How long to wait for tools before asking again whether somebody wants the run to stop.
_PATIENCE = 0.05


StopReason = Literal[
    "answered", "no_tool_call", "max_turns", "max_length", "invalid_calls", "tool_timeout", "error"
]


# Why nobody would read the reply to a call in which nothing is wrong.
_UNREAD = {
    "max_turns": "this was the last turn (--max-turns)",
    "max_length": "no tokens are left for a reply",
}


@dataclass(frozen=True)
class Limits:
    """What one conversation may take."""

    max_turns: int
    """Turns of the policy. A call in the last of them is not run: nobody would read the reply."""
    max_length: int
    """Tokens in all."""
    max_tool_tokens: int
    """Tokens of one reply of a tool, and of what an environment opens with; longer ones are cut."""
    max_invalid_calls: int
    """A conversation ends with this many calls that could not be run."""


def multi_turn(
    openings: Sequence[tuple[Task, StreamKey]],
    *,
    generator: Generator,
    chat: ToolChat,
    sampling: Sampling,
    max_completion_tokens: int,
    runner: ToolRunner,
    limits: Limits,
    in_waves: bool = False,
) -> list[rollout.Conversation]:
    """Hold a conversation about each task; `max_completion_tokens` counts all turns of one.

    Environments are opened in the order of the tasks, before anything is sampled, and each is
    closed once, when its conversation ends, or with all others if this one does not end.
    """
    with ExitStack() as unfinished:
        conversations: list[_Conversation] = []
        for task, stream in openings:
            environment = chat.environments.make() if chat.environments else None
            if environment:
                unfinished.callback(environment.abandon)
            conversations.append(
                _Conversation(task, stream, chat, limits, max_completion_tokens, environment)
            )
        with generator.decoding(sampling) as decoding:
            for number, conversation in enumerate(conversations):
                decoding.add(number, conversation.request())
            while decoding.busy or runner.busy:
                for number, completion in sorted(decoding.advance(), key=lambda turn: turn[0]):
                    if call := conversations[number].take(completion):
                        runner.start(number, call, conversations[number].own_tools)
                    else:
                        conversations[number].close()
                        decoding.forget(number)
                for number, record in _replies(runner, decoding, in_waves):
                    conversations[number].hear(record)
                    if conversations[number].stop_reason:
                        conversations[number].close()
                        decoding.forget(number)
                    else:
                        decoding.add(number, conversations[number].request())
    return [conversation.finished() for conversation in conversations]


def _replies(
    runner: ToolRunner, decoding: Decoding, in_waves: bool
) -> list[tuple[int, CallRecord]]:
    """What tools have said that is to be read now."""
    if decoding.busy:
        return runner.instantly() if in_waves else runner.finished()
    replies = runner.finished(_PATIENCE)
    while in_waves and runner.busy:
        # Which does nothing, but lets the run be interrupted.
        decoding.advance()
        replies += runner.finished(_PATIENCE)
    return sorted(replies, key=lambda reply: reply[0]) if in_waves else replies


class _Conversation:
    """One of them, so far."""

    def __init__(
        self,
        task: Task,
        stream: StreamKey,
        chat: ToolChat,
        limits: Limits,
        max_completion_tokens: int,
        environment: Environment | None,
    ) -> None:
        self.stop_reason: StopReason | None = None
        self.own_tools = environment.tools if environment else {}
        self._environment = environment
        self._reward: float | None = None
        self._stream = stream
        self._chat = chat
        self._limits = limits
        self._budget = max_completion_tokens
        self._messages: list[Message] = []
        opening = chat.cut(environment.reset(task), limits.max_tool_tokens) if environment else ""
        question = f"{task.question}\n\n{opening}" if opening else task.question
        if opening:
            self._messages.append(Message("user", opening))
        self._segments = [Segment(tuple(chat.prompt_ids(question)), sampled=False)]
        self._turns: list[str] = []
        self._calls: list[CallRecord] = []

    @property
    def _token_ids(self) -> list[int]:
        return Trajectory(tuple(self._segments), "").token_ids

    def request(self) -> Request:
        """The next turn, for whatever the limits have left."""
        token_ids = tuple(self._token_ids)
        budget = min(self._budget, self._limits.max_length - len(token_ids))
        return Request(token_ids, replace(self._stream, turn=len(self._turns)), budget)

    def take(self, completion: Completion) -> Call | None:
        """Add a turn that the policy wrote; returns the call to answer, if it goes on."""
        self._segments.append(rollout.as_segment(completion))
        self._budget -= len(completion.token_ids)
        turn = self._chat.turn_text(completion.token_ids)
        self._turns.append(turn)
        self._messages.append(Message("assistant", turn))
        call = self._chat.call_in(turn)
        self.stop_reason = self._reason_to_stop(completion, turn, call)
        if call is None or not self.stop_reason:
            return call
        why = call.complaint or f"not run: {_UNREAD[self.stop_reason]}"
        self._calls.append(call.record("unanswered", why))
        return None

    def _reason_to_stop(
        self, completion: Completion, turn: str, call: Call | None
    ) -> StopReason | None:
        if completion.stop_reason != "stop":
            return "max_length"
        if call is None:
            written = Transcript(turn, reasoning_tag=self._chat.reasoning_tag)
            return "no_tool_call" if extract_tag(written, ANSWER_TAG) is None else "answered"
        if len(self._turns) == self._limits.max_turns:
            return "max_turns"
        invalid = sum(record.status != "ok" for record in self._calls) + (call.status != "ok")
        return "invalid_calls" if invalid == self._limits.max_invalid_calls else None

    def hear(self, record: CallRecord) -> None:
        """Add the reply to the call of the last turn, or end for want of one."""
        if record.outcome != "answered":
            self._calls.append(record)
            self.stop_reason = "tool_timeout" if record.outcome == "timeout" else "error"
            return
        record = replace(record, reply=self._chat.cut(record.reply, self._limits.max_tool_tokens))
        bridge = self._chat.bridge(self._segments[-1].token_ids, record.reply)
        self._calls.append(record)
        room = self._limits.max_length - len(self._token_ids) - len(bridge)
        if min(room, self._budget) < ROOM_TO_ANSWER:
            self.stop_reason = "max_length"
            return
        self._segments.append(Segment(tuple(bridge), sampled=False))
        self._messages.append(Message("tool", record.reply))

    def close(self) -> None:
        """Ask the environment for its reward, unless a tool broke off, and close it."""
        if self._environment is None:
            return
        if self.stop_reason in ERRORED:
            self._environment.abandon()
        else:
            self._reward = self._environment.reward()
            self._environment.close()

    def finished(self) -> rollout.Conversation:
        trajectory = Trajectory(tuple(self._segments), self.stop_reason or "")
        last = "" if self._chat.call_in(self._turns[-1]) else self._turns[-1]
        tag = self._chat.reasoning_tag
        return trajectory, Transcript(last, self._messages, self._calls, self._reward, tag)
