"""Where a run lives on disk, what it records about itself, and how it is found again."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.run.checkpoint import Checkpoint, Checkpoints
from common.run.config import TrainConfig

REPOSITORY = Path(__file__).parents[2]

_LIBRARIES = ("accelerate", "numpy", "torch", "transformers", "wandb")

# Flags that may differ on --resume: none of them changes a number...
FREE_FLAGS = (
    *("resume", "run_name", "log_dir", "checkpoint_path", "checkpoint_interval"),
    *("keep_checkpoints", "max_minutes", "max_steps", "dry_run", "log_completions_interval"),
    *("eval_interval", "eval_samples", "eval_group_size", "tensorboard", "wandb"),
    *("wandb_project", "wandb_entity", "wandb_group", "wandb_tags", "wandb_notes"),
)
# ... and these only by rounding.
ROUNDING_FLAGS = ("device", "micro_batch_size", "attn", "gradient_checkpointing")


@dataclass(frozen=True)
class RunDirectory:
    """`<log-dir>/<experiment>/<run name>/` and the files in it."""

    path: Path
    checkpoints: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    def lengths(self) -> dict[str, int]:
        """Bytes in the files of rows, to which a resume cuts them back."""
        return {
            file.name: file.stat().st_size if file.exists() else 0
            for file in (self.metrics_file, self.samples_file)
        }

    def cut(self, lengths: dict[str, int]) -> None:
        """Drop the rows that were written after the checkpoint that is resumed from."""
        for name, length in lengths.items():
            if (self.path / name).exists():
                os.truncate(self.path / name, length)


@dataclass(frozen=True)
class Run:
    """A run that has been opened: new, or resumed from a checkpoint if it had one."""

    directory: RunDirectory
    checkpoints: Checkpoints
    checkpoint: Checkpoint | None
    resumed: bool

    @property
    def step(self) -> int:
        """Rollout batches done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def state(self) -> dict[str, Any]:
        return self.checkpoint.state if self.checkpoint else {}

    @property
    def weights(self) -> Path | None:
        """Where the policy's weights are, if not where the run's first came from."""
        return self.checkpoint.path if self.checkpoint else None


def open_run(config: TrainConfig, say: Callable[[str], None]) -> Run:
    """Make the directory of a new run, or reopen that of a run to resume.

    Raises `UserError` for a name that is taken, a directory that cannot be written, and flags that
    would change the numbers of a resumed run.
    """
    if not config.resume:
        directory = _create(config)
        return Run(
            directory, Checkpoints(directory.checkpoints, config.keep_checkpoints), None, False
        )
    directory = find_run(config)
    _compare(config, read_config(directory), say)
    checkpoints = Checkpoints(directory.checkpoints, config.keep_checkpoints)
    checkpoint = checkpoints.newest_whole(say)
    if checkpoint is None:
        directory.cut(dict.fromkeys(directory.lengths(), 0))
        say(f"{directory.path} has no checkpoint yet: starting it anew")
    else:
        directory.cut(checkpoint.state["lengths"])
        say(f"resuming {directory.path} after step {checkpoint.step}")
        if (threads := checkpoint.state["num_threads"]) != torch.get_num_threads():
            say(
                f"{torch.get_num_threads()} threads instead of {threads}: from here on the numbers "
                "differ by rounding"
            )
    return Run(directory, checkpoints, checkpoint, True)


def find_run(config: TrainConfig) -> RunDirectory:
    """The run that `--resume` means: the one named, else the latest of the experiment."""
    parent = _root(config) / config.experiment
    if config.run_name is not None:
        candidates = [parent / config.run_name / "config.json"]
    else:
        candidates = sorted(parent.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not candidates or not candidates[-1].is_file():
        wanted = config.run_name or config.experiment
        raise UserError(f"--resume: no run {wanted} under {parent}; start one without --resume")
    return _directory(config, candidates[-1].parent)


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """The flags of a run, as they were resolved."""
    try:
        return json.loads(directory.config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--resume: {directory.config_file} is damaged ({error})") from None


def _compare(config: TrainConfig, saved: dict[str, Any], say: Callable[[str], None]) -> None:
    given = as_json(config)
    for name, value in given.items():
        if name in FREE_FLAGS or value == saved.get(name):
            continue
        flag = f"--{name.replace('_', '-')} {value}"
        if name not in ROUNDING_FLAGS:
            raise UserError(
                f"{flag}: the run to resume has {saved.get(name)}; leave the flag out, "
                "or start a new run without --resume"
            )
        say(f"{flag} instead of {saved.get(name)}: from here on the numbers differ by rounding")


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The flags as JSON has them: paths as text, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _create(config: TrainConfig) -> RunDirectory:
    name = config.run_name or f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    directory = _directory(config, _root(config) / config.experiment / name)
    try:
        directory.path.mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            f"--run-name {name}: {directory.path} exists; choose another name, or add --resume"
        ) from None
    except OSError as error:
        raise UserError(
            f"--log-dir {_root(config)}: cannot write there ({error.strerror}); choose another"
        ) from None
    return directory


def _directory(config: TrainConfig, path: Path) -> RunDirectory:
    if config.checkpoint_path is None:
        return RunDirectory(path, path / "checkpoints")
    return RunDirectory(path, config.checkpoint_path.resolve() / config.experiment / path.name)


def _root(config: TrainConfig) -> Path:
    return (config.log_dir or REPOSITORY / "runs").resolve()


def write_run_record(
    directory: RunDirectory, config: TrainConfig, model: torch.nn.Module
) -> dict[str, Any]:
    """Write `config.json` and `source.diff`; returns what every sink records of the run."""
    commit, difference = _source_state()
    if difference:
        (directory.path / "source.diff").write_text(difference, encoding="utf-8")
    record = {
        **as_json(config),
        "experiment": config.experiment,
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
