"""What a run asks, how it is answered, and what answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.flags.train_config import TrainConfig
from common.rewards.judge import Judge
from common.rewards.outcome import RewardFunction
from common.rollout.chat import ChatFormat
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.toolbox import ToolFunction
from common.training.open_chat import open_chat
from common.training.prompts import leave_out_overlong, warnings_about_repeats
from common.training.scoring import load_judge
from common.training.task_order import load_task_split


@dataclass(frozen=True)
class Work:
    """All that is to be done with a model."""

    chat: ChatFormat
    judge: Judge
    train_tasks: Sequence[Task]
    held_out: Sequence[Task]


def open_tasks(
    config: TrainConfig,
    say: Callable[[str], object],
    rewards: Mapping[str, RewardFunction] | None,
    is_correct: RewardFunction,
    tools: Mapping[str, ToolFunction] | None,
) -> Work:
    """Load what the flags name; says what a user might want to mend, and raises `UserError` for
    what must be."""
    train_tasks, held_out = load_task_split(config)
    chat = open_chat(config, tools)
    environments = chat.environments if isinstance(chat, ToolChat) else None
    if chat.warning:
        say(chat.warning)
    judge = load_judge(config, train_tasks[0], say, rewards, is_correct, environments)
    train_tasks, held_out = leave_out_overlong(config, chat, train_tasks, held_out, say)
    for warning in warnings_about_repeats(config, train_tasks, held_out):
        say(warning)
    return Work(chat, judge, train_tasks, held_out)
