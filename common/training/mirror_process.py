"""Shows a run in TensorBoard, W&B and figures: the process that `MirrorSink` starts.

    python -m common.training.mirror_process

The logger follows the run and the views draw it; they are put together here, above both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.logger.mirror import mirror
from common.logger.sinks import ShownRun, Sink
from common.run.files import SNAPSHOTS

if TYPE_CHECKING:
    from common.views.figures.maker import FigureMaker


def make_figures(run: ShownRun, sinks: Sequence[Sink], rows: int, gradients: int) -> FigureMaker:
    """What draws a run: so many of its latest rows, and snapshots of gradients and embeddings."""
    # Here, as a run without figures need not wait for plotly.
    from common.views.figures.history import History
    from common.views.figures.maker import FigureMaker

    history = History(rows, gradients)
    return FigureMaker(run.directory, run.directory / SNAPSHOTS, history, sinks, run.say)


if __name__ == "__main__":
    mirror(make_figures)
    # Past wandb's exit hook, which would wait for a process that waits for a server.
    os._exit(0)
