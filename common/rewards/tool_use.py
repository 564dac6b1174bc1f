"""Scores of how a conversation used its tools, and of what came of it in its environment.

They look at the calls, never at what was read.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.calls import CallRecord


def tool_call_format(completion: Transcript, task: Task) -> float:
    """The share of the calls that could be read and fit their tool; 0 without any."""
    del task
    return _share(completion, lambda call: call.status == "ok")


def tool_execution(completion: Transcript, task: Task) -> float:
    """The share of the calls that a tool answered without complaint; 0 without any."""
    del task
    return _share(completion, lambda call: call.succeeded)


def environment_reward(completion: Transcript, task: Task) -> float:
    """What the conversation's environment gave; 0 where a tool broke the conversation off."""
    del task
    return 0.0 if completion.environment_reward is None else completion.environment_reward


def _share(completion: Transcript, holds: Callable[[CallRecord], bool]) -> float:
    return fmean(map(holds, completion.calls)) if completion.calls else 0.0
