"""The reward functions that a run's flags ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.flags.train_config import TrainConfig
from common.rewards.reward import TEXT_REWARDS, Reward, RewardFunction, build_rewards, score
from common.rewards.rubric import load_rubric
from common.rewards.tool_use import environment_reward
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.environment import EnvironmentFactory


def load_rewards(
    config: TrainConfig,
    example: Task,
    say: Callable[[str], object],
    functions: Mapping[str, RewardFunction] | None = None,
    environments: EnvironmentFactory | None = None,
) -> list[Reward]:
    """All reward functions, tried on an example: a user's own fails before the model is loaded.

    `functions` are the experiment's, by name; without them, those of the base experiment. What
    `environments` give, if they do, is one more, called environment.

    Raises `UserError` for names and weights that mean nothing, and for a function that fails.
    """
    functions = dict(functions or TEXT_REWARDS)
    defaults: dict[str, float] = {}
    if environments is not None and environments.gives_reward:
        functions["environment"], defaults["environment"] = environment_reward, 1.0
    if config.rubric_file is not None:
        rubric = load_rubric(config.rubric_file, functions)
        functions["rubric"], defaults["rubric"] = rubric, config.rubric_weight
        say(f"Loaded rubric: {rubric.name} ({len(rubric.criteria)} criteria)")
    rewards = build_rewards(functions, config.reward, config.reward_weights, defaults)
    score(rewards, Transcript(""), example)
    return rewards
