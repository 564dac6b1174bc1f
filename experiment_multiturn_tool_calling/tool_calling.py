"""What is particular to this experiment: its tool, its rewards, its system prompt."""

from __future__ import annotations

from collections.abc import Mapping

from common.rewards.answers import answer_format, boxed, is_correct, last_number
from common.rewards.reward import RewardFunction
from common.rewards.tool_use import tool_call_format, tool_execution
from common.tools.calculator import calculate
from common.tools.toolbox import ToolFunction

TOOLS: Mapping[str, ToolFunction] = {"calc": calculate}

ANSWER_FROM_TOOLS = (
    "Use the tools for every calculation. Then give only the final answer inside "
    "<answer> </answer> tags."
)


TOOL_REWARDS: Mapping[str, RewardFunction] = {
    "tool_call_format": tool_call_format,
    "tool_execution": tool_execution,
    "answer_format": answer_format,
    "answer_correct": is_correct,
    "last_number": last_number,
    "boxed": boxed,
}
