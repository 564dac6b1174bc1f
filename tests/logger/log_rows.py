"""A run that only logs, in a process of its own: python -m tests.logger.log_rows LOG_DIR [flags].

It says when it starts to log, and when half of its rows are logged.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from common.flags.parsing import parse_config
from common.flags.train_config import TrainConfig
from common.logger import mirror_sink
from common.logger.media import Bars, Histogram, Table
from common.run.checkpoint import MANIFEST, STATE
from common.run.directory import choose_run
from common.training import open_logger

STARTED = "started at"
HALF_WAY = "half way"
STEPS = 6
CONTENTS = "the bytes of {name} at step {step}"


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Nothing is trained."""

    experiment: ClassVar[str] = "log_rows"
    default_wandb_project: ClassVar[str] = "default_project"
    max_steps: int = STEPS
    endless: bool = False
    """Log slowly, until killed: few rows must not need many others to be written."""
    pause: bool = False
    """Wait half way for a line on stdin."""
    finish_seconds: float = mirror_sink.FINISH_SECONDS
    """How long to wait for the mirror at the end."""
    impatient: bool = False
    """Wait a second for W&B where a run waits ten."""
    saves: bool = False
    """Save checkpoints of a few bytes, and evaluate each: the second is the best."""


def main(log_dir: str, flags: list[str]) -> None:
    config = parse_config(Config, ["--log-dir", log_dir, "--run-name", "run", *flags])
    mirror_sink.FINISH_SECONDS = config.finish_seconds
    if config.impatient:
        open_logger.WANDB = "tests.logger.impatient:open_wandb"
    console = Console()
    tell(f"{STARTED} {time.time()}")
    run = choose_run(config, console.out)
    run.directory.path.mkdir(parents=True, exist_ok=True)
    with open_logger.open_logger(
        config, run, {"lr": config.lr, "seed": config.seed}, console
    ) as logger:
        step = 0
        while step < config.max_steps or config.endless:
            step += 1
            logger.log_training_step(2 * step - 1, {"training_step/loss": 1 / step})
            logger.log_training_step(2 * step, {"training_step/loss": float("nan")})
            logger.log_batch(step, {"rollouts/returns_mean": 0.1 * step, "dr_grpo/x": step})
            text = f"<think>[bold]{step}[/bold]\n"
            media = {
                "examples/completion": text,
                "rewards/a_hist": Histogram.of([0.0, step, step, 2.0 * step]),
                "generations": Table(
                    ["step", "question", "reward"], [[step, "1|2?", 0.5], [step, "<b>", None]]
                ),
                "rewards/breakdown": Bars({"a": 0.5 * step, "b": -1.0}),
            }
            logger.log_media(step, media)
            if config.saves:
                saved = {"checkpoint/saved": 1.0, "checkpoint/step": step}
                logger.log_batch(step, saved)
                save(run.directory.checkpoints / f"step_{step:06d}", step)
                logger.log_batch(step, {"eval/returns_mean": 1 / abs(step - 2.1)})
            if step == STEPS // 2:
                tell(HALF_WAY)
                if config.pause:
                    sys.stdin.readline()
            if config.endless:
                time.sleep(0.5)
        logger.log_batch(step, {"final_reward": 1.5})
        summary = Table(["criterion", "mean"], [["polite", 0.5], ["brief", None]])
        logger.log_media(step, {"rubric_criteria_summary": summary})
        if config.saves:
            logger.log_batch(step, {"checkpoint/final_saved": 1.0, "final/a_mean": 0.5})


def save(path: Path, step: int) -> None:
    """As `Checkpoints.save` does: whole, by a rename."""
    partial = path.with_name("partial")
    partial.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", MANIFEST, STATE):
        (partial / name).write_text(CONTENTS.format(name=name, step=step))
    partial.rename(path)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
