"""All figures from made-up rows, to see what they look like before a run has any.

python -m common.views.figures.demo [--directory figures-demo]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from common.command import run_command
from common.logger.recorder import PROBES
from common.logger.sinks import BATCH_AXIS, STEP_AXIS
from common.packages import require
from common.run.directory import check_writable
from common.views.figures.history import History

BATCHES, STEPS_PER_BATCH, LAYERS, TASKS, WIDTH = 60, 2, 6, 40, 32
_RUBRIC = ("brief", "shows_its_steps", "has_one_answer")


@dataclass(frozen=True)
class DemoConfig:
    """Make all figures from made-up rows."""

    directory: Path = Path("figures-demo")
    """Where the pages go."""


def made_up_history(seed: int = 1) -> History:
    """The rows and snapshots of a run that went well, with a layer that vanishes."""
    rng = np.random.default_rng(seed)
    history = History()
    directions = rng.normal(size=(len(PROBES), WIDTH))
    ease = rng.normal(size=TASKS)
    for batch in range(1, BATCHES + 1):
        progress = batch / BATCHES
        reward = 0.3 + 0.65 / (1 + np.exp(6 - 12 * progress)) + 0.02 * rng.normal()
        norm = 0.5 * np.exp(-progress) + 0.05 * abs(rng.normal())
        loss = 0.02 - 0.03 * progress + 0.004 * rng.normal()
        history.add(
            {
                BATCH_AXIS: batch,
                "rollouts/returns_mean": reward,
                "rollouts/kl_mean": 0.3 * progress**2 + 0.005 * abs(rng.normal()),
                "training_epoch/loss_mean": loss,
                "training_epoch/grad_norm_mean": norm,
                "rewards/answer_check_mean": reward - 0.1,
                "rewards/answer_check_max": 1.0,
                "rewards/format_exact_mean": 0.6 + 0.4 * progress,
                "rewards/format_exact_max": 1.0,
                **{
                    f"criteria/demo/{name}_mean": min(1.0, progress * (place + 1) / 2)
                    for place, name in enumerate(_RUBRIC)
                },
            }
        )
        for step in range((batch - 1) * STEPS_PER_BATCH + 1, batch * STEPS_PER_BATCH + 1):
            rate = 4e-4 * min(1.0, step / 20) * (1 - progress / 2)
            row = {"loss": loss + 0.004 * rng.normal(), "learning_rate": rate, "grad_norm": norm}
            history.add({STEP_AXIS: step, **{f"training_step/{k}": v for k, v in row.items()}})
            norms = {
                f"layers.{layer}": norm * 0.6**layer * rng.uniform(0.8, 1.2)
                for layer in range(LAYERS)
            }
            norms["embed_tokens"] = norm * 1e-4
            history.add_snapshot({"gradients": {"global_step": step, "norms": norms}})
        means = {
            str(task): float(np.clip(reward + 0.2 * ease[task], 0, 1))
            for task in rng.choice(TASKS, 10, replace=False)
        }
        history.add_snapshot({"task_rewards": {"batch_step": batch, "means": means}})
        if batch % 5 == 0:
            directions = directions + 0.3 * rng.normal(size=(len(PROBES), WIDTH))
            embeddings = {"texts": list(PROBES), "vectors": directions.tolist()}
            history.add_snapshot({"embeddings": {"batch_step": batch, **embeddings}})
    history.add_snapshot({"attention": _made_up_attention(rng)})
    return history


def _made_up_attention(rng: np.random.Generator) -> dict[str, object]:
    tokens = [
        *("What", " is", " 9", "+", "1", "-", "6", "?", "<think>", " 9", "+", "1", "=", "10"),
        *(" 10", "-", "6", "=", "4", "</think>", "<answer>", " 4", "</answer>"),
    ]
    count = len(tokens)
    scores = rng.normal(size=(count, count)) + 2 * np.eye(count, k=-1)
    weights = np.exp(scores) * np.tri(count)
    weights /= weights.sum(axis=1, keepdims=True)
    where = {"batch_step": BATCHES, "layer": -1, "head": 0}
    return {**where, "tokens": tokens, "weights": weights.tolist()}


def main(config: DemoConfig) -> None:
    require("plotly", "the figures")
    from common.views.figures.maker import FIGURES, page_of, write_page

    check_writable(config.directory.absolute(), f"--directory {config.directory}")
    history = made_up_history()
    console = Console()
    for name, draw in FIGURES.items():
        page = page_of(config.directory, name)
        write_page(draw(history), page)
        console.out(page, highlight=False)


if __name__ == "__main__":
    run_command(main, DemoConfig)
