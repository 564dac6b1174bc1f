"""Dr. GRPO, run as a user runs it."""

import numpy as np
import pytest

from common.algo.variants import advantage_moments
from tests.helpers import read_rows, train_here

pytestmark = pytest.mark.slow

SMALL = (
    *("--rollouts-per-step", "8", "--group-size", "4", "--train-batch-size", "16"),
    *(
        "--max-steps",
        "2",
        "--eval-samples",
        "8",
        "--no-wandb",
        "--no-tensorboard",
        "--log-completions-interval",
        "1",
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    flags = (*SMALL, "--run-name", "r", "--kl-weight", "0.05")
    train_here(*flags, experiment="experiment_drgrpo", log_dir=root)
    return root / "experiment_drgrpo" / "r"


def test_the_two_components_sum_to_the_loss(run):
    steps = [row for row in read_rows(run / "metrics.jsonl") if "training_step/loss" in row]
    assert len(steps) == 4
    for row in steps:
        parts = row["training_step/dr_component_policy"] + row["training_step/dr_component_kl"]
        assert parts == pytest.approx(row["training_step/loss"], rel=1e-5, abs=1e-9)
    assert any(row["training_step/dr_component_kl"] > 0 for row in steps[1:])


def test_the_moments_are_those_of_the_advantages(run):
    rows = read_rows(run / "metrics.jsonl")
    moments = [row for row in rows if "dr_grpo/advantages_variance" in row]
    spread = [row for row in rows if "rollouts/advantages_std" in row]
    assert len(moments) == 2
    for moment, batch in zip(moments, spread, strict=True):
        variance = batch["rollouts/advantages_std"] ** 2
        assert moment["dr_grpo/advantages_variance"] == pytest.approx(variance)
        assert np.isfinite(moment["dr_grpo/advantages_skewness"])
    assert sum("dr_grpo/critic_type" in row for row in rows) == 1


def test_advantages_are_rewards_minus_the_groups_mean(run):
    samples = [row for row in read_rows(run / "samples.jsonl") if row["split"] == "train"]
    for start in range(0, len(samples), 4):
        group = samples[start : start + 4]
        mean = sum(row["reward"] for row in group) / 4
        for row in group:
            assert row["advantage"] == pytest.approx(row["reward"] - mean, abs=1e-12)


def test_by_default_there_is_no_reference(tmp_path):
    train_here(*SMALL, "--run-name", "r", experiment="experiment_drgrpo", log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_drgrpo" / "r" / "metrics.jsonl")
    assert not any("rollouts/kl_mean" in row for row in rows)
    assert all(row.get("training_step/dr_component_kl", 0) == 0 for row in rows)


def test_skewness_by_hand():
    # Mean 0, variance (9 + 3) / 4 = 3, third moment (27 - 3) / 4 = 6.
    moments = advantage_moments([3.0, -1.0, -1.0, -1.0])
    assert moments["dr_grpo/advantages_variance"] == pytest.approx(3.0)
    assert moments["dr_grpo/advantages_skewness"] == pytest.approx(6 / 3**1.5)
    constant = advantage_moments([0.0, 0.0])
    assert constant == {"dr_grpo/advantages_variance": 0.0, "dr_grpo/advantages_skewness": 0.0}
