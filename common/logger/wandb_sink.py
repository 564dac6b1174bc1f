"""Weights & Biases as a sink that can be slow, wrong or absent without hurting the run.

Imported only when W&B is on.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb

from common.logger.sinks import BATCH_AXIS, STEP_AXIS, Row

# Together these bound what a dead server costs a whole run. wandb's own defaults wait 100 seconds
# at the start and without end at the finish.
INIT_TIMEOUT_SECONDS = 10
FINISH_TIMEOUT_SECONDS = 12

# Every metric group; wandb allows a wildcard only at the end of a name.
_BATCH_GROUPS = (
    "rollouts",
    "rewards",
    "training_epoch",
    "training",
    "system",
    "time",
    "perf",
    "eval",
    "checkpoint",
    "final",
    "examples",
)
_SUPERSEDED = "superseded-"


@dataclass(frozen=True)
class WandbIdentity:
    """Where a run goes and what it is called."""

    project: str
    entity: str | None
    group: str
    name: str
    tags: tuple[str, ...]
    notes: str | None


class WandbSink:
    """One W&B run. Online if there is a key and a server, else in files for `wandb sync`."""

    def __init__(
        self,
        directory: Path,
        identity: WandbIdentity,
        record: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._record = record
        self._say = say
        self._run = self._open()
        for axis, groups in ((BATCH_AXIS, _BATCH_GROUPS), (STEP_AXIS, ("training_step",))):
            self._run.define_metric(axis)
            for group in groups:
                self._run.define_metric(f"{group}/*", step_metric=axis)
        mode = "disabled" if self._run.disabled else "offline" if self._run.offline else "online"
        say(f"W&B initialized: {self._run.project or identity.project}/{identity.name} ({mode})")
        if mode == "offline":
            say(f"to upload it later: wandb sync {self._folder}")

    @property
    def _folder(self) -> Path:
        """The run's own folder; `Run.dir` is the `files` folder inside it."""
        return Path(self._run.dir).parent

    def log(self, row: Row) -> None:
        # Never with `step=`: rows of two axes would be dropped where one axis lags behind.
        self._run.log(dict(row))

    def log_text(self, name: str, text: str, batch_step: int) -> None:
        self._run.log({BATCH_AXIS: batch_step, name: text})

    def close(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            self._say(
                f"W&B did not take all rows in time; to upload them: wandb sync {self._folder}"
            )

    def _open(self) -> wandb.Run:
        if os.environ.get("WANDB_MODE") or has_key():
            try:
                return self._init(mode=None)
            except wandb.Error as error:
                self._say(f"W&B cannot be used ({str(error).splitlines()[0]}): logging offline")
        return self._init(mode="offline")

    def _init(self, mode: Literal["offline"] | None) -> wandb.Run:
        identity = self._identity
        return wandb.init(
            dir=self._directory,
            project=None if os.environ.get("WANDB_PROJECT") else identity.project,
            entity=identity.entity,
            group=identity.group,
            name=identity.name,
            tags=identity.tags,
            notes=identity.notes,
            config=dict(self._record),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=1,
            ),
        )


def has_key() -> bool:
    """Whether there is a key for the server, without a login prompt and without the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(wandb.Settings().base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def supersede_offline_runs(directory: Path) -> None:
    """Rename the offline runs of a run that is being resumed, so that `wandb sync` skips them.

    The resumed run logs all rows anew; W&B cannot take rows back.
    """
    for old in (directory / "wandb").glob("offline-run-*"):
        old.rename(old.with_name(_SUPERSEDED + old.name))
