"""Named, weighted reward functions, and where users' own come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.own_code import code_of_the_user, function_name, import_function
from common.rewards.answers import answer_check, boxed, last_number, number_check
from common.rewards.tags import format_approx, format_exact
from common.rewards.transcript import Transcript
from common.tasks.task import Task

RewardFunction = Callable[[Transcript, Task], float]


class Score(float):
    """A score with the parts that it was made of, by the names under which they are logged."""

    parts: Mapping[str, float]

    def __new__(cls, value: float, parts: Mapping[str, float]) -> Score:
        self = super().__new__(cls, value)
        self.parts = dict(parts)
        return self


@dataclass(frozen=True)
class Reward:
    """A pure function of completion and task, and how much its score counts."""

    name: str
    function: RewardFunction
    weight: float


# The reward functions of the base experiment, by name.
TEXT_REWARDS: Mapping[str, RewardFunction] = {
    "answer_check": answer_check,
    "number_check": number_check,
    "last_number": last_number,
    "boxed": boxed,
    "format_exact": format_exact,
    "format_approx": format_approx,
}


def build_rewards(
    functions: Mapping[str, RewardFunction],
    own_functions: Sequence[str],
    weights: str,
    defaults: Mapping[str, float] | None = None,
) -> list[Reward]:
    """All functions with their weights from `name=weight,...`.

    One that is not named there has its weight of `defaults`, else 0. `own_functions` are
    `module:function` or `file.py:function` of the user's; each is known by its function's name and
    has weight 1 unless named. Raises `UserError` for unknown names, two functions of one name and
    impossible weights.
    """
    own: dict[str, RewardFunction] = {}
    for path in own_functions:
        name = function_name(path)
        if name in functions or name in own:
            raise UserError(f"--reward {name}: that name is taken; rename your function")
        own[name] = import_reward(path)
    functions = {**functions, **own}
    parsed = parse_weights(weights, known=list(functions))
    parsed = {**(defaults or {}), **dict.fromkeys(own, 1.0), **parsed}
    if not any(parsed.values()):
        raise UserError(f"--reward-weights {weights}: every weight is 0; give one that is not")
    return [Reward(name, function, parsed.get(name, 0.0)) for name, function in functions.items()]


def parse_weights(text: str, known: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in known:
            raise UserError(f"--reward-weights {name}: unknown reward; known: {', '.join(known)}")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not math.isfinite(weights[name]):
            raise UserError(f"--reward-weights {item}: not name=number; write {name}=1.0")
    return weights


def import_reward(path: str) -> RewardFunction:
    """A reward function of the user's; what it raises is the user's to mend."""
    function = import_function("--reward", path)

    def guarded(completion: Transcript, task: Task) -> Any:
        with code_of_the_user("--reward", path):
            return function(completion, task)

    return guarded


def score(
    rewards: Sequence[Reward], completion: Transcript, task: Task
) -> tuple[dict[str, float], float]:
    """Every function's raw score with its parts, and the weighted sum.

    Raises `UserError` naming the function whose score is not a finite number.
    """
    scores: dict[str, float] = {}
    for reward in rewards:
        value = reward.function(completion, task)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"reward {reward.name} gave {value!r}; it must give a finite number")
        scores[reward.name] = float(value)
        scores |= value.parts if isinstance(value, Score) else {}
    return scores, math.fsum(reward.weight * scores[reward.name] for reward in rewards)
