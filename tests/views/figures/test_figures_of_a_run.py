"""A run with figures: the same numbers as one without, and figures wherever it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from common.views.figures.maker import FIGURES
from tests.helpers import complain, load_script, numbers_of, read_rows, run_training, train_here

pytestmark = pytest.mark.slow

FLAGS = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--max-steps", "2", "--eval-interval", "0", "--eval-samples", "8", "--seed", "3"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    offline = {"WANDB_MODE": "offline"}
    flags = (*FLAGS, "--figures-interval", "1", "--run-name", "with")
    result = run_training(*flags, log_dir=root, environment=offline)
    assert result.returncode == 0, result.stderr
    assert "could not be made" not in result.stdout
    return root / "experiment_base" / "with"


def test_figures_change_no_number(run: Path):
    plain = (*FLAGS, "--run-name", "without", "--no-wandb", "--no-tensorboard")
    train_here(*plain, log_dir=run.parents[1])
    without = run.parent / "without"
    rows = [read_rows(directory / "metrics.jsonl") for directory in (run, without)]
    assert numbers_of(rows[0]) == numbers_of(rows[1])
    weights = [
        load_file(directory / "checkpoints" / "step_000002" / "model.safetensors")
        for directory in (run, without)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not (without / "snapshots.jsonl").exists()
    assert not (without / "figures").exists()


def test_wandb_has_every_figure_as_plotly_has_it(run: Path):
    folder = next((run / "wandb").glob("offline-run-*/files/media/plotly"))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    for name in FIGURES:
        assert any(file.startswith(f"{name}_") for file in files), name
        assert any(file.startswith(f"final/{name}_") for file in files), name
    final = next(folder.glob("final/3d/policy_evolution_*.json"))
    drawn = json.loads(final.read_text())["data"][0]
    batches = [row for row in read_rows(run / "metrics.jsonl") if "rollouts/kl_mean" in row]
    np.testing.assert_allclose(drawn["y"], [r["rollouts/returns_mean"] for r in batches], rtol=1e-4)
    assert drawn["z"] == [1, 2]


def test_tensorboard_has_clouds_of_points_in_a_cube(run: Path):
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()["tensors"]
    vertices = make_ndarray(events.Tensors("3d/training_dynamics_VERTEX")[-1].tensor_proto)
    colours = make_ndarray(events.Tensors("3d/training_dynamics_COLOR")[-1].tensor_proto)
    assert vertices.shape == colours.shape == (1, 2, 3)
    assert sorted(vertices[0, :, 2].tolist()) == [-1, 1]
    assert "final/3d/embedding_trajectory_VERTEX" in tags


def test_gradients_are_those_whose_norm_is_logged(run: Path):
    snapshots = read_rows(run / "snapshots.jsonl")
    recorded = [row["gradients"] for row in snapshots if "gradients" in row]
    steps = [row for row in read_rows(run / "metrics.jsonl") if "training_step/grad_norm" in row]
    assert len(recorded) == len(steps) == 4
    for snapshot, step in zip(recorded, steps, strict=True):
        assert snapshot["global_step"] == step["training_step/global_step"]
        total = np.linalg.norm(list(snapshot["norms"].values()))
        assert total == pytest.approx(step["training_step/grad_norm"], rel=1e-4)
    probes = [row["embeddings"]["batch_step"] for row in snapshots if "embeddings" in row]
    assert probes == [0, 1, 2]


def test_a_head_that_the_model_has_not_is_one_line_and_leaves_no_run(tmp_path: Path):
    script = load_script("experiment_base")
    flags = ("--figures-interval", "1", "--log-dir", str(tmp_path / "runs"))
    code, complaint = complain(script, [*flags, "--figures-head", "4"])
    assert (code, complaint) == (2, "error: --figures-head 4: must be 0 to 3\n")
    code, complaint = complain(script, [*flags, "--figures-layer", "-5"])
    assert code == 2
    assert complaint == "error: --figures-layer -5: must be 0 to 3, or -1 for the last\n"
    assert not (tmp_path / "runs").exists()
