"""Shapes and types of every public tensor function are checked while the tests run.

So are all other functions of their modules; those of modules without tensors would take as long.

Tests run side by side, so each process, and each that it starts, has one thread.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import docstring_parser
import jaxtyping

os.environ["OMP_NUM_THREADS"] = "1"
REPOSITORY = Path(__file__).parents[1]
WITH_TENSORS = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in REPOSITORY.glob("common/**/*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
jaxtyping.install_import_hook(WITH_TENSORS, "beartype.beartype")
# Else each of hundreds of runs in this process reads the help of its flags from their source anew.
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# On a busy machine an example may take longer than 200 ms, which says nothing of it.
hypothesis.settings.register_profile("without a deadline", deadline=None)
hypothesis.settings.load_profile("without a deadline")

if TYPE_CHECKING:
    # Else imported by the fixtures: the process that hands out tests to others needs none of it.
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The files that take longest, begun first: the last one of them would keep a single core busy.
LONGEST = (
    "test_resume.py",
    "distributed/test_ddp.py",
    "logger/test_wandb.py",
    "distributed/test_conversations.py",
    "test_accelerate_experiment.py",
    "test_question_answering_experiment.py",
    "test_base_experiment.py",
    "test_tool_calling_experiment.py",
    "sweep/test_sweep.py",
    "test_extending.py",
    "test_user_mistakes.py",
    "test_every_experiment.py",
    "logger/test_mirror.py",
    "logger/test_wandb_sweep.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: a packed file holds the time at which it was packed, and
    each of the processes that tests are handed out to collects the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    from common.models.load import load_tokenizer

    return load_tokenizer("tiny")


@pytest.fixture
def model64() -> PreTrainedModel:
    """A small random model in float64, in which rounding cannot hide or make a difference."""
    import torch

    from tests.helpers import random_model

    return random_model(torch.float64)
