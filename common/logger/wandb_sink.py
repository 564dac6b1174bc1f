"""Weights & Biases as a sink that can be slow, wrong or absent without hurting the run.

Imported only when W&B is on.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.errors import UsageError
from wandb.sdk.lib import wbauth
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from common.errors import UserError
from common.logger.media import Media, Table
from common.logger.sinks import AXES, BATCH_AXIS, Row, ShownRun, axis_of
from common.logger.wandb_artifacts import Artifacts, ArtifactSources, log_without_asking
from common.logger.wandb_media import GROWING, GrowingTable, as_wandb

# Together these bound what a dead server costs a whole run. wandb's own defaults wait 100 seconds
# at the start and without end at the finish.
INIT_TIMEOUT_SECONDS = 10
FINISH_TIMEOUT_SECONDS = 12

# What wandb raises when the process through which it writes is no longer there.
_SERVICE_ENDED = (ConnectionError, HandleAbandonedError, MailboxClosedError)

_SUPERSEDED = "superseded-"
# Where wandb and `Artifacts` keep the files of artifacts, below a run's directory.
_FILES = Path("wandb", "artifacts")


@dataclass(frozen=True)
class WandbIdentity:
    """Where a run goes and what it is called. None leaves it to wandb's environment variables."""

    project: str
    entity: str | None
    group: str | None
    name: str
    tags: tuple[str, ...] | None
    notes: str | None


