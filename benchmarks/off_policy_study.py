"""What do corrections mend when completions come from older weights, or from bfloat16?

python -m benchmarks.off_policy_study          (about half an hour on two cores)

Draws `off_policy_study_curves.png` beside this file, and writes the tables into
`off_policy_study.md`. Runs that are finished are read; those that are not, are run.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks.learning_curve import finish
from benchmarks.older_weights import Config as OlderWeights
from benchmarks.pages import put_into
from benchmarks.rows import column
from common.repository import REPOSITORY
from common.run.files import read_rows

HERE = Path(__file__).parent
PAGE = HERE / "off_policy_study.md"
REWARD = "eval/returns_mean"
MISMATCH = "rollouts/logprob_mismatch_mean"
EFFECTIVE = "correction/effective_sample_size"
DROPPED = "correction/dropped_fraction"
GOAL = 0.9
LAST_EVALUATIONS = 3
EVALUATED_EVERY = 2
EVALUATED_TASKS = 256

CORRECTIONS = ("token_truncated", "token_masked", "sequence_masked", "sequence_geometric")
METHODS = {
    "none": ("--correction", "none"),
    "head_dtype_float32": ("--correction", "none", "--head-dtype", "float32"),
    **{name: ("--correction", name) for name in CORRECTIONS},
}
UNDER_LAG = ("none", *CORRECTIONS)
IN_BFLOAT16 = ("none", "head_dtype_float32", "token_truncated")
COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:blue", "tab:purple")


@dataclass(frozen=True)
class StudyConfig:
    """GRPO on completions of older weights, with and without corrections."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Runs of each kind."""
    lags: tuple[int, ...] = (1, 4)
    """Steps by which the weights that sample are older than those that learn."""
    steps: int = 26
    """Rollout batches of each run."""
    root: Path = REPOSITORY / "runs" / "off_policy_study"
    """Where the runs are."""
    parallel: int = 2
    """Runs at a time, one thread each."""


@dataclass(frozen=True)
class Run:
    """One training; what is not named here is as `experiment_base` has it."""

    method: str
    lag: int
    seed: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.dtype}-lag{self.lag}-{self.method}-seed{self.seed}"

    def directory(self, config: StudyConfig) -> Path:
        return config.root / OlderWeights.experiment / self.name

    def flags(self, config: StudyConfig) -> list[str]:
        flags = {
            "--run-name": self.name,
            "--log-dir": config.root.resolve(),
            "--lag": self.lag,
            "--seed": self.seed,
            "--dtype": self.dtype,
            "--max-steps": config.steps,
            "--eval-interval": EVALUATED_EVERY,
            "--eval-samples": EVALUATED_TASKS,
            "--checkpoint-interval": 0,
        }
        given = [str(part) for item in flags.items() for part in item]
        return [*given, *METHODS[self.method], "--no-wandb", "--no-tensorboard"]


Kind = tuple[str, int, str]


def main(config: StudyConfig) -> None:
    console, start = Console(soft_wrap=True, highlight=False), time.perf_counter()
    of_lags = [
        Run(method, lag, seed)
        for seed in config.seeds
        for lag in (0, *config.lags)
        for method in (UNDER_LAG if lag else ("none",))
    ]
    of_precision = [Run(method, 0, config.seeds[0], "bfloat16") for method in IN_BFLOAT16]
    trained = train_all(config, [*of_lags, *of_precision])
    minutes = (time.perf_counter() - start) / 60
    console.print(f"{trained} runs in {minutes:.1f} minutes, {config.parallel} at a time\n")

    lags, precision = kinds(config, of_lags), kinds(config, of_precision)
    control = {kind: rows for kind, rows in lags.items() if not kind[1]}
    tables = {
        "older weights": result_table(lags),
        "seed by seed": difference_table(lags),
        "bfloat16": result_table({**control, **precision}),
    }
    for name, table in tables.items():
        console.print(f"{name}\n\n{table}")
        put_into(PAGE, name, table)
    draw(config, lags, HERE / "off_policy_study_curves.png")


def kinds(config: StudyConfig, runs: Iterable[Run]) -> dict[Kind, list[list[dict[str, Any]]]]:
    """The rows of all seeds of each kind of run."""
    found: dict[Kind, list[list[dict[str, Any]]]] = {}
    for run in sorted(runs, key=lambda run: run.lag):
        rows = rows_of(run.directory(config))
        found.setdefault((run.method, run.lag, run.dtype), []).append(rows)
    return found


@cache
def rows_of(directory: Path) -> list[dict[str, Any]]:
    return list(read_rows(directory / "metrics.jsonl"))


def train_all(config: StudyConfig, runs: Sequence[Run]) -> int:
    """Train what is not there yet; returns how many that were."""
    missing = [run for run in runs if not is_finished(run.directory(config), config.steps)]
    with ThreadPoolExecutor(config.parallel) as pool:
        list(pool.map(lambda run: train(config, run), missing))
    return len(missing)


def is_finished(directory: Path, steps: int) -> bool:
    file = directory / "metrics.jsonl"
    rows = read_rows(file) if file.exists() else ()
    return steps in column(list(rows), "training/completed")[0]


