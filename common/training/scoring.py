"""What judges the completions of a run, as its flags ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from common.algo.overlong import OVERLONG
from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.logger.logger import SAMPLE_COLUMNS
from common.logger.metrics import TAKEN_BY_METRICS, reward_metric_names
from common.logger.rollout_media import GENERATION_COLUMNS
from common.own_code import function_name, names_own_code
from common.rewards.judge import Judge
from common.rewards.math_verify import MathVerify
from common.rewards.notion import Notion
from common.rewards.outcome import RewardFunction
from common.rewards.own_function import OwnFunction
from common.rewards.reward import TEXT_REWARDS, Reward, Scorer, build_rewards
from common.rewards.rubric import Asked, load_rubric
from common.rewards.tool_use import environment_reward
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.environment import EnvironmentFactory

# What takes a package and time: part of a run only where a flag names it.
ON_REQUEST = {"math_verify": MathVerify}
# The rewards that ask whether an answer is right: where the user says what is, with --correct, they
# pay 1 for that and 0 for anything else, but for the one that --correct names.
ASK_WHAT_IS_RIGHT = ("answer_check", "answer_correct")


def load_judge(
    config: TrainConfig,
    example: Task,
    say: Callable[[str], object],
    functions: Mapping[str, RewardFunction] | None,
    is_correct: RewardFunction,
    environments: EnvironmentFactory | None = None,
) -> Judge:
    """All reward functions and the notion of right, tried on an example: a user's own fails before
    the model is loaded.

    `functions` are the experiment's, by name; without them, those of the base experiment. What
    `environments` give, if they do, is one more, called environment. `is_correct` is what is right
    unless `--correct` says otherwise.

    Raises `UserError` for names and weights that mean nothing, and for a function that fails.
    """
    known: dict[str, Asked]
    known = {**(functions or TEXT_REWARDS), **{name: make() for name, make in ON_REQUEST.items()}}
    defaults: dict[str, float] = {}
    if environments is not None and environments.gives_reward:
        known["environment"], defaults["environment"] = environment_reward, 1.0
    _refuse_taken_names(config.reward)
    asking = [name for name in ASK_WHAT_IS_RIGHT if name in known and name != config.correct]
    notion = Notion(is_correct)
    if (function := _function_named(config, known)) is not None:
        notion = Notion(function, config.correct_threshold)
        known |= dict.fromkeys(asking, notion)
    scorers: dict[str, Scorer] = {**known}
    if config.rubric_file is not None:
        rubric = load_rubric(config.rubric_file, known)
        scorers["rubric"], defaults["rubric"] = rubric, config.rubric_weight
        say(f"Loaded rubric: {rubric.name} ({len(rubric.criteria)} criteria)")
        if config.correct == "rubric":
            notion = Notion(rubric, config.correct_threshold)
            scorers |= dict.fromkeys(asking, notion)
    on_request = ON_REQUEST.keys() - {config.correct}
    rewards = build_rewards(scorers, config.reward, config.reward_weights, defaults, on_request)
    _refuse_clashing_metrics(rewards)
    _refuse_unknown_notion(config.correct, rewards)
    judge = Judge(rewards, notion, config.reward_timeout)
    (judgement,) = judge([Transcript("")], [example])
    if judgement.failure and not judgement.comparable:
        raise UserError(f"{judgement.failure.text}; {judgement.failure.remedy}")
    return judge


def _function_named(config: TrainConfig, known: Mapping[str, Asked]) -> Asked | None:
    """What `--correct` names, unless that is a rubric, which may ask for it."""
    own = {function_name(path): path for path in config.reward}
    if config.correct is not None and names_own_code(config.correct):
        return OwnFunction.load("--correct", config.correct).bound()
    if config.correct in own:
        return OwnFunction.load("--reward", own[config.correct]).bound()
    return known.get(config.correct or "")


def _refuse_unknown_notion(named: str | None, rewards: Sequence[Reward]) -> None:
    names = [reward.name for reward in rewards]
    if named is not None and not names_own_code(named) and named not in names:
        raise UserError(
            f"--correct {named}: there is no reward of that name; there are {', '.join(names)}, "
            "or module:function or file.py:function of your own"
        )


def _refuse_taken_names(own_functions: Sequence[str]) -> None:
    columns = {*SAMPLE_COLUMNS, *GENERATION_COLUMNS, OVERLONG}
    for path in own_functions:
        name = function_name(path)
        if name in columns or name in TAKEN_BY_METRICS:
            what = "a column of the samples" if name in columns else "a metric"
            raise UserError(f"--reward {path}: {what} is called {name}; rename your function")


def _refuse_clashing_metrics(rewards: Sequence[Reward]) -> None:
    counts = Counter(name for reward in rewards for name in reward_metric_names(reward.name))
    for reward in reversed(rewards):
        if twice := [name for name in reward_metric_names(reward.name) if counts[name] > 1]:
            raise UserError(
                f"--reward {reward.name}: its metric {twice[0]} is another reward's as well; "
                "rename your function"
            )
