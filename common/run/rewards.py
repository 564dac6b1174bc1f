"""The reward functions that a run's flags ask for."""

from __future__ import annotations

from common.rewards.reward import Reward, build_rewards, score, text_rewards
from common.rewards.transcript import Transcript
from common.run.config import TrainConfig
from common.tasks.task import Task


def load_rewards(config: TrainConfig, example: Task) -> list[Reward]:
    """All reward functions, tried on an example: a user's own fails before the model is loaded.

    Raises `UserError` for names and weights that mean nothing, and for a function that fails.
    """
    functions = text_rewards(config.reasoning_tag)
    rewards = build_rewards(functions, config.reward, config.reward_weights)
    score(rewards, Transcript(""), example)
    return rewards
