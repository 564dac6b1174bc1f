"""The file that describes a sweep, in W&B's own format: what is searched, how, by which command.

https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.sweep.domain import Complain, Domain, Value, is_number, read_domain
from common.yaml_file import read_yaml

METHODS = ("grid", "random", "bayes")
DEFAULT_TRIALS = 20
# What W&B takes where a sweep has no command.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

_FIELDS = (
    *("program", "method", "metric", "parameters", "command", "run_cap", "name", "description"),
    *("project", "entity", "early_terminate"),
)
# Words of a command, and what W&B's agent puts in their place.
_PROGRAM = "${program}"
_WORDS = {"${env}": "/usr/bin/env", "${interpreter}": "python"}
_ARGUMENTS: dict[str, Callable[[Mapping[str, Value]], list[str]]] = {
    "${args}": lambda parameters: [f"--{name}={value}" for name, value in parameters.items()],
    "${args_no_equals}": lambda parameters: [
        part for name, value in parameters.items() for part in (f"--{name}", str(value))
    ],
    "${args_no_boolean_flags}": lambda parameters: [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in parameters.items()
        if value is not False
    ],
}
_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


@dataclass(frozen=True)
class Sweep:
    """A search for the flags with which a metric becomes largest, or smallest."""

    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Domain]
    program: str
    command: tuple[str, ...]
    run_cap: int | None
    """Most trials."""
    name: str | None
    ignored: tuple[str, ...]
    """Fields of the file that only W&B's server heeds."""

    @property
    def varied(self) -> list[str]:
        """The parameters that are not the same in all trials."""
        return [name for name, domain in self.parameters.items() if len(set(domain.ends)) > 1]

    def wanted(self, trials: int | None) -> int:
        """Trials in all, if the user asks for so many or for no number."""
        wanted = trials or self.run_cap
        if self.method == "grid":
            whole = len(self.combinations())
            return min(wanted or whole, whole)
        return wanted or DEFAULT_TRIALS

    def combinations(self) -> list[dict[str, Value]]:
        """The trials of a grid search."""
        grids = [domain.grid or () for domain in self.parameters.values()]
        return [dict(zip(self.parameters, values, strict=True)) for values in product(*grids)]

    def command_line(self, parameters: Mapping[str, Value]) -> list[str]:
        """What is run for a trial, in the experiment's directory."""
        return self._filled_in(self.command, parameters)

    def flags(self, parameters: Mapping[str, Value]) -> list[str]:
        """The part of the command line that the program is given."""
        words = [self.program if word == _PROGRAM else word for word in self.command]
        return self._filled_in(words[words.index(self.program) + 1 :], parameters)

    def _filled_in(self, words: Sequence[str], parameters: Mapping[str, Value]) -> list[str]:
        line: list[str] = []
        for word in words:
            if word in _ARGUMENTS:
                line += _ARGUMENTS[word](parameters)
            else:
                plain = {**_WORDS, _PROGRAM: self.program}.get(word, word)
                line.append(_VARIABLE.sub(lambda name: os.environ.get(name[1], name[1]), plain))
        return line


def read_sweep(flag: str, path: Path, method: str | None = None) -> Sweep:
    """Read a sweep, to be searched by its own method unless another is given.

    Raises `UserError` with a line for every mistake, each naming the field.
    """
    content = read_yaml(flag, path)
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path}: holds no sweep; give it method, metric and parameters")
    mistakes: list[str] = []

    def complain(field: str, problem: str) -> None:
        mistakes.append(f"{field}: {problem}")

    for field in map(str, content):
        if field not in _FIELDS:
            nearest = difflib.get_close_matches(field, _FIELDS, n=1)
            known = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(_FIELDS)}"
            complain(field, f"unknown field; {known}")
    method = method or content.get("method")
    if method not in METHODS:
        complain("method", f"{method!r} must be one of {', '.join(METHODS)}")
    metric = content.get("metric", {"name": "final_reward", "goal": "maximize"})
    _check_metric(metric, complain)
    parameters = _parameters(content.get("parameters"), method == "grid", complain)
    program = content.get("program")
    if not isinstance(program, str):
        complain("program", f"{program!r} is no file; name the script, train.py")
    command = content.get("command", list(DEFAULT_COMMAND))
    _check_command(command, program, complain)
    run_cap = content.get("run_cap")
    if run_cap is not None and (not is_number(run_cap, int) or run_cap < 1):
        complain("run_cap", f"{run_cap!r} must be a whole number from 1 on")
    if mistakes:
        raise UserError("\nerror: ".join(f"{flag} {path}: {mistake}" for mistake in mistakes))
    return Sweep(
        method=str(method),
        metric=metric["name"],
        maximize=metric["goal"] == "maximize",
        parameters=parameters,
        program=str(program),
        command=tuple(map(str, command)),
        run_cap=run_cap,
        name=None if content.get("name") is None else str(content["name"]),
        ignored=(
            *(["early_terminate"] if "early_terminate" in content else []),
            *(["metric, target"] if "target" in metric else []),
        ),
    )


def _check_metric(entry: Any, complain: Complain) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        complain("metric", f"{entry!r} has no name; write {{name: final_reward, goal: maximize}}")
        return
    for field in sorted(map(str, set(entry) - {"name", "goal", "target"})):
        complain(f"metric, {field}", "unknown field; there are name, goal and target")
    if entry.get("goal") not in ("maximize", "minimize"):
        # W&B would minimize where there is none, and few metrics here are to be small.
        complain("metric, goal", f"{entry.get('goal')!r} must be maximize or minimize")


def _check_command(entry: Any, program: Any, complain: Complain) -> None:
    if not isinstance(entry, list) or not all(
        isinstance(word, str | int | float) for word in entry
    ):
        complain("command", f"{entry!r} is no list of words")
        return
    words = set(map(str, entry))
    known = [*_WORDS, _PROGRAM, *_ARGUMENTS]
    for word in sorted(words):
        if re.fullmatch(r"\$\{.*\}", word) and word not in known and not _VARIABLE.fullmatch(word):
            complain("command", f"{word} is unknown here; there are {', '.join(known)}")
    if not words & set(_ARGUMENTS):
        complain("command", "has no ${args}, so no trial would get its parameters")
    if not words & {_PROGRAM, program}:
        complain("command", f"does not run the program; put {_PROGRAM} into it")


def _parameters(entry: Any, for_grid: bool, complain: Complain) -> Mapping[str, Domain]:
    if not isinstance(entry, dict) or not entry:
        complain("parameters", "there are none; name the flags to search, each with its values")
        return {}

    def complain_of(name: object, field: str, problem: str) -> None:
        complain(f"parameter {name}" + (f", {field}" if field else ""), problem)

    domains: dict[str, Domain] = {}
    for name, values in entry.items():
        domain = read_domain(values, partial(complain_of, name))
        if domain is None:
            continue
        if for_grid and domain.grid is None:
            complain_of(name, "distribution", "has no grid; give values, or search at random")
        domains[str(name)] = domain
    if len(domains) == len(entry) and all(len(set(each.ends)) == 1 for each in domains.values()):
        complain("parameters", "none of them varies; give one several values")
    return domains
