"""Runs that differ in their seed alone belong together; what the others differ in."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.flags.markers import FREE, marked
from common.flags.train_config import TrainConfig
from common.views.compare.runs import ComparedRun

# A run with other evaluations, or of another length, is another run to whoever compares.
_COMPARED = {"max_steps", "eval_interval", "eval_samples", "eval_group_size", "eval_temperature"}
# Digests and the like, of which a few characters tell two apart.
_SHOWN_OF_A_DIGEST = 9

# Which run is better: the first of these that tells them apart says it.
RANKED_BY = ("eval/accuracy", "eval/returns_mean", "rollouts/returns_mean")

# What stands for a flag that an experiment does not have.
ABSENT = "-"


@dataclass(frozen=True)
class RunGroup:
    """Runs with one configuration, each with a seed of its own."""

    label: str
    runs: Sequence[ComparedRun]
    labels: Sequence[str]
    """Of each run: short, but no other run's."""


@dataclass(frozen=True)
class Spread:
    """Mean of several seeds, and the standard deviation of one of them (n - 1)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def group_by_seed(runs: Sequence[ComparedRun]) -> list[RunGroup]:
    """In the order of the first run of each, whose labels say the objective where that differs."""
    grouped: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        grouped.setdefault(json.dumps(compared(run), sort_keys=True), []).append(number)
    labels = run_labels(runs)
    members = list(grouped.values())
    names = [_common_name([labels[number] for number in numbers]) for numbers in members]
    taken = Counter(names)
    objectives = [_as_text(runs[numbers[0]].config, "objective") for numbers in members]
    notes = [
        f" ({Path(objective).name})" if len(set(objectives)) > 1 else "" for objective in objectives
    ]
    return [
        RunGroup(
            (name if taken[name] == 1 else f"{labels[numbers[0]]} …") + note,
            [runs[number] for number in numbers],
            [labels[number] for number in numbers],
        )
        for name, note, numbers in zip(names, notes, members, strict=True)
    ]


def best_first(groups: Sequence[RunGroup]) -> tuple[list[RunGroup], str | None]:
    """The groups by the first metric that tells them apart, and that metric.

    They stay in their order where none does: all have an accuracy of 0 where nobody has said what
    is right, and nothing follows from that.
    """
    for metric in RANKED_BY:
        finals = [[run.final(metric) for run in group.runs] for group in groups]
        known = [[value for value in values if value is not None] for values in finals]
        means = [statistics.fmean(values) if values else -math.inf for values in known]
        if len(set(means) - {-math.inf}) > 1:
            order = sorted(range(len(groups)), key=means.__getitem__, reverse=True)
            return [groups[number] for number in order], metric
    return list(groups), None


def compared(run: ComparedRun) -> dict[str, Any]:
    """The part of the configuration in which seeds do not differ.

    Names, places and what is written beside the metrics are not in it; what the user's own code and
    data were is.
    """
    passed_over = {*marked(TrainConfig, FREE), "seed", "model_id"} - _COMPARED
    return {name: value for name, value in run.config.items() if name not in passed_over}


def differences(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """Per flag that is not the same in all groups, its value in each."""
    configs = [compared(group.runs[0]) for group in groups]
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [_as_text(config, name) for config in configs] for name in names}
    different = {name: texts for name, texts in values.items() if len(set(texts)) > 1}
    # What was asked for comes first, then what it ran on.
    return dict(sorted(different.items(), key=lambda item: _rank(item[0])))


def run_labels(runs: Sequence[ComparedRun]) -> list[str]:
    """The last parts of each path, as many as tell the runs apart."""
    depth = 2 if len({run.experiment for run in runs}) > 1 else 1
    while True:
        labels = ["/".join(run.path.parts[-depth:]) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
        depth += 1


def _common_name(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    stems = [re.sub(r"[-_. ]?seed[-_]?\d+$", "", label) for label in labels]
    return stems[0] if len(set(stems)) == 1 and stems[0] else f"{labels[0]} …"


def _as_text(config: Mapping[str, Any], name: str) -> str:
    if name not in config:
        return ABSENT
    value = config[name]
    if name == "git_commit" or name.startswith("inputs."):
        return str(value)[:_SHOWN_OF_A_DIGEST]
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def _rank(name: str) -> int:
    origins = ("num_parameters", "git_commit", "device_name", "num_threads", "num_processes")
    if name == "experiment":
        return 0
    return 2 if name in origins or name.startswith("versions.") else 1
