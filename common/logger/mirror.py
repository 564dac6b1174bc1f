"""Shows a run in TensorBoard, W&B and figures: a process of its own that follows `metrics.jsonl`.

`MirrorSink` starts it; `common.training.mirror_process` puts it together. What is slow, stuck or
broken here costs the training nothing, and what was written to the file before the training was
killed still arrives. It says what it has to say on stdout, a JSON list of a kind and a text per
line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pkgutil
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from common.errors import UserError
from common.logger.media import from_json
from common.logger.sinks import BATCH_AXIS, ShownRun, Sink
from common.run.files import new_rows

POLL_SECONDS = 0.2
# Beside a run's files: who is in charge of showing them. One mirror at a time holds a lock on it.
CHARGE = ".mirror"
SAYS, REFUSES, IS_BUSY = "says", "refuses", "is busy"

# It runs in what the training leaves idle, but must not starve on a machine that is never idle.
_NICENESS = 5


@dataclass(frozen=True)
class Order:
    """What is to be shown: the first line on stdin. The second is the exit code with which the run
    ends; if none comes, the run has been killed.
    """

    directory: str
    record: dict[str, Any]
    """The run's configuration."""
    sinks: dict[str, dict[str, Any]]
    """Functions as `module:function`, each with its arguments beside the `ShownRun`.

    Each makes an empty sink, or raises `UserError`: a resumed run is shown anew from its file, as
    no sink can take back the rows after the checkpoint.
    """
    figures: dict[str, int] | None
    """Arguments of the maker of figures, or None for no figures."""
    charge: str = field(default_factory=lambda: secrets.token_hex(8))
    """What the file `CHARGE` says as long as no later process has resumed the run."""


class Figures(Sink, Protocol):
    """Makes figures of the rows, and of the snapshots in another file."""

    def read_snapshots(self) -> None: ...

    def make_due(self) -> None: ...


def mirror(make_figures: Callable[..., Figures]) -> None:
    """Follow the run that is ordered on stdin until it ends.

    `make_figures(run, sinks, **order.figures)` makes what draws it, into the sinks, too.
    """
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
            say, busy = partial(tell, out, SAYS), partial(tell, out, IS_BUSY, "uploading")
            run = ShownRun(directory, order.record, say, busy)
            sinks: list[Sink] = [
                pkgutil.resolve_name(path)(run, **given) for path, given in order.sinks.items()
            ]
            figures = None if order.figures is None else make_figures(run, sinks, **order.figures)
            follow(directory / "metrics.jsonl", sinks, figures)
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


def follow(path: Path, sinks: list[Sink], figures: Figures | None) -> None:
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
            catch_up(file, sinks, figures)
        catch_up(file, sinks, figures)
    for sink in sinks if figures is None else [figures, *sinks]:
        sink.close(exit_codes[0])


def catch_up(file: BinaryIO, sinks: list[Sink], figures: Figures | None) -> None:
    """Pass on the rows that are new, and make the figures for which there is a new snapshot."""
    if figures is None:
        pass_on(file, sinks)
        return
    # First: what was logged before a snapshot is in the other file as soon as that is here.
    figures.read_snapshots()
    pass_on(file, [figures, *sinks])
    figures.make_due()


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
