"""Functions of the user's that say what a completion is worth: how they are called and heard.

    def score(completion, task) -> float          # of one completion
    def score(completions, tasks) -> list[float]  # of a batch of them

The names of its parameters say which it is; either may be async. What one raises, or takes too long
for, is a `Failure`: data, like that of a tool.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from common.background import BackgroundBatch, awaited, stops_the_run
from common.errors import UserError
from common.own_code import complaint_about, import_function
from common.plain_number import finite_number
from common.printable import printable
from common.rewards.outcome import Failure, Outcome
from common.rewards.transcript import Transcript
from common.tasks.task import Task

BATCH_FORM = ("completions", "tasks")
_PLACES = {"completion": 0, "task": 1, "completions": 0, "tasks": 1}
# Seconds after which whoever waits for functions asks whether anybody wants the run to stop.
_PATIENCE = 0.05
# Characters of a value that is no score.
_LONGEST_VALUE = 100


@dataclass(frozen=True, eq=False)
class OwnFunction:
    """A function of the user's. Two that are the same function are equal, whatever names them."""

    flag: str
    path: str
    function: Callable[..., Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnFunction) and other.function is self.function

    def __hash__(self) -> int:
        return id(self.function)

    @classmethod
    def load(cls, flag: str, path: str) -> OwnFunction:
        """Import it. Raises `UserError` naming flag and path."""
        return cls(flag, path, import_function(flag, path))

    def bound(self, **parameters: Any) -> OwnFunction:
        """With its other parameters; raises `UserError` if it still cannot be called."""
        own = replace(self, function=partial(self.function, **parameters)) if parameters else self
        own._check_signature()
        return own

    @property
    def name(self) -> str:
        """The flag as the user gave it."""
        return f"{self.flag} {self.path}"

    @property
    def takes_batch(self) -> bool:
        return self._parameters[:2] == BATCH_FORM

    @property
    def instant(self) -> bool:
        """Whether it is promised to return at once, so that it is called in line."""
        function = self.function
        return getattr(getattr(function, "func", function), "instant", False)

    @property
    def _parameters(self) -> tuple[str, ...]:
        try:
            return tuple(inspect.signature(self.function).parameters)
        except ValueError:  # Some that are built in do not tell.
            return ()

    def _check_signature(self) -> None:
        """Raise `UserError` unless two arguments are what it takes, of one form or the other."""
        parameters = self._parameters
        half_a_batch = not self.takes_batch and set(parameters) & set(BATCH_FORM)
        misplaced = any(_PLACES.get(name, place) != place for place, name in enumerate(parameters))
        if half_a_batch or misplaced or (parameters and not _takes_two(self.function)):
            raise UserError(
                f"{self.name}: takes ({', '.join(parameters)}); write "
                "(completion, task), which gives the score of one completion, or "
                "(completions, tasks), which gives a list with those of a batch"
            )

    def pieces(
        self, completions: Sequence[Transcript], tasks: Sequence[Task]
    ) -> list[tuple[int, Callable[[], list[Outcome]]]]:
        """What is to be called, each piece for so many completions, in their order."""
        if self.takes_batch:
            arguments = (list(completions), list(tasks))
            return [(len(tasks), partial(self._guarded, len(tasks), self._of_batch, *arguments))]
        return [
            (1, partial(self._guarded, 1, self._of_one, completion, task))
            for completion, task in zip(completions, tasks, strict=True)
        ]

    def late(self, timeout: float) -> Failure:
        return Failure(self.name, f"no score within {timeout:g} s", "reward_timeout")

    def _guarded(
        self, count: int, outcomes_of_calling: Callable[..., list[Outcome]], *arguments: Any
    ) -> list[Outcome]:
        """Whatever the user's code raises, in its call or in what it gave, is so many failures."""
        try:
            return outcomes_of_calling(*arguments)
        # It may raise what ends a thread or a task, such as CancelledError: handed on as data.
        except BaseException as error:
            if stops_the_run(error):
                raise
            return [self._failure(complaint_about(error))] * count

    def _of_one(self, completion: Transcript, task: Task) -> list[Outcome]:
        return [self._score(awaited(self.function(completion, task)))]

    def _of_batch(self, completions: list[Transcript], tasks: list[Task]) -> list[Outcome]:
        values = awaited(self.function(completions, tasks))
        no_list = not hasattr(values, "__len__") or isinstance(values, str | dict)
        if no_list or getattr(values, "shape", None) == ():
            complaint = f"gave {_shown(values)}; give a list with a score for each completion"
        elif len(values) != len(tasks):
            complaint = f"gave {len(values)} scores for {len(tasks)} completions; give one for each"
        else:
            return [self._score(value) for value in values]
        return [self._failure(complaint)] * len(tasks)

    def _score(self, value: Any) -> Outcome:
        if value is None:
            return None
        number = finite_number(value)
        if number is None:
            return self._failure(f"gave {_shown(value)}; it must give a finite number, or None")
        return number

    def _failure(self, complaint: str) -> Failure:
        return Failure(self.name, complaint)


def outcomes_of(
    functions: Sequence[OwnFunction],
    completions: Sequence[Transcript],
    tasks: Sequence[Task],
    timeout: float,
    meanwhile: Callable[[], object],
) -> dict[OwnFunction, list[Outcome]]:
    """What each function says of every completion, all of them side by side.

    `meanwhile` is called again and again while there is something to wait for.
    """
    background: BackgroundBatch[tuple[OwnFunction, int], list[Outcome]] = BackgroundBatch(timeout)
    found: dict[tuple[OwnFunction, int], list[Outcome]] = {}
    sizes: dict[tuple[OwnFunction, int], int] = {}
    for function in functions:
        for number, (size, piece) in enumerate(function.pieces(completions, tasks)):
            sizes[function, number] = size
            if function.instant:
                found[function, number] = piece()
            else:
                background.start((function, number), piece)
    while background.busy:
        for (function, number), outcomes in background.finished(_PATIENCE):
            late: list[Outcome] = [function.late(timeout)] * sizes[function, number]
            found[function, number] = late if outcomes is None else outcomes
        meanwhile()
    joined: dict[OwnFunction, list[Outcome]] = {function: [] for function in functions}
    for function, number in sizes:
        joined[function] += found[function, number]
    return joined


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _shown(value: Any) -> str:
    return printable(repr(value))[:_LONGEST_VALUE]