class WandbSink:
    """One W&B run. Online if there is a key and a server, else in files for `wandb sync`."""

    def __init__(
        self,
        directory: Path,
        identity: WandbIdentity,
        record: Mapping[str, Any],
        say: Callable[[str], None],
        sources: ArtifactSources | None = None,
        busy: Callable[[], None] = lambda: None,
    ) -> None:
        """`busy` is called every second while artifacts are made ready and uploaded."""
        self._directory = directory
        self._identity = identity
        self._record = record
        self._say = say
        self._has_ended = False
        self._run = self._open()
        log_without_asking(self._run)
        self._defined: set[str] = set()
        self._tables: dict[tuple[str, ...], GrowingTable] = {}
        for axis in AXES:
            self._run.define_metric(axis)
        mode = "disabled" if self._run.disabled else "offline" if self._run.offline else "online"
        say(f"W&B initialized: {self._run.project or identity.project}/{identity.name} ({mode})")
        if mode == "offline":
            say(f"to upload it later: wandb sync {self._folder}")
        self._artifacts = None
        if sources is not None and mode != "disabled":
            held = directory / _FILES / "checkpoints"
            self._artifacts = Artifacts(self._run, identity.name, sources, held, say, busy)

    @property
    def _folder(self) -> Path:
        """The run's own folder; `Run.dir` is the `files` folder inside it."""
        return Path(self._run.dir).parent

    def log(self, row: Row) -> None:
        self._attempt(lambda: self._log_numbers(row))

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        """Log it; what `health/*` says is sent as an alert, too."""
        self._attempt(lambda: self._log_media(name, media, batch_step))

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it, as long as wandb's own process is there."""
        if self._has_ended:
            return
        try:
            action()
        except _SERVICE_ENDED:
            self._give_up()

    def _log_numbers(self, row: Row) -> None:
        self._write(row)
        if self._artifacts is not None:
            self._artifacts.follow(row)

    def _log_media(self, name: str, media: Media, batch_step: int) -> None:
        if isinstance(media, Table) and name in GROWING:
            table = self._tables.setdefault((name, *media.columns), GrowingTable(media.columns))
            table.add(media.rows, batch_step)
            if table.is_due:
                self._log_table(name, table)
            return
        self._write({BATCH_AXIS: batch_step, name: as_wandb(name, media)})
        if name.startswith("health/"):
            self._run.alert(title=name, text=f"batch {batch_step}: {media}")

    def _log_table(self, name: str, table: GrowingTable) -> None:
        self._write({BATCH_AXIS: table.batch_step, name: table.take()})

    def _write(self, row: Mapping[str, Any]) -> None:
        self._define(row)
        # Never with `step=`: rows of two axes would be dropped where one axis lags behind.
        self._run.log(dict(row))

    def close(self, exit_code: int) -> None:
        self._attempt(lambda: self._close(exit_code))

    def _close(self, exit_code: int) -> None:
        try:
            for (name, *_), table in self._tables.items():
                if table.waiting:
                    self._log_table(name, table)
            if self._artifacts is not None:
                self._artifacts.close()
            self._finish(exit_code)
        except TimeoutError:
            self._say(
                "W&B did not take all rows in time; to upload them: "
                f"wandb sync --no-skip-online {self._folder}"
            )
        else:
            if not self._run.offline:
                shutil.rmtree(self._directory / _FILES, ignore_errors=True)

    def _finish(self, exit_code: int) -> None:
        """End the run and wandb's own process, which writes the last rows while it ends.

        Raises `TimeoutError` when wandb does, and when it does not come to it: its process minds
        the time only from where it has sent what goes before, and may be waiting for an answer.
        """
        errors: list[Exception] = []
        finished = threading.Event()

        def finish() -> None:
            try:
                self._run.finish(exit_code=exit_code)
                wandb.teardown(exit_code)
                finished.set()
            except (TimeoutError, *_SERVICE_ENDED) as error:
                errors.append(error)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(FINISH_TIMEOUT_SECONDS + 1)
        if thread.is_alive():
            raise TimeoutError
        for error in errors:
            raise error
        if not finished.is_set():
            raise RuntimeError("wandb could not end its run; its traceback stands above")

    def _give_up(self) -> None:
        """Go on without W&B: the process through which wandb writes has been killed."""
        self._has_ended = True
        with suppress(*_SERVICE_ENDED):
            wandb.teardown()
        self._say("W&B's own process has ended: no more rows go to W&B; metrics.jsonl has them all")

    def _define(self, names: Iterable[str]) -> None:
        """Plot every name, or the group before its slash, against its axis.

        By group, as wandb allows a wildcard only at the end of a name; and not all by one "*",
        which would write the batch axis into the rows of optimizer steps, too.
        """
        for name in names:
            group, slash, _ = name.partition("/")
            pattern = f"{group}/*" if slash else name
            if pattern not in self._defined:
                self._defined.add(pattern)
                self._run.define_metric(pattern, step_metric=axis_of(name))

    def _open(self) -> wandb.Run:
        """Raises `UserError` for a name or an environment variable that wandb does not accept."""
        # wandb's own telemetry would go to the server as well, and its complaints to the console.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # The files of artifacts until they are uploaded, which else are in the home directory.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._directory / _FILES.parent))
        try:
            return self._open_online_or_offline()
        except (ValueError, UsageError) as error:
            raise UserError(f"W&B: {_one_line(error)}; correct it, or add --no-wandb") from None

    def _open_online_or_offline(self) -> wandb.Run:
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode in ("offline", "disabled"):
            return self._init(mode=None)
        try:
            # Asked here and not left to `init`, which would ask for a key on a terminal.
            if wbauth.authenticate_session(
                host=settings.base_url, source="wandb.init()", prompt=False
            ):
                return self._init(mode=None)
        except wandb.Error as error:
            self._say(
                f"W&B at {settings.base_url} cannot be used ({_one_line(error)}): logging offline"
            )
            if settings.sweep_id:
                # The agent's id is tried again, which wandb's process holds until it ends.
                wandb.teardown()
        return self._init(mode="offline")

    def _init(self, mode: Literal["offline"] | None) -> wandb.Run:
        identity = self._identity
        # In a sweep the agent has chosen it, and wandb heeds no other.
        by_agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        run_id = by_agent or secrets.token_hex(6)
        try:
            return wandb.init(
                dir=self._directory,
                id=run_id,
                project=identity.project,
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
                    host="",
                    program="",
                    disable_git=True,
                    disable_code=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                    x_transaction_log_flush_interval=1,
                ),
            )
        except wandb.Error:
            # A run without rows, over which `wandb sync` would stumble.
            for folder in (self._directory / "wandb").glob(f"run-*-{run_id}"):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def open_wandb(
    run: ShownRun, identity: Mapping[str, Any], artifacts: Mapping[str, Any] | None
) -> WandbSink:
    """A new W&B run, with the fields of `WandbIdentity` and those of `ArtifactSources`, or None for
    no artifacts. Raises `UserError` for names that W&B does not accept.
    """
    supersede_runs(run.directory)
    sources = ArtifactSources(**artifacts) if artifacts else None
    named = WandbIdentity(**identity)
    return WandbSink(run.directory, named, run.record, run.say, sources, run.busy)


def describe_connection() -> str:
    """Whether a run would be logged online or offline, and why; asks the server, starts no run."""
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode in ("offline", "disabled"):
        return f"{settings.mode} (WANDB_MODE)"
    try:
        if not wbauth.authenticate_session(host=settings.base_url, source="dry run", prompt=False):
            return "offline (no key)"
        user = wandb.Api(timeout=INIT_TIMEOUT_SECONDS).viewer.username
    except (wandb.Error, OSError) as error:
        return f"offline ({settings.base_url}: {_one_line(error)})"
    return f"online ({settings.base_url}, as {user})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def supersede_runs(directory: Path) -> None:
    """Rename the folders of a run that is being resumed, so that `wandb sync` passes them over.

    The resumed run logs all rows anew; W&B cannot take rows back.
    """
    shutil.rmtree(directory / _FILES, ignore_errors=True)
    for pattern in ("offline-run-*", "run-*"):
        for old in (directory / "wandb").glob(pattern):
            old.rename(old.with_name(_SUPERSEDED + old.name))
