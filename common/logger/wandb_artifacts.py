"""A run's data file, checkpoints and final model as W&B artifacts: what `--log-artifacts` uploads.

What is used here of wandb 0.31 beside its public functions is in `log_without_asking` and
`_uploads`.
"""

# wandb makes its protobuf classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2 as protocol

from common.logger.sinks import BATCH_AXIS, Row

# Of `eval/*`: the best checkpoint is the one whose own evaluation has the highest.
BEST_METRIC = "returns_mean"

# How long uploads may stand still at the end of a run before the server is asked whether it is
# there, how long it has to answer, and how long they may stand still although it is.
STILL_SECONDS = 3
ANSWER_SECONDS = 3
PATIENCE_SECONDS = 60
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class ArtifactSources:
    """Where the files are that artifacts are made of."""

    data_file: str
    checkpoints: str
    """Directory of the run's checkpoints, `step_<n>` each."""
    left_out: Sequence[str]
    """Files and directories of a checkpoint that only resuming needs."""


class Artifacts:
    """Logs the data file at once, and each checkpoint when its evaluation is known or passed by.

    Checkpoints are pruned while they wait and while they are uploaded, so their files are linked,
    or copied where links are impossible, into a directory of ours, `held`. They stay there, and on
    the disk, until all is uploaded: offline, as long as `wandb sync` may still come.
    """

    def __init__(
        self,
        run: wandb.Run,
        name: str,
        sources: ArtifactSources,
        held: Path,
        say: Callable[[str], None],
        busy: Callable[[], None],
    ) -> None:
        self._run = run
        self._name = artifact_name(name)
        self._sources = sources
        self._held_root = held
        self._say = say
        self._busy = busy
        self._evaluations: dict[int, dict[str, float]] = {}
        self._best = -math.inf
        self._announced: set[int] = set()
        self._held: dict[int, Path] = {}
        self._waiting: set[int] = set()
        self._missing: set[int] = set()
        self._log_data_file(Path(sources.data_file))

    def follow(self, row: Row) -> None:
        """Take notice of a row. A checkpoint is written after the row that announces it, and is
        there before the next; it may be evaluated after that.
        """
        self._hold_new()
        if BATCH_AXIS not in row:
            return
        step = int(row[BATCH_AXIS])
        self._log_before(step)
        if "checkpoint/step" in row:
            self._announced.add(int(row["checkpoint/step"]))
        if evaluation := _numbers(row, "eval"):
            self._evaluations[step] = evaluation
            self._log_before(step + 1)
        if "checkpoint/final_saved" in row:
            self._log_before(step + 1)
            self._log_final(step, _numbers(row, "final"))

    def close(self) -> None:
        """Log what is left, and wait while it is on its way."""
        with _said_every_second(self._busy):
            self._hold_new()
            self._log_before(math.inf)
            if not self._run.offline:
                self._wait_for_uploads()

    def _hold_new(self) -> None:
        """Keep the files of the checkpoints that are new; one appears whole, by a rename."""
        for path in Path(self._sources.checkpoints).glob("step_*"):
            match = re.fullmatch(r"step_(\d+)", path.name)
            if match and int(match[1]) not in self._held.keys() | self._missing:
                self._hold(int(match[1]), path)

    def _hold(self, step: int, path: Path) -> None:
        held = self._held_root / path.name
        try:
            with _said_every_second(self._busy):
                for file in sorted(path.rglob("*")):
                    name = file.relative_to(path)
                    target = held / name
                    if file.is_file() and name.parts[0] not in self._sources.left_out:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        _link_or_copy(file, target)
            if not held.exists():
                raise FileNotFoundError(errno.ENOENT, "it is gone")
        except OSError as error:
            # Most likely it has been pruned in the meantime.
            shutil.rmtree(held, ignore_errors=True)
            self._miss(step, error.strerror or "cannot be read")
        else:
            self._held[step] = held
            self._waiting.add(step)

    def _log_before(self, end: int | float) -> None:
        """Log the checkpoints from before a step, of which there will be no more evaluations."""
        for step in sorted(step for step in self._waiting if step < end):
            evaluation = self._evaluations.get(step, {})
            aliases = ["latest", f"step-{step}"]
            if evaluation.get(BEST_METRIC, -math.inf) > self._best:
                self._best = evaluation[BEST_METRIC]
                aliases.append("best")
            self._log_model("checkpoint", step, {"eval": evaluation}, aliases)
        self._waiting = {step for step in self._waiting if step >= end}
        for step in sorted(step for step in self._announced if step < end):
            if step not in self._held:
                self._miss(step, "see --keep-checkpoints")
        self._announced = {step for step in self._announced if step >= end}

    def _log_final(self, step: int, final: Mapping[str, float]) -> None:
        if step not in self._held:
            self._miss(step, "so there is none of the final model")
            return
        evaluation = self._evaluations[max(self._evaluations)] if self._evaluations else {}
        metadata = {"final": dict(final), "eval": evaluation}
        self._log_model("final", step, metadata, ["latest", f"step-{step}"])

    def _log_data_file(self, path: Path) -> None:
        artifact = wandb.Artifact(artifact_name(path.name), type="dataset")
        # By way of a copy, as it is not ours and may be edited.
        with _said_every_second(self._busy):
            artifact.add_file(str(path), path.name)
        self._run.log_artifact(artifact, aliases=["latest"])

    def _log_model(
        self, kind: str, step: int, metadata: Mapping[str, Any], aliases: list[str]
    ) -> None:
        held = self._held[step]
        name = f"{self._name}-{kind}"
        artifact = wandb.Artifact(name, type="model", metadata={"step": step, **metadata})
        with _said_every_second(self._busy):
            for file in sorted(file for file in held.rglob("*") if file.is_file()):
                inside = file.relative_to(held).as_posix()
                artifact.add_file(str(file), inside, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=aliases)

    def _miss(self, step: int, reason: str) -> None:
        """Say so once: a resumed run logs all its rows anew, but only its latest checkpoints are
        there.
        """
        if not self._missing:
            self._say(f"no W&B artifact of the checkpoint of step {step} ({reason})")
        self._missing.add(step)

    def _wait_for_uploads(self) -> None:
        """Return when all is uploaded, or nothing moves any more."""
        before, moved = None, time.monotonic()
        while uploads := _uploads(self._run):
            if before is None:
                self._say("W&B: uploading artifacts")
            if (now := _progress(uploads)) != before:
                before, moved = now, time.monotonic()
            still = time.monotonic() - moved
            if still > PATIENCE_SECONDS or (still > STILL_SECONDS and not _server_answers()):
                return
            time.sleep(_POLL_SECONDS)


