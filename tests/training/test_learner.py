"""What a run's optimizer steps are made from."""

from __future__ import annotations

import pytest

from common.training.learner import learning_rate
from tests.helpers import load_script, read_rows, train_here

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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
    ],
)
def test_the_learning_rate_rises_and_then_follows_the_schedule(schedule, expected):
    """Six steps, each of one optimizer step, of which two warm up."""
    flags = {"max_steps": 6, "rollouts_per_step": 2, "group_size": 4, "train_batch_size": 8}
    config = load_script("experiment_base").Config(lr=1.0, lr_schedule=schedule, **flags)
    assert [learning_rate(config, step, 2) for step in range(6)] == pytest.approx(expected)


def test_more_steps_on_resume_do_not_warm_up_again(tmp_path):
    flags = (
        *("--run-name", "one", "--lr", "3e-4", "--rollouts-per-step", "2", "--group-size", "2"),
        *("--warmup-fraction", "1", "--eval-samples", "0", "--max-completion-tokens", "4"),
        *("--no-wandb", "--no-tensorboard"),
    )
    train_here(*flags, "--max-steps", "2", log_dir=tmp_path)
    train_here("--run-name", "one", "--resume", "--max-steps", "3", log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "one" / "metrics.jsonl")
    name = "training_step/learning_rate"
    assert [row[name] for row in rows if name in row] == pytest.approx([1e-4, 2e-4, 3e-4])
