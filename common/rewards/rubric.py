"""Rubrics: named criteria in a YAML file, each with a weight, that add up to one reward."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.own_code import anchored, names_own_code
from common.rewards.checks import CHECKS
from common.rewards.notion import Notion
from common.rewards.outcome import Failure, Outcome, RewardFunction
from common.rewards.own_function import BATCH_FORM, OwnFunction
from common.yaml_file import read_yaml

FLAG = "--rubric-file"
_NAME = re.compile(r"[\w.-]{1,64}")
_FIELDS = ("name", "function", "check", "parameters", "weight", "range")


# What a criterion may ask.
Asked = RewardFunction | OwnFunction | Notion


@dataclass(frozen=True)
class Criterion:
    """One thing that is looked for."""

    name: str
    function: Asked
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def clipped(self, score: float) -> float:
        return float(min(max(score, self.low), self.high))

    def scaled(self, score: float) -> float:
        """A score within the range, as a share of it."""
        return (score - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Rubric:
    """The weighted mean of criteria, each scaled to 0 to 1."""

    name: str
    criteria: Sequence[Criterion]

    def combined(self, outcomes: Sequence[Outcome]) -> tuple[Outcome, Mapping[str, float | None]]:
        """The mean from what the criteria's functions say, and their scores, each in its own range.

        A criterion that does not apply to the task counts for nothing; without any that counts, the
        rubric does not apply. It fails where one of them does that has a weight.
        """
        names = [f"criteria/{self.name}/{criterion.name}" for criterion in self.criteria]
        failures = [
            outcome
            for criterion, outcome in zip(self.criteria, outcomes, strict=True)
            if isinstance(outcome, Failure) and criterion.weight
        ]
        scores = [
            None if outcome is None or isinstance(outcome, Failure) else criterion.clipped(outcome)
            for criterion, outcome in zip(self.criteria, outcomes, strict=True)
        ]
        parts = dict(zip(names, scores, strict=True))
        if failures:
            return failures[0], parts
        applying = [
            (criterion.weight, criterion.scaled(score))
            for criterion, score in zip(self.criteria, scores, strict=True)
            if score is not None
        ]
        weight = math.fsum(abs(weight) for weight, _ in applying)
        total = math.fsum(weight * scaled for weight, scaled in applying)
        return total / weight if weight else None, parts


def load_rubric(path: Path, functions: Mapping[str, Asked]) -> Rubric:
    """Read a rubric; `functions` are the experiment's own reward functions, by name.

    The user's own are `module:function`, or `file.py:function` from the rubric's directory, since a
    run may be resumed from another one.

    Raises `UserError` with a line for every mistake, each naming criterion and field.
    """
    content = read_yaml(FLAG, path)
    if not isinstance(content, dict) or not isinstance(content.get("criteria"), list):
        raise UserError(f"{FLAG} {path}: has no list `criteria`; give it one, and a `name`")
    mistakes: list[str] = []
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        mistakes.append(f"name: {name!r} is no name; use letters, digits and . _ -")
    if unknown := sorted(map(str, set(content) - {"name", "criteria"})):
        mistakes.append(f"{unknown[0]}: unknown field; there are name and criteria")
    criteria = [
        _criterion(number, entry, functions, path.parent, mistakes)
        for number, entry in enumerate(content["criteria"], 1)
    ]
    found = [criterion for criterion in criteria if criterion is not None]
    counts = Counter(criterion.name for criterion in found)
    mistakes += [
        f"criterion {twice}, name: there are {count} of that name; rename one"
        for twice, count in counts.items()
        if count > 1
    ]
    if not mistakes and not any(criterion.weight for criterion in found):
        mistakes.append("criteria, weight: none is above or below 0; give one a weight")
    if mistakes:
        raise UserError("\nerror: ".join(f"{FLAG} {path}: {mistake}" for mistake in mistakes))
    return Rubric(str(name), found)


def own_functions(path: Path) -> dict[str, str]:
    """The user's own functions that a rubric names, as it names them and as they are imported."""
    content = read_yaml(FLAG, path)
    named = [str(entry.get("function", "")) for entry in content["criteria"]]
    return {name: anchored(name, path.parent) for name in named if names_own_code(name)}


