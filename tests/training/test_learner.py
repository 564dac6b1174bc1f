"""What a run's optimizer steps are made from."""

from __future__ import annotations

import pytest

from tests.helpers import read_rows, train_here

FLAGS = (
    *("--rollouts-per-step", "2", "--group-size", "4", "--max-completion-tokens", "16"),
    *("--eval-samples", "0", "--max-steps", "2", "--train-batch-size", "4", "--lr", "1e-4"),
    *("--epochs-per-step", "2", "--micro-batch-size", "3", "--run-name", "r", "--no-wandb"),
    *("--no-tensorboard", "--device", "cpu"),
)


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_before_its_first_update_the_policy_is_the_one_that_sampled(tmp_path, objective):
    """Two steps of four updates each: two halves of the batch, twice. Scored in micro-batches of
    other shapes, bfloat16 has other log-probs."""
    flags = (*FLAGS, "--dtype", "bfloat16", "--objective", objective)
    train_here(*flags, log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "r" / "metrics.jsonl")
    steps = [row for row in rows if "training_step/loss" in row]
    assert len(steps) == 8
    for number, row in enumerate(steps):
        is_first = number in (0, 4)
        assert (row["training_step/ratio_max"] == 1) == is_first
        assert (row["training_step/ratio_mean"] == 1) == is_first
        assert not (is_first and row["training_step/clip_fraction"])
