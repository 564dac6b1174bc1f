"""What a run records of itself in its `config.json`."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from common.flags.saved import as_json
from common.flags.train_config import TrainConfig
from common.repository import REPOSITORY
from common.run.files import sha256_of_all
from common.run.inputs import inputs

_LIBRARIES = ("accelerate", "numpy", "torch", "transformers", "wandb")


def make_record(
    config: TrainConfig,
    model: torch.nn.Module,
    num_processes: int,
    commit: str,
    objective: Mapping[str, str],
) -> dict[str, Any]:
    """The flags, and what they do not say of the sources, the data and the machine."""
    return {
        **as_json(config),
        "experiment": config.experiment,
        "script": script_of(type(config)),
        "default_wandb_project": config.default_wandb_project,
        "model_id": config.model_name,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "objective_functions": dict(objective),
        "inputs": {part.key: part.digest for part in inputs(config)},
        "source_digest": source_digest_of_experiment(config.experiment),
        "git_commit": commit,
        "device_name": _device_name(next(model.parameters()).device),
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "versions": {**dict(_versions()), "python": platform.python_version()},
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Of the libraries that are installed: a run need not have all."""
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def script_of(config_class: type[TrainConfig]) -> str:
    """The train script, which holds the class of its config; from the repository on, if there."""
    script = Path(inspect.getfile(config_class)).resolve()
    inside = script.is_relative_to(REPOSITORY)
    return script.relative_to(REPOSITORY).as_posix() if inside else str(script)


def source_digest_of_experiment(experiment: str) -> str:
    """SHA-256 of the code in `common` and beside the experiment's script, committed or not."""
    folders = (REPOSITORY / "common", REPOSITORY / experiment)
    return sha256_of_all(REPOSITORY, chain.from_iterable(f.rglob("*.py") for f in folders))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
