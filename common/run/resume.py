"""What may differ between a run and its continuation, and what is said where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from common.errors import UserError
from common.flags.markers import FREE, ROUNDING, marked
from common.flags.saved import as_json
from common.flags.spelling import as_given
from common.flags.train_config import TrainConfig
from common.run.checkpoint import Checkpoint
from common.run.record import content, data_digest, own_code

_REMEDY = "or start a new run without --resume"


def refuse_other_numbers(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` for a flag with which the resumed run would not be the same run.

    A flag that is younger than the run, which therefore knows nothing of it, is not compared.
    """
    may_differ = marked(type(config), FREE) | marked(type(config), ROUNDING)
    for name, value in as_json(config).items():
        if name in saved and name not in may_differ and value != saved[name]:
            raise UserError(
                f"{as_given(name, value)}: the run to resume has {_before(name, saved)}; "
                f"leave the flag out, {_REMEDY}"
            )


def refuse_other_content(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` for data or own code that has changed under its name since the run began.

    A run that has not recorded what they were is not compared.
    """
    path = config.data_path or config.data_file
    if "data_digest" in saved and data_digest(config) != saved["data_digest"]:
        raise UserError(_changed(f"--data-path {path}"))
    for name, digest in content(config):
        if digest != saved.get("content", {}).get(name, digest):
            raise UserError(_changed(name))
    if "own_code" in saved:
        for name, digest in own_code(config):
            if digest != saved["own_code"].get(name, digest):
                raise UserError(_changed(name))


def notable_differences(
    config: TrainConfig, saved: Mapping[str, Any], checkpoint: Checkpoint, num_processes: int
) -> Iterator[str]:
    """A line for each thing that is not as it was and may change numbers all the same."""
    rounding = "from here on the numbers differ by rounding"
    for name, value in as_json(config).items():
        if name in marked(type(config), ROUNDING) and value != saved.get(name, value):
            yield f"{as_given(name, value)} instead of {_before(name, saved)}: {rounding}"
    threads, before = torch.get_num_threads(), checkpoint.state["num_threads"]
    if threads != before:
        yield f"{threads} threads instead of {before}: {rounding}"
    processes = len(checkpoint.state["random"])
    if num_processes != processes:
        yield (
            f"{num_processes} processes instead of {processes}: "
            "from here on the run is not the same number for number"
        )
    if config.max_steps != saved["max_steps"] and config.lr_schedule != "constant":
        yield (
            f"{as_given('max_steps', config.max_steps)} instead of {saved['max_steps']}: "
            f"from here on the {config.lr_schedule} schedule leads there"
        )


def _before(name: str, saved: Mapping[str, Any]) -> str:
    """The run's value of a flag, where the flag has just been named."""
    value = saved[name]
    if isinstance(value, bool):
        return as_given(name, value)
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _changed(name: str) -> str:
    return f"{name}: has changed since the run to resume began; put it back, {_REMEDY}"
