"""The numbers in the figures, and what becomes of a figure that cannot be made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from common.errors import UserError
from common.logger.media import Media, Scene
from common.views.figures import maker
from common.views.figures.demo import DemoConfig, made_up_history
from common.views.figures.demo import main as make_demo
from common.views.figures.drawing import interpolated, label, plain, sliding_mean
from common.views.figures.history import History
from common.views.figures.maker import FIGURES, FigureMaker
from common.views.figures.of_metrics import (
    loss_landscape,
    policy_evolution,
    reward_components,
    reward_surface,
    training_dynamics,
)
from common.views.figures.of_model import (
    attention_pattern,
    gradient_flow,
    principal_axes,
    troubled_layers,
)


def history_of(batches: list[dict], steps: list[dict] = []) -> History:  # noqa: B006
    history = History()
    for number, row in enumerate(batches, start=1):
        history.add({"rollouts/batch_step": number, **row})
    for number, row in enumerate(steps, start=1):
        named = {f"training_step/{name}": value for name, value in row.items()}
        history.add({"training_step/global_step": number, **named})
    return history


def traces_of(figure: go.Figure) -> list[dict[str, Any]]:
    return json.loads(str(figure.to_json()))["data"]


def sentence_of(figure: go.Figure) -> str:
    """All that it says beside its title."""
    layout = figure.to_plotly_json()["layout"]
    texts = [annotation["text"] for annotation in layout.get("annotations", [])]
    return " ".join([layout["title"]["subtitle"]["text"], *texts])


def ticks_of(figure: go.Figure, axis: str) -> tuple[str, ...]:
    return tuple(figure.to_plotly_json()["layout"]["scene"][axis]["ticktext"])


class Shown:
    """A sink that keeps what it is shown."""

    def __init__(self) -> None:
        self.media: dict[str, list[Media]] = {}

    def log(self, row: object) -> None: ...

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        self.media.setdefault(name, []).append(media)

    def close(self, exit_code: int) -> None: ...


def test_rows_of_one_batch_are_one_and_the_oldest_are_forgotten():
    history = History(rows=2, gradients=1)
    for batch in (1, 2, 3):
        history.add({"rollouts/batch_step": batch, "a": batch})
        history.add({"rollouts/batch_step": batch, "b": 10.0 * batch})
        history.add({"training_step/global_step": batch, "c": batch})
        history.add_snapshot({"gradients": {"global_step": batch, "norms": {"x": 1.0}}})
    assert history.batch_points("a", "b").tolist() == [[2, 20], [3, 30]]
    assert history.step_points("c").tolist() == [[2], [3]]
    assert [step for step, _ in history.gradients] == [3]
    assert history.batch_step == 3


def test_only_batches_with_a_finite_value_of_every_name_are_points():
    history = history_of([{"a": 1.0}, {"a": 2.0, "b": 5.0}, {"a": float("nan"), "b": 6.0}])
    assert history.batch_points("a", "b").tolist() == [[2, 5]]


def test_sliding_mean_is_over_the_value_and_those_before_it():
    means = sliding_mean(np.array([1.0, 3.0, 8.0, 4.0]), window=2)
    assert means.tolist() == [1.0, 2.0, 5.5, 6.0]


def test_the_surface_goes_through_its_points_and_stays_between_them():
    points = np.array([[0, 0, 1.0], [10, 0, 2.0], [0, 4, 3.0], [10, 4, 7.0]])
    surface = interpolated(points, "surface")
    z = np.array(surface.to_plotly_json()["z"])
    corners = [z[0][0], z[0][-1], z[-1][0], z[-1][-1]]
    np.testing.assert_allclose(corners, [1, 2, 3, 7], atol=0.02)
    assert z.min() >= 1
    assert z.max() <= 7


def test_the_loss_landscape_has_the_rate_where_it_changed_and_a_curve_where_not():
    rates = [1e-4, 2e-4, 4e-4]
    steps = [{"loss": 1.0 / n, "learning_rate": rates[n - 1]} for n in (1, 2, 3)]
    surface, path = traces_of(loss_landscape(history_of([], steps)))
    assert surface["type"] == "surface"
    assert path["x"] == [1, 2, 3]
    assert path["y"] == [1e-4, 2e-4, 4e-4]
    np.testing.assert_allclose(path["z"], [1, 3 / 4, 11 / 18], rtol=1e-4)
    flat = loss_landscape(history_of([], [{**step, "learning_rate": 2e-4} for step in steps]))
    assert "learning rate was 0.0002 in all these steps" in sentence_of(flat)
    assert traces_of(flat)[0]["y"] == [1, 0.5, 0.33333]


def test_a_run_without_a_reference_shows_the_reward_that_is_left():
    history = history_of([{"rollouts/returns_mean": 0.5}, {"rollouts/returns_mean": 0.75}])
    figure = policy_evolution(history)
    assert "no reference" in sentence_of(figure)
    assert traces_of(figure)[0]["y"] == [0.5, 0.75]


def test_a_fine_tuning_run_has_dynamics_without_rewards():
    history = history_of([], [{"loss": 3.0, "grad_norm": 0.5}, {"loss": 2.0, "grad_norm": 0.25}])
    figure = training_dynamics(history)
    assert "no rewards" in sentence_of(figure)
    points = Scene(figure.to_plotly_json()).points()
    assert points.tolist() == [[3, 0.5, 1], [2, 0.25, 2]]


def test_reward_components_are_the_means_of_each():
    rows = [
        {"rewards/a_mean": 0.25, "rewards/a_max": 1.0, "rewards/chosen": 3.0},
        {
            "rewards/a_mean": 0.5,
            "rewards/a_max": 1.0,
            "rewards/b_mean": 0.125,
            "rewards/b_max": 1.0,
        },
    ]
    first, second = traces_of(reward_components(history_of(rows)))
    assert (first["name"], first["x"], first["z"]) == ("a", [1, 2], [0.25, 0.5])
    assert (second["name"], second["x"], second["z"]) == ("b", [2], [0.125])


def test_the_reward_surface_goes_from_hard_tasks_to_easy_ones():
    history = History()
    for batch, means in ((1, {"7": 0.9, "8": 0.1}), (2, {"7": 0.7}), (3, {"8": 0.3, "9": 0.5})):
        history.add_snapshot({"task_rewards": {"batch_step": batch, "means": means}})
    surface, points = traces_of(reward_surface(history))
    assert surface["x"] == [1, 2, 3]
    # Task 8 has 0.2 on average, 9 has 0.5, 7 has 0.8; None where a task was not drawn.
    assert surface["z"] == [
        [0.1, None, 0.3],
        [None, None, 0.5],
        [0.9, 0.7, None],
    ]
    drawn = sorted(zip(points["x"], points["y"], points["z"], strict=True))
    assert drawn == [(1, 0, 0.1), (1, 2, 0.9), (2, 2, 0.7), (3, 0, 0.3), (3, 1, 0.5)]


def test_many_tasks_share_bands():
    history = History()
    means = {str(task): task / 100 for task in range(48)}
    history.add_snapshot({"task_rewards": {"batch_step": 1, "means": means}})
    surface, _ = traces_of(reward_surface(history))
    assert len(surface["z"]) == 24
    np.testing.assert_allclose([row[0] for row in surface["z"]], (np.arange(24) * 2 + 0.5) / 100)


def test_layers_that_vanish_or_explode_are_named():
    layers = ["a", "b", "c", "d", "e"]
    norms = np.array([[1.0, 2.0, 0.5, 1e-4, 5e3], [1.0, 2.0, 0.5, 1e-5, 5e3]])
    assert troubled_layers(layers, norms) == "Vanishing: d. Exploding: e."
    assert "No layer" in troubled_layers(layers[:3], norms[:, :3])


def test_gradient_flow_has_a_point_per_layer_and_step():
    history = History()
    for step, norms in (
        (1, {"embed": 0.1, "layers.0": 10.0}),
        (2, {"embed": 1.0, "layers.0": 1e-2}),
    ):
        history.add_snapshot({"gradients": {"global_step": step, "norms": norms}})
    figure = gradient_flow(history)
    points = Scene(figure.to_plotly_json()).points()
    assert sorted(map(tuple, points.tolist())) == [(1, 0, -1), (1, 1, 1), (2, 0, 0), (2, 1, -2)]
    assert ticks_of(figure, "yaxis") == ("embed", "layers.0")


def test_attention_shows_what_a_token_can_see_and_no_tag_in_its_text():
    history = History()
    weights = [[1.0, 0.0], [0.25, 0.75]]
    fields = {"layer": 1, "head": 2, "tokens": ["<b>", "\n"], "weights": weights}
    history.add_snapshot({"attention": {"batch_step": 5, **fields}})
    figure = attention_pattern(history)
    points = Scene(figure.to_plotly_json()).points()
    assert points.tolist() == [[0, 0, 1], [0, 1, 0.25], [1, 1, 0.75]]
    assert ticks_of(figure, "xaxis") == ("\u2039b\u203a", "⏎")
    assert "Layer 1, head 2" in sentence_of(figure)


def test_principal_axes_agree_with_the_eigenvectors_of_the_covariance():
    vectors = np.random.default_rng(0).normal(size=(4, 5, 7)) * np.arange(1, 8)
    placed, share = principal_axes(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.reshape(-1, 7).T))
    assert share == pytest.approx(values[-3:].sum() / values.sum())
    centred = vectors.reshape(-1, 7) - vectors.reshape(-1, 7).mean(axis=0)
    expected = centred @ directions[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs(placed.reshape(-1, 3)), np.abs(expected), atol=1e-10)


def test_embeddings_that_never_moved_are_one_point():
    placed, share = principal_axes(np.ones((2, 3, 4)))
    assert not placed.any()
    assert share == 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_without_rows_has_a_page_that_says_so(name: str):
    figure = FIGURES[name](History())
    assert traces_of(figure) == []
    assert sentence_of(figure).strip().endswith((".", ")"))


@pytest.mark.parametrize("name", FIGURES)
def test_json_of_a_figure_has_plain_lists_and_no_nan(name: str):
    text = json.dumps(FIGURES[name](made_up_history()).to_plotly_json(), allow_nan=False)
    assert "bdata" not in text


def test_rounded_lists_have_null_for_what_is_not_finite():
    assert plain(np.array([[1.23456789, np.nan], [np.inf, 2.0]])) == [[1.2346, None], [None, 2.0]]
    assert plain(np.array([3, 4])) == [3, 4]


def test_labels_are_short_and_in_one_line():
    assert label("a\nb\x07c") == "a⏎b�c"
    assert label("x" * 50) == "x" * 39 + "…"


def follow(directory: Path, snapshots: list[dict]) -> tuple[Shown, list[str]]:
    path = directory / "snapshots.jsonl"
    shown, said = Shown(), []
    figures = FigureMaker(directory, path, made_up_history(), [shown], said.append)
    for snapshot in snapshots:
        with path.open("a") as file:
            file.write(json.dumps(snapshot) + "\n")
        figures.read_snapshots()
        figures.make_due()
    figures.close(0)
    return shown, said


EMBEDDINGS = {"embeddings": {"batch_step": 61, "texts": ["a"] * 8, "vectors": [[0.0] * 32] * 8}}


def test_figures_are_made_when_there_are_embeddings_and_at_the_end(tmp_path: Path):
    gradients = {"gradients": {"global_step": 121, "norms": {"layers.0": 1.0}}}
    shown, said = follow(tmp_path, [gradients, EMBEDDINGS, gradients])
    assert said == []
    assert {name: len(media) for name, media in shown.media.items()} == {
        **dict.fromkeys(FIGURES, 1),
        **{f"final/{name}": 1 for name in FIGURES},
    }
    pages = {path.name for path in (tmp_path / "figures").glob("*.html")}
    assert len(pages) == len(FIGURES)
    assert pages == {path.name for path in (tmp_path / "figures" / "final").glob("*.html")}


def test_a_place_where_nothing_can_be_written_is_a_mistake_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--directory .*/file/demo: cannot write there"):
        make_demo(DemoConfig(tmp_path / "file" / "demo"))


def test_a_run_that_failed_has_no_final_figures(tmp_path: Path):
    path = tmp_path / "snapshots.jsonl"
    figures = FigureMaker(tmp_path, path, made_up_history(), [shown := Shown()], [].append)
    figures.close(1)
    assert shown.media == {}


def test_a_figure_that_fails_is_said_once_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(history: History) -> go.Figure:
        return history.batches[10_000]  # pyright: ignore[reportReturnType]

    monkeypatch.setitem(maker.FIGURES, "3d/reward_surface", broken)
    shown, said = follow(tmp_path, [EMBEDDINGS, EMBEDDINGS])
    assert said == [
        "figure 3d/reward_surface could not be made (IndexError: deque index out of range)"
    ]
    assert "3d/reward_surface" not in shown.media
    assert len(shown.media["3d/loss_landscape"]) == 2
