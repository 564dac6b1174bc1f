"""Draw the learning curve of runs from their `metrics.jsonl`.

python -m benchmarks.learning_curve OUTPUT.png RUN_DIRECTORY [RUN_DIRECTORY ...]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.rows import column
from common.run.files import read_rows

PANELS = (
    ("right on held-out tasks", "eval/accuracy", True),
    ("mean reward of the batch", "rollouts/returns_mean", False),
    ("tokens per completion", "rollouts/completion_tokens_mean", False),
)


@dataclass(frozen=True)
class CurveConfig:
    """A picture of what runs learned."""

    output: tyro.conf.Positional[Path]
    """PNG to write."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories; each is a line."""


def main(config: CurveConfig) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for run in config.runs:
        rows = list(read_rows(run / "metrics.jsonl"))
        for axis, (_, metric, _) in zip(axes, PANELS, strict=True):
            steps, values = column(rows, metric)
            axis.plot(steps, values, marker="o", markersize=3, label=run.name.split("-")[-1])
    for axis, (title, _, is_share) in zip(axes, PANELS, strict=True):
        finish(axis, title, is_share)
    axes[0].legend(frameon=False)
    figure.savefig(config.output, dpi=130)


def finish(axis: Axes, title: str, is_share: bool) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("rollout batch (32 tasks x 8)")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if is_share:
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


if __name__ == "__main__":
    main(tyro.cli(CurveConfig))
