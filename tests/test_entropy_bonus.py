"""`--entropy-weight` in every experiment: what is left of the loss where rewards teach nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.helpers import read_rows, train_here
from tests.test_objective_flag import SMALL, steps_of
from tests.test_train_scripts import EXPERIMENTS

pytestmark = pytest.mark.slow

OWN = """
def indifferent(completion, task):
    return 1.0
"""
WEIGHT = 0.25
Trained = Callable[[str, float], tuple[list[dict[str, Any]], float]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    """By experiment and weight, two optimizer steps from one batch without an advantage: their
    rows, and the mean length of completions. The KL is watched, so that sequences go through the
    policy that have nothing to teach it without a bonus."""

    @cache
    def train(experiment: str, weight: float) -> tuple[list[dict[str, Any]], float]:
        root = tmp_path_factory.mktemp("run")
        (root / "own.py").write_text(OWN)
        train_here(
            *(*SMALL, "--kl-weight", "0", "--objective", "rloo", "--epochs-per-step", "2"),
            *("--reward", f"{root / 'own.py'}:indifferent", "--reward-weights", "indifferent=1"),
            *("--entropy-weight", str(weight), "--monitor-kl"),
            experiment=experiment,
            log_dir=root,
        )
        directory = root / experiment / "r"
        rows = read_rows(directory / "metrics.jsonl")
        (batch,) = (row for row in rows if "time/step_s" in row)
        return steps_of(directory), batch["rollouts/completion_tokens_mean"]

    return train


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_bonus_is_taken_from_the_loss_and_entropy_rises(trained, experiment):
    """RLOO sums over tokens, so that the bonus is weight x entropy x tokens of a completion."""
    (first, second), length = trained(experiment, WEIGHT)
    entropy = first["training_step/entropy"]
    assert first["training_step/loss"] == pytest.approx(-WEIGHT * entropy * length, rel=1e-4)
    assert first["training_step/grad_norm"] > 0
    assert second["training_step/entropy"] > entropy


def test_a_weight_changes_no_entropy_that_is_logged(trained):
    """In the first step, in which both learn from the same completions."""
    (with_bonus, _), _ = trained("experiment_base", WEIGHT)
    (without, _), _ = trained("experiment_base", 0.0)
    assert without["training_step/entropy"] == with_bonus["training_step/entropy"]
    assert without["training_step/grad_norm"] == 0
