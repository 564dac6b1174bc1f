"""Conversations that go on whatever is said."""

from __future__ import annotations

from collections.abc import Sequence

from common.rollout.sampling import StreamKey
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calls import Call
from common.tools.toolbox import instant


@instant
def echo(text: str) -> str:
    """Say it again.

    Args:
        text: What to say.
    """
    return text


class ChattyChat(ToolChat):
    """Takes any turn for a call with the first words of the turn; some tokens close a call."""

    tool = "echo"

    def call_in(self, turn: str) -> Call | None:
        return Call("ok", self.tool, {"text": turn[:7]})

    def ends_turn(self, token_ids: Sequence[int]) -> bool:
        return token_ids[-1] % 9 in (4, 5)


def openings(count: int, question: str = "What is 2 + 2?") -> list[tuple[Task, StreamKey]]:
    return [(Task(n, question, "4"), StreamKey(1, 0, n, 0)) for n in range(count)]
