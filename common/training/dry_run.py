"""`--dry-run`: what a run will cost, found out with a small step that leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from common.flags.train_config import ConfigType, TrainConfig
from common.run.directory import choose_run
from common.run.files import read_rows
from common.training.learner import optimizer_steps
from common.training.open_logger import wandb_switched_off

NAME = "dry-run-removed-afterwards"


def dry_run(main: Callable[[ConfigType], None], config: ConfigType) -> None:
    """Run `main` in a temporary directory for a small step, after one that only warms up.

    Then print the plan.
    """
    console, is_first = Console(), os.environ.get("RANK", "0") == "0"
    if is_first:
        choose_run(config, console.out)
    with TemporaryDirectory() as root:
        small = replace(
            config,
            resume=False,
            log_dir=Path(root),
            checkpoint_path=None,
            run_name=NAME,
            max_steps=2,
            rollouts_per_step=small_tasks(config),
            eval_samples=0,
            checkpoint_interval=0,
            wandb=False,
            log_artifacts=False,
        )
        main(small)
        if not is_first:
            return
        directory = Path(root) / config.experiment / NAME
        record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        rows = read_rows(directory / "metrics.jsonl")
        _, measured = (row for row in rows if "time/step_s" in row)
    for line in plan(config, record, measured):
        console.out(line, highlight=False)


def small_tasks(config: TrainConfig) -> int:
    """As few tasks as fill a micro-batch: learning from it takes the memory of a whole step.

    They do where sequences are a quarter as long as they may be.
    """
    sequences = math.ceil(4 * config.micro_batch_tokens / config.max_length)
    if config.micro_batch_size is not None:
        sequences = min(sequences, config.micro_batch_size)
    return min(config.rollouts_per_step, math.ceil(sequences / config.group_size))


def plan(
    config: TrainConfig, record: Mapping[str, Any], measured: Mapping[str, float]
) -> Iterator[str]:
    """What the whole run will do, from its flags and from the row of the small step."""
    draws = config.dynamic_sampling
    completions = draws * config.rollouts_per_step * config.group_size
    seconds = measured["time/step_s"]
    tasks = small_tasks(config)
    whole = seconds * config.rollouts_per_step / tasks
    yield f"model: {config.model_name}, {record['num_parameters']:,} parameters"
    yield (
        f"a step: {config.rollouts_per_step} tasks x {config.group_size} completions"
        f"{f' in up to {draws} draws' if draws > 1 else ''}, "
        f"at most {completions * config.max_completion_tokens:,} sampled tokens and "
        f"{completions * config.max_length:,} in all, {optimizer_steps(config, 1)} optimizer steps"
    )
    yield (
        f"time: {seconds:.1f} s for a step of {tasks} tasks, so at most about {whole:.1f} s "
        f"for one of the run's, of which there are {config.max_steps}"
    )
    yield (
        f"memory: {measured['system/process_memory_gb']:.1f} GB, on the GPU "
        f"{measured['system/gpu_memory_reserved_gb']:.1f} GB, with {tasks} tasks; "
        f"at most {_peaks(measured)}"
    )
    yield f"W&B: {_wandb_connection(config)}"


def _peaks(measured: Mapping[str, float]) -> str:
    phases = {"rollout": "sampling", "log_probs": "scoring", "train": "learning"}
    known = {name: measured.get(f"system/peak_{phase}_gb") for phase, name in phases.items()}
    return ", ".join(f"{peak:.1f} GB {name}" for name, peak in known.items() if peak is not None)


def _wandb_connection(config: TrainConfig) -> str:
    if not config.wandb:
        return "off"
    if switch := wandb_switched_off():
        return f"off ({switch})"
    from common.logger.wandb_sink import describe_connection

    return describe_connection()
