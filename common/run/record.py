"""What a run records of itself in its `config.json`."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.flags.markers import CONTENT, OWN_CODE, marked
from common.flags.saved import as_json
from common.flags.spelling import as_given, flag_name
from common.flags.train_config import TrainConfig
from common.own_code import names_own_code, source_digest
from common.repository import REPOSITORY
from common.rewards.rubric import FLAG as RUBRIC_FLAG
from common.rewards.rubric import own_functions
from common.run.files import sha256, sha256_of_all

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
        "default_wandb_project": config.default_wandb_project,
        "model_id": config.model_name,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "objective_functions": dict(objective),
        "data_digest": data_digest(config),
        "content": dict(content(config)),
        "source_digest": source_digest_of_experiment(config.experiment),
        "own_code": dict(own_code(config)),
        "git_commit": commit,
        "device_name": _device_name(next(model.parameters()).device),
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "versions": {name: version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
    }


def data_digest(config: TrainConfig) -> str:
    """SHA-256 of the tasks' file. Raises `UserError` if it cannot be read."""
    return _digest("--data-path", config.data_path or config.data_file)


def content(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """What else is learned from: each flag with its value, and SHA-256 of the files there.

    Raises `UserError` for what is not found.
    """
    for name in sorted(marked(type(config), CONTENT)):
        if (path := getattr(config, name)) is not None:
            yield as_given(name, path), _digest(flag_name(name), path)


def source_digest_of_experiment(experiment: str) -> str:
    """SHA-256 of the code in `common` and beside the experiment's script, committed or not."""
    folders = (REPOSITORY / "common", REPOSITORY / experiment)
    return sha256_of_all(REPOSITORY, chain.from_iterable(f.rglob("*.py") for f in folders))


def own_code(config: TrainConfig) -> Iterator[tuple[str, str | None]]:
    """What of the user's own is in a run: each flag with its value, and SHA-256 of the source.

    A rubric comes before the functions that it names. Raises `UserError` for what is not found.
    """
    for name in sorted(marked(type(config), OWN_CODE)):
        value = getattr(config, name)
        for path in (value,) if isinstance(value, str) else value or ():
            if names_own_code(path):
                yield as_given(name, path), source_digest(flag_name(name), path)
    if config.rubric_file is not None:
        yield f"{RUBRIC_FLAG} {config.rubric_file}", _digest(RUBRIC_FLAG, config.rubric_file)
        for path in own_functions(config.rubric_file):
            yield f"{RUBRIC_FLAG} {path}", source_digest(RUBRIC_FLAG, path)


def _digest(flag: str, path: Path) -> str:
    try:
        return sha256_of_all(path, _visible_files(path)) if path.is_dir() else sha256(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from None


def _visible_files(directory: Path) -> Iterator[Path]:
    """Those below a directory, but for what programs keep there, out of sight."""
    for file in directory.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if file.is_file() and not hidden:
            yield file


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
