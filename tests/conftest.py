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
from tests.helpers import random_model  # noqa: E402

# The files that take longest, begun first: the last one of them would keep a single core busy.
LONGEST = (
    "distributed/test_ddp.py",
    "test_resume.py",
    "logger/test_wandb.py",
    "test_accelerate_experiment.py",
    "test_tool_calling_experiment.py",
    "test_question_answering_experiment.py",
    "test_base_experiment.py",
    "test_user_mistakes.py",
    "sweep/test_sweep.py",
    "logger/test_mirror.py",
    "views/figures/test_figures_of_a_run.py",
    "test_every_experiment.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny")


@pytest.fixture
def model64() -> PreTrainedModel:
    """A small random model in float64, in which rounding cannot hide or make a difference."""
    return random_model(torch.float64)
