"""Run the seeds behind the results table of an experiment's README and print the table.

make reproduce EXPERIMENT=experiment_base
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro
from rich.console import Console

from common.repository import REPOSITORY
from common.run.files import read_rows

# Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959964


@dataclass(frozen=True)
class ReproduceConfig:
    """The runs behind a README's table."""

    experiment: tyro.conf.Positional[str] = "experiment_base"
    """Directory of the experiment."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run per seed."""
    eval_samples: int = 512
    """Held-out tasks, one sample each at temperature 1."""
    threads: int = 2
    """Threads of each run; rounding, and so the last digits, depend on it."""


@dataclass(frozen=True)
class Outcome:
    """What one run started and ended with."""

    seed: int
    first: dict[str, float]
    last: dict[str, float]
    steps: int
    seconds: float
    peak_gigabytes: float


def main(config: ReproduceConfig) -> None:
    console = Console()
    name = time.strftime("reproduce-%Y%m%d-%H%M%S")
    outcomes = [run(config, f"{name}-seed{seed}", seed) for seed in config.seeds]
    console.print(table(outcomes), soft_wrap=True, highlight=False)


def run(config: ReproduceConfig, name: str, seed: int) -> Outcome:
    """Train once, as a user would, and read what came out."""
    start = time.perf_counter()
    flags = {"--run-name": name, "--seed": seed, "--eval-samples": config.eval_samples}
    subprocess.run(
        [sys.executable, "train.py", *(str(part) for item in flags.items() for part in item)],
        cwd=REPOSITORY / config.experiment,
        env={**os.environ, "OMP_NUM_THREADS": str(config.threads)},
        check=True,
    )
    seconds = time.perf_counter() - start
    # Kilobytes on Linux, of the largest child so far.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    rows = list(read_rows(REPOSITORY / "runs" / config.experiment / name / "metrics.jsonl"))
    evaluations = [row for row in rows if "eval/accuracy" in row]
    steps = int(evaluations[-1]["rollouts/batch_step"])
    return Outcome(seed, evaluations[0], evaluations[-1], steps, seconds, peak)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share of `count` samples (E. B. Wilson, 1927)."""
    spread = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    centre = share + Z_95**2 / (2 * count)
    scale = 1 + Z_95**2 / count
    return (centre - spread) / scale, (centre + spread) / scale


# Columns of the table that show a metric before and after, where a run has it.
SHARES = {
    "in tags": "eval/format_rate",
    "right of tagged": "eval/accuracy_tagged",
    "tool used": "eval/tool_use_rate",
    "in new words": "eval/accuracy_new_wording",
}


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table, one row per seed and one for the mean."""
    known = {title: name for title, name in SHARES.items() if name in outcomes[0].last}
    titles = ["seed", "before", "after", *known, "steps", "time", "peak"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for outcome in outcomes:
        shares = (
            _with_interval(outcome.first),
            _with_interval(outcome.last),
            *(_before_after(outcome, name) for name in known.values()),
        )
        cost = f"{outcome.steps} | {outcome.seconds:.0f} s | {outcome.peak_gigabytes:.2f} GB"
        lines.append(f"| {outcome.seed} | {' | '.join(shares)} | {cost} |")
    before = statistics.fmean(outcome.first["eval/accuracy"] for outcome in outcomes)
    after = statistics.fmean(outcome.last["eval/accuracy"] for outcome in outcomes)
    lines.append(f"| mean | {before:.1%} | {after:.1%} |" + " |" * (len(titles) - 3))
    return "\n".join(lines)


def _with_interval(evaluation: dict[str, float]) -> str:
    share = evaluation["eval/accuracy"]
    low, high = wilson_interval(share, int(evaluation["eval/samples"]))
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _before_after(outcome: Outcome, name: str) -> str:
    return f"{outcome.first[name]:.1%} → {outcome.last[name]:.1%}"


if __name__ == "__main__":
    main(tyro.cli(ReproduceConfig))
