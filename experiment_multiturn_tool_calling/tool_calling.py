"""What is particular to this experiment: its tool, its rewards, its system prompt."""

from __future__ import annotations

from collections.abc import Mapping

from common.rewards.answers import boxed, is_correct, is_tagged, last_number
from common.rewards.reward import RewardFunction
from common.rewards.tool_use import tool_call_format, tool_execution
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.calculator import calculate
from common.tools.toolbox import ToolFunction

TOOLS: Mapping[str, ToolFunction] = {"calc": calculate}

ANSWER_FROM_TOOLS = (
    "Use the tools for every calculation. Then give only the final answer inside "
    "<answer> </answer> tags."
)


def answer_format(completion: Transcript, task: Task) -> float:
    """1 for one answer in its tags, in the last turn."""
    del task
    return float(is_tagged(completion))


def answer_correct(completion: Transcript, task: Task) -> float:
    """1 for an answer in its tags that is right."""
    return float(is_correct(completion, task))


TOOL_REWARDS: Mapping[str, RewardFunction] = {
    "tool_call_format": tool_call_format,
    "tool_execution": tool_execution,
    "answer_format": answer_format,
    "answer_correct": answer_correct,
    "last_number": last_number,
    "boxed": boxed,
}
