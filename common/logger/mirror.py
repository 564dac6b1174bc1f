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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from common.errors import UserError
from common.logger.media import from_json
from common.logger.sinks import BATCH_AXIS, Sink
from common.run.files import SNAPSHOTS, new_rows

if TYPE_CHECKING:
    from common.views.figures.maker import FigureMaker

POLL_SECONDS = 0.2
# Beside a run's files: who is in charge of showing them. One mirror at a time holds a lock on it.
CHARGE = ".mirror"
SAYS, REFUSES, IS_BUSY = "says", "refuses", "is busy"

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
    figures: dict[str, int] | None
    """Arguments of `History`, or None for no figures."""
    record: dict[str, Any]
    """The run's configuration, for W&B."""
    artifacts: dict[str, Any] | None = None
    """Fields of `ArtifactSources`, or None for no artifacts."""


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
            sinks = open_sinks(order, directory, out)
            figures = open_figures(order, directory, sinks, out)
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
        from common.logger.wandb_artifacts import ArtifactSources
        from common.logger.wandb_sink import WandbIdentity, WandbSink, supersede_runs

        supersede_runs(directory)
        identity = WandbIdentity(**order.wandb)
        sources = ArtifactSources(**order.artifacts) if order.artifacts else None
        say, busy = partial(tell, out, SAYS), partial(tell, out, IS_BUSY, "uploading")
        sinks.append(WandbSink(directory, identity, order.record, say, sources, busy))
    return sinks


def open_figures(
    order: Order, directory: Path, sinks: list[Sink], out: TextIO
) -> FigureMaker | None:
    if order.figures is None:
        return None
    from common.views.figures.history import History
    from common.views.figures.maker import FigureMaker

    history, say = History(**order.figures), partial(tell, out, SAYS)
    snapshots = directory / SNAPSHOTS
    return FigureMaker(directory, snapshots, history, sinks, say)


def follow(path: Path, sinks: list[Sink], figures: FigureMaker | None) -> None:
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


def catch_up(file: BinaryIO, sinks: list[Sink], figures: FigureMaker | None) -> None:
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


if __name__ == "__main__":
    main()
    # Past wandb's exit hook, which would wait for a process that waits for a server.
    os._exit(0)
