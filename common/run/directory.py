"""Where a run lives on disk, how it begins there, and how it is found again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.repository import REPOSITORY
from common.run.checkpoint import Checkpoint, Checkpoints, newest_first
from common.run.files import SNAPSHOTS, replace_text, sync
from common.run.record import make_record
from common.run.resume import notable_differences, refuse_other_content, refuse_other_numbers
from common.run.source import source_state


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

    @property
    def snapshots_file(self) -> Path:
        return self.path / SNAPSHOTS

    @property
    def _row_files(self) -> tuple[Path, ...]:
        return (self.metrics_file, self.samples_file, self.snapshots_file)

    def lengths(self) -> dict[str, int]:
        """Bytes in the files of rows, to which a resume cuts them back."""
        return {file.name: file.stat().st_size if file.exists() else 0 for file in self._row_files}

    def sync(self) -> None:
        """Force the rows to the disk, so that a checkpoint never outlives the rows before it."""
        for file in self._row_files:
            if file.exists():
                sync(file)

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Drop the rows that were written after the checkpoint that is resumed from.

        Raises `UserError` if rows from before it are missing, of which snapshots are none.
        """
        present = self.lengths()
        for name, length in lengths.items():
            if present[name] < length and name != SNAPSHOTS:
                raise UserError(
                    f"--resume: {self.path / name} has lost rows ({present[name]} bytes, {length} "
                    "at the checkpoint); put it back, or start a new run without --resume"
                )
        for name, length in lengths.items():
            if present[name] > length:
                os.truncate(self.path / name, length)


@dataclass(frozen=True)
class Run:
    """A run that has been opened: new, or resumed from a checkpoint if it had one."""

    directory: RunDirectory
    checkpoints: Checkpoints
    checkpoint: Checkpoint | None
    resumed: bool
    writes: bool = True
    """Whether this process writes the run's files: the first rank alone does."""

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


def choose_run(config: TrainConfig, say: Callable[[str], None], num_processes: int = 1) -> Run:
    """A place for a new run, or the run to resume; nothing is written before `create_run`.

    Raises `UserError` for a name that is taken, a directory that cannot be written, and a run that
    cannot be resumed with these flags.
    """
    directory = find_run(config) if config.resume else _new_directory(config)
    check_writable(directory.path, f"--log-dir {_root(config)}")
    check_writable(directory.checkpoints, f"--checkpoint-path {config.checkpoint_path}")
    checkpoints = Checkpoints(directory.checkpoints, config.keep_checkpoints)
    if not config.resume:
        return Run(directory, checkpoints, None, False)
    saved = read_config(directory.config_file)
    refuse_other_content(config, saved)
    refuse_other_numbers(config, saved)
    _lock(directory)
    checkpoint = checkpoints.newest_whole(say)
    if checkpoint is None:
        _refuse_lost_checkpoints(config, saved, directory)
        say(f"{directory.path} has no checkpoint yet: starting it anew")
        return Run(directory, checkpoints, None, True)
    if config.max_steps < checkpoint.step:
        raise UserError(
            f"--max-steps {config.max_steps}: the run to resume has done {checkpoint.step}; "
            "give at least as many"
        )
    say(f"resuming {directory.path} after step {checkpoint.step}")
    for difference in notable_differences(config, saved, checkpoint, num_processes):
        say(difference)
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
    return _directory(candidates[-1].parent, config.checkpoint_path)


def run_at(path: Path) -> RunDirectory:
    """The run in a directory, with its checkpoints where its flags put them.

    Raises `UserError` if there is none.
    """
    own = RunDirectory(path.resolve(), path.resolve() / "checkpoints")
    if not own.config_file.is_file():
        raise UserError(f"RUN={path}: holds no config.json; name a run directory")
    elsewhere = read_config(own.config_file).get("checkpoint_path")
    if elsewhere is None or newest_first(own.checkpoints):
        return own
    return _directory(own.path, Path(elsewhere))