def artifact_name(text: str) -> str:
    """A name that W&B accepts for an artifact, with room for a suffix."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:110]


def log_without_asking(run: wandb.Run) -> None:
    """Let the run hand over its artifacts, of which tables are some, online as it does offline.

    Online wandb first asks the server for the type of each, and waits up to 19 seconds where none
    answers; and it leaves them out of the file that `wandb sync` reads.
    """

    def log_artifact(
        artifact: wandb.Artifact, aliases: Sequence[str] = ("latest",)
    ) -> wandb.Artifact:
        artifact.finalize()
        assert run._interface is not None
        run._interface.publish_artifact(run, artifact, aliases)
        return artifact

    run.log_artifact = log_artifact


def _uploads(run: wandb.Run) -> list[protocol.Operation]:
    """What wandb's own process is uploading of artifacts; empty if that is all done."""
    request = protocol.Request(operations=protocol.OperationStatsRequest())
    assert run._interface is not None
    answer = run._interface._deliver(protocol.Record(request=request)).wait_or(timeout=10)
    operations = answer.response.operations_response.operation_stats.operations
    return [one for one in operations if one.desc.startswith("uploading artifact")]


def _progress(uploads: Sequence[protocol.Operation]) -> list[Any]:
    return [(one.desc, one.progress, _progress(one.subtasks)) for one in uploads]


def _server_answers() -> bool:
    try:
        wandb.Api(timeout=ANSWER_SECONDS)
    except wandb.Error:
        return False
    return True


def _numbers(row: Row, group: str) -> dict[str, float]:
    """The finite numbers of a group, named without it; a metadata value cannot be NaN."""
    return {
        name.partition("/")[2]: value
        for name, value in row.items()
        if name.startswith(f"{group}/") and math.isfinite(value)
    }


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


@contextmanager
def _said_every_second(say: Callable[[], None]) -> Iterator[None]:
    """Say it in a thread: hashing large files takes long, too."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(1):
            say()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
