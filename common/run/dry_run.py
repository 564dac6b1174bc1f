"""`--dry-run`: what a run will cost, found out with one small step that leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from common.models.load import is_bundled
from common.run.config import ConfigType, TrainConfig, resolve_defaults
from common.run.files import read_rows
from common.run.optimizer import optimizer_steps

SMALL_TASKS = 2
NAME = "dry-run-removed-afterwards"


def dry_run(main: Callable[[ConfigType], None], config: ConfigType) -> None:
    """Run `main` for one step of two tasks in a temporary directory, then print the plan."""
    console = Console()
    with TemporaryDirectory() as root:
        small = replace(
            config,
            dry_run=False,
            resume=False,
            log_dir=Path(root),
            checkpoint_path=None,
            run_name=NAME,
            max_steps=1,
            rollouts_per_step=SMALL_TASKS,
            eval_samples=0,
            wandb=False,
        )
        main(small)
        directory = Path(root) / config.experiment / NAME
        record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        rows = read_rows(directory / "metrics.jsonl")
        (measured,) = (row for row in rows if "time/step_s" in row)
    for line in plan(config, record, measured):
        console.out(line, highlight=False)


def plan(
    config: TrainConfig, record: Mapping[str, Any], measured: Mapping[str, float]
) -> Iterator[str]:
    """What the whole run will do, from its flags and from the row of the small step."""
    config = resolve_defaults(config, bundled=is_bundled(config.model_name))
    completions = config.rollouts_per_step * config.group_size
    seconds = measured["time/step_s"]
    whole = seconds * config.rollouts_per_step / SMALL_TASKS
    yield f"model: {config.model_name}, {record['num_parameters']:,} parameters"
    yield (
        f"a step: {config.rollouts_per_step} tasks x {config.group_size} completions, "
        f"at most {completions * config.max_completion_tokens:,} sampled tokens, "
        f"{optimizer_steps(config, 1)} optimizer steps"
    )
    yield (
        f"time: {seconds:.1f} s for a step of {SMALL_TASKS} tasks, so at most about {whole:.0f} s "
        f"for one of the run's, of which there are {config.max_steps}"
    )
    yield (
        f"memory: {measured['system/process_memory_gb']:.1f} GB, on the GPU "
        f"{measured['system/gpu_memory_reserved_gb']:.1f} GB, with {SMALL_TASKS} tasks"
    )
    yield f"W&B: {_wandb_connection(config)}"


def _wandb_connection(config: TrainConfig) -> str:
    if not config.wandb:
        return "off"
    from common.logger.wandb_sink import describe_connection

    return describe_connection()
