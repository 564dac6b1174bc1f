"""Shapes and types of every public tensor function are checked while the tests run.

Tests run side by side, so each process, and each that it starts, has one thread.
"""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping

os.environ["OMP_NUM_THREADS"] = "1"
jaxtyping.install_import_hook("common", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from common.models.load import load_tokenizer  # noqa: E402
from tests.helpers import REPOSITORY, random_model, run_training  # noqa: E402

EXPERIMENTS = sorted(path.parent.name for path in REPOSITORY.glob("experiment_*/train.py"))
# A run of seconds that logs all that there is.
SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--max-steps", "3", "--eval-samples", "16", "--eval-interval", "0"),
    *("--eval-group-size", "2", "--log-completions-interval", "1", "--histogram-interval", "1"),
    *(
        "--figures-interval",
        "3",
        "--checkpoint-interval",
        "1",
        "--run-name",
        "run",
        "--no-wandb",
        "--no-tensorboard",
    ),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n` the tests of a file share a process, as they share its fixtures."""
    for item in items:
        shared = "six_runs" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("six_runs" if shared else item.path.name))


@pytest.fixture(scope="session")
def six_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run directory of a small run of each experiment, with a rubric."""
    root = tmp_path_factory.mktemp("six_runs")
    for experiment in EXPERIMENTS:
        kind = "search" if experiment == "experiment_multiturn_qa" else "arithmetic"
        rubric = REPOSITORY / "data" / "rubrics" / f"{kind}.yaml"
        flags = (*SMALL, "--rubric-file", str(rubric))
        result = run_training(*flags, experiment=experiment, log_dir=root)
        assert result.returncode == 0, result.stderr
        name = rubric.read_text(encoding="utf-8").partition("name: ")[2].partition("\n")[0]
        assert f"Loaded rubric: {name} (4 criteria)" in result.stdout
    return {experiment: root / experiment / "run" for experiment in EXPERIMENTS}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny")


@pytest.fixture
def model64() -> PreTrainedModel:
    """A small random model in float64, in which rounding cannot hide or make a difference."""
    return random_model(torch.float64)
