"""Named, weighted reward functions, and where users' own come in."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.own_code import function_name
from common.rewards.answers import answer_check, boxed, last_number, number_check
from common.rewards.notion import Notion
from common.rewards.outcome import RewardFunction
from common.rewards.own_function import OwnFunction
from common.rewards.rubric import Rubric
from common.rewards.tags import format_approx, format_exact

# Whatever gives scores, each in its own way.
Scorer = RewardFunction | OwnFunction | Notion | Rubric


@dataclass(frozen=True)
class Reward:
    """What scores a completion of a task, and how much its score counts."""

    name: str
    function: Scorer
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
    functions: Mapping[str, Scorer],
    own_functions: Sequence[str],
    weights: str,
    defaults: Mapping[str, float] | None = None,
    on_request: Collection[str] = (),
) -> list[Reward]:
    """All functions with their weights from `name=weight,...`.

    One that is not named there has its weight of `defaults`, else 0; if it is one of `on_request`,
    it is left out. `own_functions` are
    `module:function` or `file.py:function` of the user's; each is known by its function's name and
    has weight 1 unless named. Raises `UserError` for unknown names, two functions of one name and
    impossible weights.
    """
    own: dict[str, OwnFunction] = {}
    for path in own_functions:
        name = function_name(path)
        if name in functions or name in own:
            raise UserError(
                f"--reward {path}: there is another reward called {name}; rename your function"
            )
        own[name] = OwnFunction.load("--reward", path).bound()
    functions = {**functions, **own}
    parsed = parse_weights(weights, known=list(functions))
    parsed = {**(defaults or {}), **dict.fromkeys(own, 1.0), **parsed}
    if not any(parsed.values()):
        raise UserError(f"--reward-weights {weights}: every weight is 0; give one that is not")
    return [
        Reward(name, function, parsed.get(name, 0.0))
        for name, function in functions.items()
        if name in parsed or name not in on_request
    ]


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
