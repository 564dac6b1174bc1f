"""Shows a run in TensorBoard and W&B: a process of its own that follows `metrics.jsonl`.

    python -m common.logger.mirror

started by `MirrorSink`. What is slow, stuck or broken here costs the training nothing, and what was
written to the file before the training was killed still arrives. It says what it has to say on
stdout, a JSON list of a kind and a text per line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from common.errors import UserError
from common.logger.media import from_json
from common.logger.sinks import BATCH_AXIS, Sink

POLL_SECONDS = 0.2
# Beside a run's files: who is in charge of showing them. One mirror at a time holds a lock on it.
CHARGE = ".mirror"
SAYS, REFUSES = "says", "refuses"

# It runs in what the training leaves idle, but must not starve on a machine that is never idle.
_NICENESS = 5


@dataclass(frozen=True)
class Order:
    """The first line on stdin. The second is the exit code with which the run ends; if none comes,
    the run has been killed.
    """

    directory: str
    charge: str
    """What the file `CHARGE` says as long as no later process has resumed the run."""
    tensorboard: bool
    wandb: dict[str, Any] | None
    """Fields of `WandbIdentity`, or None for no W&B."""
    record: dict[str, Any]
    """The run's configuration, for W&B."""


def main() -> None:
    os.nice(_NICENESS)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    order = Order(**json.loads(sys.stdin.readline()))
    directory = Path(order.directory)
    with (directory / CHARGE).open("r+") as lock:
        # Until the mirror of a run that was killed, and is being resumed, has ended. It may itself
        # have been slow to start, and come too late.
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if lock.read() != order.charge:
            return
        try:
            follow(directory / "metrics.jsonl", open_sinks(order, directory, out))
        except UserError as error:
            tell(out, REFUSES, str(error))
        except OSError as error:
            rest = "no more rows go to TensorBoard and W&B; metrics.jsonl has all"
            tell(out, SAYS, f"{error}: {rest}")


def tell(out: TextIO, kind: str, text: str) -> None:
    # Nobody listens once the training has been killed, and its rows are to arrive all the same.
    with suppress(BrokenPipeError):
        out.write(json.dumps([kind, text]) + "\n")
        out.flush()


def open_sinks(order: Order, directory: Path, out: TextIO) -> list[Sink]:
    """Empty ones: a resumed run is shown anew from its file, as neither of them can take back the
    rows after the checkpoint. Raises `UserError` for names that W&B does not accept.
    """
    sinks: list[Sink] = []
    if order.tensorboard:
        from common.logger.tensorboard_sink import TensorBoardSink, remove_event_files

        remove_event_files(directory)
        sinks.append(TensorBoardSink(directory))
    if order.wandb is not None:
        from common.logger.wandb_sink import WandbIdentity, WandbSink, supersede_runs

        supersede_runs(directory)
        say = partial(tell, out, SAYS)
        sinks.append(WandbSink(directory, WandbIdentity(**order.wandb), order.record, say))
    return sinks


def follow(path: Path, sinks: list[Sink]) -> None:
    """Pass rows on as they come, until the run has ended."""
    exit_codes: list[int] = []
    ended = threading.Event()

    def wait_for_the_end() -> None:
        line = sys.stdin.readline()
        exit_codes.append(int(line) if line else 1)
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with path.open("rb") as file:
        while not ended.wait(POLL_SECONDS):
            pass_on(file, sinks)
        pass_on(file, sinks)
    for sink in sinks:
        sink.close(exit_codes[0])


def pass_on(file: BinaryIO, sinks: list[Sink]) -> None:
    for row in new_rows(file):
        parsed = {name: from_json(value) for name, value in row.items()}
        media = {name: value for name, value in parsed.items() if value is not None}
        numbers = {
            name: math.nan if value is None else value
            for name, value in row.items()
            if name not in media
        }
        for sink in sinks:
            if not media:
                sink.log(numbers)
            for name, value in media.items():
                sink.log_media(name, value, int(row[BATCH_AXIS]))


def new_rows(file: BinaryIO) -> Iterator[Mapping[str, Any]]:
    """The rows that were written since; one that is not whole yet is left for the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        yield json.loads(line)


if __name__ == "__main__":
    main()
