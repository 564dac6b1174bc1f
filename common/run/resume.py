"""What may differ between a run and its continuation, and what is said where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from common.errors import UserError
from common.flags.markers import FREE, ROUNDING, marked
from common.flags.saved import as_json
from common.flags.spelling import as_given, flag_name
from common.flags.train_config import TrainConfig
from common.run.checkpoint import Checkpoint
from common.run.inputs import inputs

_REMEDY = "or start a new run without --resume"


def refuse_other_numbers(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` for a flag with which the resumed run would not be the same run.

    A flag that is younger than the run, which therefore knows nothing of it, is not compared, and
    one whose content the run has recorded is not compared by the place where that lies.
    """
    may_differ = marked(type(config), FREE) | marked(type(config), ROUNDING)
    for name, value in as_json(config).items():
        known = name in may_differ or _recorded(name, saved)
        if name in saved and not known and value != saved[name]:
            raise UserError(_other_value(name, value, saved))


def refuse_other_content(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` for an input that does not hold what it held when the run began.

    A run that has not recorded what that was is not compared.
    """
    if "inputs" not in saved:
        return
    values = as_json(config)
    there: dict[str, list[str]] = {name: [] for name in values}
    for given in inputs(config):
        if given.digest != _recorded(given.name, saved).get(given.key, given.digest):
            raise UserError(
                f"{given.given}: does not hold what the run to resume began with; put that back, "
                f"{_REMEDY}"
            )
        there[given.name].append(given.key)
    for name, keys in there.items():
        if (recorded := _recorded(name, saved)) and list(recorded) != keys:
            raise UserError(_other_value(name, values[name], saved))


def _recorded(name: str, saved: Mapping[str, Any]) -> dict[str, str | None]:
    """The digests of a flag's inputs when the run began; none if it did not record them."""
    digests = saved.get("inputs", {})
    return {key: digest for key, digest in digests.items() if key.split()[0] == flag_name(name)}


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
    steps, planned = config.max_steps, saved["max_steps"]
    if steps != planned and config.lr_schedule != "constant":
        yield (
            f"{as_given('max_steps', steps)} instead of {planned}: the {config.lr_schedule} decay "
            "now ends there, so that from here on the learning rate is "
            f"{'higher' if steps > planned else 'lower'} than it was to be"
        )


def _before(name: str, saved: Mapping[str, Any]) -> str:
    """The run's value of a flag, where the flag has just been named."""
    value = saved[name]
    if isinstance(value, bool):
        return as_given(name, value)
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _other_value(name: str, value: object, saved: Mapping[str, Any]) -> str:
    before = _before(name, saved)
    return f"{as_given(name, value)}: the run to resume has {before}; leave the flag out, {_REMEDY}"
