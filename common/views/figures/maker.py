"""Makes the figures of a run: pages in its directory, and the same for W&B and TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from common.logger.media import Media, Scene
from common.logger.sinks import Row, Sink
from common.printable import error_as_line
from common.run.files import new_rows, replace_text
from common.views.figures.history import History
from common.views.figures.of_metrics import (
    criteria_heatmap,
    loss_landscape,
    policy_evolution,
    reward_components,
    reward_landscape,
    reward_surface,
    training_dynamics,
)
from common.views.figures.of_model import attention_pattern, embedding_trajectory, gradient_flow

Draw = Callable[[History], go.Figure]

FIGURES: dict[str, Draw] = {
    "3d/loss_landscape": loss_landscape,
    "3d/gradient_flow": gradient_flow,
    "3d/reward_landscape": reward_landscape,
    "3d/training_dynamics": training_dynamics,
    "3d/attention_pattern": attention_pattern,
    "3d/embedding_trajectory": embedding_trajectory,
    "3d/policy_evolution": policy_evolution,
    "3d/reward_components": reward_components,
    "3d/reward_surface": reward_surface,
    "criteria/heatmap": criteria_heatmap,
}

FINAL = "final"


class FigureMaker:
    """Follows a run and its `snapshots.jsonl`; new figures are due when there are embeddings."""

    def __init__(
        self,
        directory: Path,
        snapshots: Path,
        history: History,
        sinks: Sequence[Sink],
        say: Callable[[str], None],
    ) -> None:
        snapshots.touch()
        self._pages = directory / "figures"
        # Of a run that had ended, and now goes on.
        shutil.rmtree(self._pages / FINAL, ignore_errors=True)
        self._snapshots = snapshots.open("rb")
        self._history = history
        self._sinks = sinks
        self._say = say
        self._due = False
        self._failed: set[str] = set()

    def log(self, row: Row) -> None:
        self._history.add(row)

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        """Figures are made of numbers."""

    def read_snapshots(self) -> None:
        """Take in what is new. What was logged before a snapshot can be read after it."""
        for snapshot in new_rows(self._snapshots):
            self._history.add_snapshot(snapshot)
            self._due = self._due or "embeddings" in snapshot

    def make_due(self) -> None:
        """Make all figures if there was a reason since the last time."""
        if self._due:
            self._due = False
            self._make(self._pages, "")

    def close(self, exit_code: int) -> None:
        """Make those of a run that has ended well once more, as the final ones."""
        self.read_snapshots()
        self._snapshots.close()
        if exit_code == 0:
            self._make(self._pages / FINAL, f"{FINAL}/")

    def _make(self, folder: Path, prefix: str) -> None:
        for name, draw in FIGURES.items():
            # Whatever is wrong with a picture, the rows of the run are worth more.
            try:
                figure = draw(self._history)
                write_page(figure, page_of(folder, name))
                scene = Scene(figure.to_plotly_json())
                for sink in self._sinks:
                    sink.log_media(f"{prefix}{name}", scene, self._history.batch_step)
            except Exception as error:  # noqa: BLE001
                self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            self._say(f"figure {name} could not be made ({error_as_line(error)})")


def page_of(folder: Path, name: str) -> Path:
    """`3d/loss_landscape` in `loss_landscape.html`."""
    return folder / f"{name.replace('3d/', '').replace('/', '_')}.html"


def write_page(figure: go.Figure, page: Path) -> None:
    """A page for a browser without a network; plotly's script lies once beside all of a run's."""
    final = page.parent.name == FINAL
    scripts = page.parent.parent if final else page.parent
    page.parent.mkdir(parents=True, exist_ok=True)
    script = scripts / "plotly.min.js"
    if not script.exists():
        replace_text(script, get_plotlyjs())
    text = figure.to_html(
        include_plotlyjs="../plotly.min.js" if final else "plotly.min.js",
        config={"displaylogo": False, "responsive": True},
        default_height="100vh",
    )
    page.write_text(text.replace("<body>", '<body style="margin: 0">'), encoding="utf-8")
