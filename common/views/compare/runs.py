"""What a run directory tells: its configuration, its curves, and where each point stands."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.logger.sinks import AXES, BATCH_AXIS, STEP_AXIS

_SUGGESTION = "name run directories, such as runs/experiment_base/*"


class Position(NamedTuple):
    """Where a row stands on each axis; None where that cannot be known.

    An optimizer step stands at its share of the batch that it learns from: the second of four
    in batch 3 is at 2.5 batches, after half of the tokens and of the time of that batch.
    """

    batch: int | float | None
    optimizer_step: int | float | None
    tokens: int | float | None
    """Generated in training so far; evaluation is not counted."""
    seconds: int | float | None
    """Wall time of all batches so far, with the evaluations between them."""


class Point(NamedTuple):
    position: Position
    value: float


@dataclass(frozen=True)
class ComparedRun:
    """A run as its files have it, finished or not."""

    path: Path
    config: Mapping[str, Any]
    """Flat: `versions.torch`."""
    curves: Mapping[str, Sequence[Point]]
    """Per metric what was logged, in order, without what is not finite."""
    end: Position
    """What the run has taken so far."""

    @property
    def experiment(self) -> str:
        return self.config["experiment"]

    @property
    def finished(self) -> bool:
        return "training/completed" in self.curves

    def final(self, metric: str) -> float | None:
        """The last value; None if there is none."""
        points = self.curves.get(metric)
        return points[-1].value if points else None

    def best(self, metric: str) -> float | None:
        """The highest value; None if there is none."""
        return max((point.value for point in self.curves.get(metric, ())), default=None)


@dataclass
class _Cost:
    """What all batches up to one took."""

    tokens: float | None = 0.0
    seconds: float | None = 0.0

    def plus(self, tokens: float | None, seconds: float | None) -> _Cost:
        return _Cost(_sum(self.tokens, tokens), _sum(self.seconds, seconds))

    def towards(self, other: _Cost, share: float) -> _Cost:
        return _Cost(
            _between(self.tokens, other.tokens, share),
            _between(self.seconds, other.seconds, share),
        )


@dataclass
class _Row:
    numbers: Mapping[str, float]
    batch: float | None = None
    step: float | None = None
    share: float = 1.0
    """How much of its batch is done."""
    is_step: bool = False


def read_runs(arguments: Sequence[str]) -> tuple[list[ComparedRun], list[str]]:
    """The runs that were named, and a line for each that is passed over.

    An argument is a run directory, a directory of runs, or a pattern of such. Raises `UserError`
    if there is no run among them.
    """
    named = (path for argument in arguments for path in _directories(argument))
    found = {path.resolve(): path for path in named}
    runs: list[ComparedRun] = []
    complaints: list[str] = []
    for path in found.values():
        try:
            runs.append(read_run(path))
        except UserError as error:
            complaints.append(str(error))
    if not runs:
        raise UserError(complaints[0] if complaints else f"RUNS is empty; {_SUGGESTION}")
    return runs, complaints


def projects_of(runs: Sequence[ComparedRun]) -> list[str]:
    """Where the runs were logged to, by the rule of `--wandb-project`.

    Raises `UserError` for a run that does not say so.
    """
    names: dict[str, None] = {}
    for run in runs:
        name = (
            run.config.get("wandb_project")
            or os.environ.get("WANDB_PROJECT")
            or run.config.get("default_wandb_project")
        )
        if not isinstance(name, str):
            raise UserError(
                f"RUNS={run.path}: its config.json names no W&B project; name the projects of the "
                "report with --projects"
            )
        names[name] = None
    return list(names)


def _directories(argument: str) -> Iterator[Path]:
    """What is named itself, or the runs in it; a directory without runs is named itself."""
    named = [Path(argument)] if Path(argument).exists() else map(Path, sorted(glob(argument)))
    for path in list(named) or [Path(argument)]:
        inside = [*sorted(path.glob("*/config.json")), *sorted(path.glob("*/*/config.json"))]
        runs = [file.parent for file in inside if _is_run(file.parent)]
        yield from runs if runs and not _is_run(path) else [path]


def _is_run(path: Path) -> bool:
    """A checkpoint has a config.json too, but that is of a model."""
    file = path / "config.json"
    return file.is_file() and b'"experiment"' in file.read_bytes()


def read_run(path: Path) -> ComparedRun:
    """Raises `UserError` if the directory is no run, or has lines that are no rows."""
    config = _read_config(path)
    rows = _placed(_numbered(path / "metrics.jsonl"))
    costs = _costs(rows)
    curves: dict[str, list[Point]] = {}
    for row in rows:
        position = _position(row, costs)
        for name, value in row.numbers.items():
            if name not in AXES:
                curves.setdefault(name, []).append(Point(position, value))
    last = max(costs)
    steps = [row.step for row in rows if row.step is not None]
    end = Position(last, max(steps, default=0), costs[last].tokens, costs[last].seconds)
    return ComparedRun(path.resolve(), config, curves, end)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise UserError(f"RUNS={path}: is no run, it has no config.json of one; {_SUGGESTION}")
    return dict(_flat(config))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _numbered(path: Path) -> Iterator[dict[str, float]]:
    """The finite numbers of each row. The last line is not whole if the run was killed, or goes on.

    Text, histograms and tables have rows of their own, which have no numbers beside the axis.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: line {number} is no JSON object; remove the line, or leave the run out"
            )
        yield {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }


def _placed(numbered: Iterator[dict[str, float]]) -> list[_Row]:
    """Each row with its batch and optimizer step.

    Optimizer steps are logged before the rows of the batch that they learn from.
    """
    rows: list[_Row] = []
    waiting: list[_Row] = []
    step = 0.0
    for numbers in numbered:
        if STEP_AXIS in numbers:
            step = numbers[STEP_AXIS]
            waiting.append(_Row(numbers, None, step, is_step=True))
            rows.append(waiting[-1])
        elif BATCH_AXIS in numbers:
            rows.append(_Row(numbers, numbers[BATCH_AXIS], step))
            for row in waiting:
                row.batch = numbers[BATCH_AXIS]
            waiting = []
    steps = [row for row in rows if row.is_step]
    count = Counter(row.batch for row in steps)
    done: Counter[float | None] = Counter()
    for row in steps:
        done[row.batch] += 1
        row.share = done[row.batch] / count[row.batch]
    return rows


def _costs(rows: Sequence[_Row]) -> dict[float, _Cost]:
    """What it took to get to the end of each batch; only of those that were finished."""
    costs = {0.0: _Cost()}
    total = costs[0.0]
    for row in rows:
        completions = row.numbers.get("rollouts/total_rollouts")
        if row.batch is not None and completions is not None:
            length = row.numbers.get("rollouts/completion_tokens_mean")
            tokens = None if length is None else length * completions
            total = costs[row.batch] = total.plus(tokens, row.numbers.get("time/step_s"))
    return costs


def _position(row: _Row, costs: Mapping[float, _Cost]) -> Position:
    if row.batch is None:
        return Position(None, row.step, None, None)
    unknown = _Cost(None, None)
    if not row.is_step:
        cost = costs.get(row.batch, unknown)
        return Position(row.batch, row.step, cost.tokens, cost.seconds)
    before, after = costs.get(row.batch - 1, unknown), costs.get(row.batch, unknown)
    cost = before.towards(after, row.share)
    return Position(row.batch - 1 + row.share, row.step, cost.tokens, cost.seconds)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _between(a: float | None, b: float | None, share: float) -> float | None:
    return None if a is None or b is None else a + share * (b - a)