def _criterion(
    number: int,
    entry: Any,
    functions: Mapping[str, Asked],
    directory: Path,
    mistakes: list[str],
) -> Criterion | None:
    """A criterion from its entry; None if there are mistakes, which are added to the list."""
    if not isinstance(entry, dict):
        mistakes.append(f"criterion {number}: is no mapping; give it name and function or check")
        return None
    name = entry.get("name", number)
    before = len(mistakes)

    def complain(field: str, problem: str) -> None:
        mistakes.append(f"criterion {name}, {field}: {problem}")

    if not isinstance(name, str) or not _NAME.fullmatch(name):
        complain("name", f"{name!r} is no name; use letters, digits and . _ -")
    for field in sorted(map(str, set(entry) - set(_FIELDS))):
        complain(field, f"unknown field; there are {', '.join(_FIELDS)}")
    weight = entry.get("weight", 1.0)
    if not _is_finite(weight):
        complain("weight", f"{weight!r} is not a finite number")
    bounds = entry.get("range", [0.0, 1.0])
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(map(_is_finite, bounds))
        or bounds[0] >= bounds[1]
    ):
        complain("range", f"{bounds!r} is not [low, high]")
    function = _function(entry, functions, directory, complain)
    if len(mistakes) > before or function is None:
        return None
    return Criterion(str(name), function, float(weight), *map(float, bounds))


def _function(
    entry: Mapping[str, Any],
    functions: Mapping[str, Asked],
    directory: Path,
    complain: Callable[[str, str], None],
) -> Asked | None:
    """The function that an entry names, with its parameters."""
    if ("function" in entry) == ("check" in entry):
        complain("function", "give either this or `check`")
        return None
    field = "function" if "function" in entry else "check"
    named, known = str(entry[field]), functions if field == "function" else CHECKS
    is_own = field == "function" and names_own_code(named)
    if not is_own and named not in known:
        own = ", or module:function or file.py:function of your own" if field == "function" else ""
        complain(field, f"{named!r} is unknown; there are {', '.join(known)}{own}")
        return None
    try:
        own = OwnFunction.load(FLAG, anchored(named, directory)) if is_own else None
    except UserError as error:
        complain(field, str(error))
        return None
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        complain("parameters", f"{parameters!r} is no mapping of names to values")
        return None
    function = own or known[named]
    hints = _parameters_of(function)
    if problem := _problem_with(hints, parameters):
        complain("parameters", problem)
        return None
    # In YAML a whole number is written without a point.
    parameters = {
        name: float(value) if name in hints and _type_of(hints[name]) == "float" else value
        for name, value in parameters.items()
    }
    if field == "check":
        try:
            return CHECKS[named](**parameters)
        except (ValueError, re.error) as error:
            complain("parameters", " ".join(str(error).split()))
            return None
    if isinstance(function, Notion):
        return function
    if not isinstance(function, OwnFunction):
        return partial(function, **parameters) if parameters else function
    try:
        return function.bound(**parameters)
    except UserError as error:
        complain(field, str(error))
        return None


def _parameters_of(function: Asked) -> Mapping[str, inspect.Parameter]:
    """What a rubric may say beside completion and task; what is right is not its to say."""
    if isinstance(function, Notion):
        return {}
    as_written = function.function if isinstance(function, OwnFunction) else function
    return inspect.signature(as_written).parameters


def _problem_with(
    hints: Mapping[str, inspect.Parameter], parameters: Mapping[str, Any]
) -> str | None:
    """What keeps a function from being called with these parameters."""
    judged = ("completion", "task", *BATCH_FORM)
    known = {name: hint for name, hint in hints.items() if name not in judged}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return None
    for name, value in parameters.items():
        if name not in known:
            return f"{name!r} is unknown; there are {', '.join(known) or 'none'}"
        if not _fits(value, _type_of(known[name])):
            return f"{name}: {value!r} is not of type {_type_of(known[name])}"
    missing = [n for n, p in known.items() if p.default is p.empty and n not in parameters]
    return f"{missing[0]!r} is missing" if missing else None


def _fits(value: Any, wanted: str) -> bool:
    """Whether a value is of the type of that name, if it is one that YAML has."""
    types = {"str": str, "bool": bool, "int": int, "float": int | float}
    if wanted not in types:
        return True
    return isinstance(value, types[wanted]) and isinstance(value, bool) == (wanted == "bool")


def _type_of(hint: inspect.Parameter) -> str:
    return str(getattr(hint.annotation, "__name__", hint.annotation))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
