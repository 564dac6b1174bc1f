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
from common.own_code import anchored, code_of_the_user, import_function, names_own_code
from common.rewards.checks import CHECKS
from common.rewards.reward import RewardFunction, Score
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.yaml_file import read_yaml

FLAG = "--rubric-file"
_NAME = re.compile(r"[\w.-]{1,64}")
_FIELDS = ("name", "function", "check", "parameters", "weight", "range")


@dataclass(frozen=True)
class Criterion:
    """One thing that is looked for."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def score(self, completion: Transcript, task: Task) -> float:
        """The function's score, held within the range."""
        value = self.function(completion, task)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"{FLAG}, criterion {self.name}: gave {value!r}; it must give a finite number"
            )
        return float(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Rubric:
    """A reward function that is the weighted mean of its criteria, each scaled to 0 to 1."""

    name: str
    criteria: Sequence[Criterion]

    def __call__(self, completion: Transcript, task: Task) -> Score:
        """The mean, with every criterion's score in its own range beside it."""
        scores = [criterion.score(completion, task) for criterion in self.criteria]
        scaled = [
            (score - criterion.low) / (criterion.high - criterion.low)
            for criterion, score in zip(self.criteria, scores, strict=True)
        ]
        weights = [criterion.weight for criterion in self.criteria]
        total = math.fsum(w * s for w, s in zip(weights, scaled, strict=True))
        names = [f"criteria/{self.name}/{criterion.name}" for criterion in self.criteria]
        return Score(total / math.fsum(map(abs, weights)), dict(zip(names, scores, strict=True)))


def load_rubric(path: Path, functions: Mapping[str, RewardFunction]) -> Rubric:
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
    functions: Mapping[str, RewardFunction],
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
    functions: Mapping[str, RewardFunction],
    directory: Path,
    complain: Callable[[str, str], None],
) -> RewardFunction | None:
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
        path = anchored(named, directory)
        function = import_function(FLAG, path) if is_own else known[named]
    except UserError as error:
        complain(field, str(error))
        return None
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        complain("parameters", f"{parameters!r} is no mapping of names to values")
        return None
    hints = inspect.signature(function).parameters
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
    bound = partial(function, **parameters)
    return _guarded(path, bound) if is_own else bound


def _problem_with(
    hints: Mapping[str, inspect.Parameter], parameters: Mapping[str, Any]
) -> str | None:
    """What keeps a function from being called with these parameters."""
    known = {name: hint for name, hint in hints.items() if name not in ("completion", "task")}
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


def _guarded(path: str, function: RewardFunction) -> RewardFunction:
    def call(completion: Transcript, task: Task) -> Any:
        with code_of_the_user(FLAG, path):
            return function(completion, task)

    return call


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
