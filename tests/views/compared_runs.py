"""Run directories with few numbers, all of them chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.logger.media import Histogram, Table, as_json

# Completions, their mean length and the seconds of each batch: 42, 90 and 114 tokens after it.
BATCHES = ((4, 10.5, 2.0), (4, 12.0, 3.5), (3, 8.0, 1.5))
TOKENS = (42.0, 90.0, 114.0)
SECONDS = (2.0, 5.5, 7.0)
RETURNS = (0.25, 0.75, 0.5)


def batch_rows(
    number: int, value: float, loss: float = 1.0, batches: Sequence[tuple] = BATCHES
) -> list[dict[str, Any]]:
    """What a batch logs, in its order: two optimizer steps, their epoch, the batch, its media."""
    count, length, seconds = batches[number - 1]
    axis = {"rollouts/batch_step": number}
    return [
        {"training_step/global_step": 2 * number - 1, "training_step/loss": loss},
        {"training_step/global_step": 2 * number, "training_step/loss": -loss},
        {**axis, "training_epoch/loss_mean": 0.0},
        {
            **axis,
            "rollouts/returns_mean": value,
            "rollouts/total_rollouts": float(count),
            "rollouts/completion_tokens_mean": length,
            "time/step_s": seconds,
        },
        {**axis, "examples/completion": "<b>12</b>"},
        {**axis, "rewards/distribution": as_json(Histogram.of([0.0, 1.0]))},
        {**axis, "generations": as_json(Table(["step", "reward"], [[1, 0.5]]))},
    ]


def evaluation_row(batch: int, accuracy: float) -> dict[str, Any]:
    returns = accuracy + 0.1
    return {
        "rollouts/batch_step": batch,
        "eval/accuracy": accuracy,
        "eval/returns_mean": returns,
    }


def whole_run(
    returns: Sequence[float] = RETURNS, accuracy: float = 0.75, batches: Sequence[tuple] = BATCHES
) -> list[dict[str, Any]]:
    """An evaluation before and one after three batches, and the end."""
    rows = [evaluation_row(0, 0.5)]
    for number, value in enumerate(returns, start=1):
        rows += batch_rows(number, value, batches=batches)
    end = {"rollouts/batch_step": 3, "training/completed": 1.0, "final_reward": accuracy + 0.1}
    return [*rows, evaluation_row(3, accuracy), end]


def write_run(
    root: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    experiment: str = "experiment_a",
    **config: Any,
) -> Path:
    path = root / experiment / name
    path.mkdir(parents=True)
    record = {
        **{"experiment": experiment, "seed": 1, "run_name": name, "max_steps": 3, "lr": 5e-7},
        **{"wandb_group": name, "versions": {"torch": "2.13"}},
        **config,
    }
    (path / "config.json").write_text(json.dumps(record))
    lines = (json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


# What the page draws: each metric with its lines.
TRACES = """
return [...document.querySelectorAll("#curves figure")].map((figure) => [
  figure.dataset.metric,
  figure.querySelector(".chart").data.map(
    ({ x, y, meta, name, line }) => ({ x: [...x], y: [...y], meta, name, color: line.color })),
]);
"""
