"""What sampling ahead saves, and what learning from older weights costs.

python -m benchmarks.policy_lag          (about a quarter of an hour on two cores)

Runs one after another, one thread for each process. Draws `policy_lag.png` beside this file, and
writes the table of `policy_lag.md`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich.console import Console

from benchmarks.pages import put_into
from common.repository import REPOSITORY
from common.run.files import read_rows

HERE = Path(__file__).parent
PAGE = HERE / "policy_lag.md"
EXPERIMENT = "experiment_base"
KINDS = {
    "lag 0": ("--policy-lag", "0"),
    "lag 1": ("--policy-lag", "1"),
    "lag 1, no correction": ("--policy-lag", "1", "--correction", "none"),
    "lag 3": ("--policy-lag", "3"),
    "lag 3, no correction": ("--policy-lag", "3", "--correction", "none"),
}
# Evaluations would take their turn with the sampling.
UNEVALUATED = (
    *("--eval-samples", "0", "--checkpoint-interval", "0"),
    *("--no-wandb", "--no-tensorboard"),
)
# Batches before the two processes have found their pace.
WARM_UP = 3


@dataclass(frozen=True)
class LagConfig:
    """GRPO on batches of older weights, sampled by a second process."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Runs of each kind."""
    steps: int = 25
    """Rollout batches of each run."""


def main(config: LagConfig) -> None:
    with TemporaryDirectory() as root:
        found = {
            kind: [batches(Path(root), kind, seed, config.steps) for seed in config.seeds]
            for kind in KINDS
        }
    table = table_of(found)
    Console(soft_wrap=True, highlight=False).print(table)
    put_into(PAGE, "lags", table)
    draw(found)


def batches(root: Path, kind: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """The rows of the rollout batches of a run."""
    name = f"{kind}-{seed}".replace(" ", "_").replace(",", "")
    flags = ("--seed", str(seed), "--max-steps", str(steps), "--run-name", name)
    subprocess.run(
        [sys.executable, "train.py", "--log-dir", root, *UNEVALUATED, *KINDS[kind], *flags],
        cwd=REPOSITORY / EXPERIMENT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = read_rows(root / EXPERIMENT / name / "metrics.jsonl")
    return [row for row in rows if "rollouts/returns_mean" in row]


def table_of(found: dict[str, list[list[dict[str, Any]]]]) -> str:
    lines = [
        "| | seconds per batch | of lag 0 | the learner waits, s | the sampler waits, s | "
        "reward of the last 5 batches | mismatch, nats |",
        "|---|---|---|---|---|---|---|",
    ]
    pace = statistics.mean(median(rows, "time/step_s") for rows in found["lag 0"])
    for kind, runs in found.items():
        seconds = [median(rows, "time/step_s") for rows in runs]
        waits = [
            "" if "lag 0" in kind else f"{statistics.mean(median(r, name) for r in runs):.2f}"
            for name in ("time/waited_for_rollouts_s", "time/waited_for_learner_s")
        ]
        rewards = [
            statistics.mean(row["rollouts/returns_mean"] for row in rows[-5:]) for rows in runs
        ]
        apart = statistics.mean(median(r, "rollouts/logprob_mismatch_mean") for r in runs)
        lines.append(
            f"| {kind} | {span(seconds, 2)} | {statistics.mean(seconds) / pace:.2f} | "
            f"{waits[0]} | {waits[1]} | {span(rewards, 3)} | {apart:.2g} |"
        )
    return "\n".join(lines)


def median(rows: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows[WARM_UP:])


def span(values: Sequence[float], digits: int) -> str:
    least, most = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def draw(found: dict[str, list[list[dict[str, Any]]]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for kind, runs in found.items():
        curves = np.array([[row["rollouts/returns_mean"] for row in rows] for rows in runs])
        steps = np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(steps, curves.mean(axis=0), label=kind)
        axes.fill_between(
            steps, curves.min(axis=0), curves.max(axis=0), alpha=0.12, color=line.get_color()
        )
    axes.set(xlabel="batch", ylabel="mean reward, least and most of the seeds shaded")
    axes.legend()
    figure.savefig(HERE / "policy_lag.png", dpi=120)


if __name__ == "__main__":
    main(tyro.cli(LagConfig, description=__doc__))