def newest_checkpoint(directory: RunDirectory) -> Path:
    """Raises `UserError` if the run has saved none."""
    for path in newest_first(directory.checkpoints):
        return path
    raise UserError(
        f"RUN={directory.path}: there is no checkpoint in {directory.checkpoints}; wait for the "
        "first, or put them back"
    )


def read_config(file: Path) -> dict[str, Any]:
    """The flags of a run, as they were resolved. Raises `UserError` for a file that is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); put it back") from None
    if not isinstance(record, dict):
        raise UserError(f"{file}: is damaged (it holds no object); put it back")
    return record


def _lock(directory: RunDirectory) -> None:
    """Keep a run to this process until it ends, however it ends.

    Raises `UserError` if another process has it. A file system without locks is taken on trust.
    """
    descriptor = os.open(directory.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{directory.path}: another process is writing this run; wait until it ends, "
                "or stop it"
            ) from None


def _refuse_lost_checkpoints(
    config: TrainConfig, saved: Mapping[str, Any], directory: RunDirectory
) -> None:
    """A run whose checkpoints are elsewhere must not be taken for one that has none."""
    before = saved.get("checkpoint_path")
    elsewhere = _directory(directory.path, Path(before) if before else None).checkpoints
    if elsewhere != directory.checkpoints and Checkpoints(elsewhere, keep=0).any():
        raise UserError(
            f"--checkpoint-path {config.checkpoint_path}: the checkpoints of the run to resume are "
            f"in {elsewhere}; leave the flag out, or move them to {directory.checkpoints}"
        )


def _new_directory(config: TrainConfig) -> RunDirectory:
    parent = _root(config) / config.experiment
    name = config.run_name or _free_name(parent, config)
    directory = _directory(parent / name, config.checkpoint_path)
    for taken in (directory.path, directory.checkpoints):
        if os.path.exists(taken):
            raise UserError(
                f"--run-name {name}: {taken} exists; choose another name, or add --resume"
            )
    return directory


def _free_name(parent: Path, config: TrainConfig) -> str:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(name for name in names if not os.path.exists(parent / name))


def check_writable(path: Path, flag: str) -> None:
    """Raise `UserError` unless `path` could be made, or be written to if it is there."""
    existing = next(above for above in (path, *path.parents) if os.path.exists(above))
    probe = existing / f".writable-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(f"{flag}: cannot write there ({error.strerror}); choose another") from None


def _directory(path: Path, checkpoint_path: Path | None) -> RunDirectory:
    if checkpoint_path is None:
        return RunDirectory(path, path / "checkpoints")
    return RunDirectory(path, checkpoint_path.resolve() / path.parent.name / path.name)


def _root(config: TrainConfig) -> Path:
    return (config.log_dir or REPOSITORY / "runs").resolve()


def create_run(
    run: Run,
    config: TrainConfig,
    model: torch.nn.Module,
    num_processes: int = 1,
    objective: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the directory, or cut the rows after the checkpoint; returns what sinks record.

    `objective` says which functions it is made of.

    Everything that a user's mistake can stop comes before, so that a mistake leaves nothing behind.
    """
    if not run.writes:
        return {}
    directory = run.directory
    places = (directory.path.parents[1], directory.checkpoints.parents[1])
    commit, patch = source_state(REPOSITORY, passed_over=places)
    record = make_record(config, model, num_processes, commit, objective or {})
    directory.path.mkdir(parents=True, exist_ok=run.resumed)
    _lock(directory)
    replace_text(directory.config_file, json.dumps(record, indent=2) + "\n")
    directory.checkpoints.mkdir(parents=True, exist_ok=True)
    if run.resumed:
        directory.cut(run.state.get("lengths") or dict.fromkeys(directory.lengths(), 0))
    if patch:
        name = f"source_from_step_{run.step}.diff" if run.step else "source.diff"
        (directory.path / name).write_bytes(patch)
    return record
