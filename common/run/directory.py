"""Where a run lives on disk, and what it records about itself at the start."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.run.config import TrainConfig

REPOSITORY = Path(__file__).parents[2]

_LIBRARIES = ("accelerate", "numpy", "torch", "transformers", "wandb")


@dataclass(frozen=True)
class RunDirectory:
    """`<log-dir>/<experiment>/<run name>/` and the files in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def create_run_directory(config: TrainConfig, experiment: str) -> RunDirectory:
    """Make the directory of a new run; a name that is taken is a `UserError`."""
    root = config.log_dir or REPOSITORY / "runs"
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    path = root.resolve() / experiment / name
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"--run-name {name}: {path} exists; choose another name") from None
    except OSError as error:
        raise UserError(
            f"--log-dir {root}: cannot write there ({error.strerror}); choose another directory"
        ) from None
    return RunDirectory(path)


def write_run_config(
    directory: RunDirectory, config: TrainConfig, experiment: str, model: torch.nn.Module
) -> dict[str, Any]:
    """Write `config.json` and `source.diff`; returns what every sink records of the run."""
    commit, difference = _source_state()
    if difference:
        (directory.path / "source.diff").write_text(difference, encoding="utf-8")
    record = {
        **{
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(config).items()
        },
        "experiment": experiment,
        "model_id": config.model_name,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "git_commit": commit,
        "device_name": _device_name(next(model.parameters()).device),
        "num_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
    }
    directory.config_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _source_state() -> tuple[str, str]:
    """Commit of the repository and what is not committed; empty where there is no repository."""
    texts: list[str] = []
    for command in (["rev-parse", "HEAD"], ["diff", "HEAD"]):
        try:
            result = subprocess.run(
                ["git", "-C", str(REPOSITORY), *command],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return "", ""
        texts.append(result.stdout if result.returncode == 0 else "")
    return texts[0].strip(), texts[1]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