def train(config: StudyConfig, run: Run) -> None:
    """Train as a user would, anew where a run was broken off, and keep its rows alone."""
    directory = run.directory(config)
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.older_weights", *run.flags(config)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    shutil.rmtree(directory / "checkpoints")


def result_table(found: Mapping[Kind, list[list[dict[str, Any]]]]) -> str:
    """A line for each kind of run: means over seeds, and in brackets the least and the most."""
    columns: dict[str, tuple[Callable[[list[dict[str, Any]]], float], str]] = {
        "reward": (last_reward, ".3f"),
        "accuracy": (lambda rows: last_mean(rows, "eval/accuracy"), ".3f"),
        "largest gradient": (lambda rows: max(values(rows, "training_step/grad_norm")), ".2f"),
        "mean \\|log w\\|": (lambda rows: mean(rows, MISMATCH), ".2g"),
        "effective sample": (lambda rows: mean(rows, EFFECTIVE), ".3f"),
        "dropped": (lambda rows: mean(rows, DROPPED), ".3f"),
    }
    titles = ["lag", "method", *columns]
    titles.insert(4, f"steps to {GOAL}")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (method, lag, dtype), runs in found.items():
        cells = [spread([of(rows) for rows in runs], form) for of, form in columns.values()]
        cells.insert(2, ", ".join(steps_to_goal(rows) for rows in runs))
        where = str(lag) if dtype == "float32" else f"{lag}, {dtype}"
        lines.append(f"| {where} | `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table(found: Mapping[Kind, list[list[dict[str, Any]]]]) -> str:
    """Final rewards less those of another kind of run with the same seeds, by seed."""
    lines = ["| lag | method | less lag 0 | less `none` |", "|---|---|---|---|"]
    control = found["none", 0, "float32"]
    for (method, lag, dtype), runs in found.items():
        if lag:
            without = found["none", lag, dtype]
            others = [control] if method == "none" else [control, without]
            cells = [
                ", ".join(
                    f"{last_reward(rows) - last_reward(base):+.3f}"
                    for rows, base in zip(runs, other, strict=True)
                )
                for other in others
            ]
            lines.append(f"| {lag} | `{method}` | {' | '.join([*cells, ''][:2])} |")
    return "\n".join(lines)


def values(rows: Iterable[Mapping[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def mean(rows: Iterable[Mapping[str, float]], name: str) -> float:
    """Over a run; NaN for what it has not logged."""
    found = values(rows, name)
    return statistics.fmean(found) if found else math.nan


def last_mean(rows: Iterable[Mapping[str, float]], name: str) -> float:
    return statistics.fmean(values(rows, name)[-LAST_EVALUATIONS:])


def last_reward(rows: Iterable[Mapping[str, float]]) -> float:
    return last_mean(rows, REWARD)


def steps_to_goal(rows: list[dict[str, Any]]) -> str:
    """The first evaluation whose reward is no less than the goal."""
    steps, rewards = column(rows, REWARD)
    reached = (step for step, reward in zip(steps, rewards, strict=True) if reward >= GOAL)
    return f"{next(reached, math.inf):.0f}".replace("inf", "never")


def spread(found: Sequence[float], form: str) -> str:
    """Mean, least and most, or the one there is; nothing where nothing was logged."""
    if any(map(math.isnan, found)):
        return ""
    if len(found) == 1:
        return format(found[0], form)
    low, middle, high = (format(of(found), form) for of in (min, statistics.fmean, max))
    return f"{middle} ({low} to {high})"


def draw(config: StudyConfig, found: Mapping[Kind, list[list[dict[str, Any]]]], path: Path) -> None:
    """Held-out reward and mismatch over steps, a row of panels for each lag."""
    panels = {REWARD: "held-out reward of the weights that learn", MISMATCH: "mean |log w|, nats"}
    figure, axes = plt.subplots(
        len(config.lags),
        len(panels),
        figsize=(11, 3.4 * len(config.lags)),
        layout="constrained",
        sharex=True,
        sharey="col",
        squeeze=False,
    )
    for line, lag in zip(axes, config.lags, strict=True):
        for axis, (name, title) in zip(line, panels.items(), strict=True):
            draw_band(axis, found["none", 0, "float32"], name, "black", "lag 0")
            for method, colour in zip(UNDER_LAG, COLOURS, strict=True):
                draw_band(axis, found[method, lag, "float32"], name, colour, method)
            finish(axis, f"{title}, lag {lag}", False)
    axes[0, 0].legend(frameon=False)
    axes[0, 1].set_ylim(0, None)
    figure.savefig(path, dpi=130)


def draw_band(
    axis: Axes, runs: Sequence[list[dict[str, Any]]], name: str, colour: str, label: str
) -> None:
    """The mean over seeds, and what lies between the least and the most."""
    steps, _ = column(runs[0], name)
    samples = np.array([column(rows, name)[1] for rows in runs])
    axis.plot(steps, samples.mean(axis=0), color=colour, label=label)
    axis.fill_between(
        steps, samples.min(axis=0), samples.max(axis=0), color=colour, alpha=0.12, lw=0
    )


if __name__ == "__main__":
    main(tyro.cli(StudyConfig))
