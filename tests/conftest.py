"""Shapes and types of every public tensor function are checked while the tests run.

Tests run side by side, so each process, and each that it starts, has one thread.
"""

from __future__ import annotations

import os

import jaxtyping

os.environ["OMP_NUM_THREADS"] = "1"
jaxtyping.install_import_hook("common", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from common.models.load import load_tokenizer  # noqa: E402
from tests.helpers import random_model  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("tiny")


@pytest.fixture
def model64() -> PreTrainedModel:
    """A small random model in float64, in which rounding cannot hide or make a difference."""
    return random_model(torch.float64)
