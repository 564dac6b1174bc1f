"""What a run is called in W&B; that it arrives under these names is tested in test_wandb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from common.flags.parsing import parse_config
from common.flags.train_config import TrainConfig
from common.training.open_logger import _wandb_names


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"
    default_wandb_project: ClassVar[str] = "default"


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ([], {}, ("default", None, "run")),
        # The entity of the environment is read by wandb itself.
        (
            [],
            {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_RUN_GROUP": "g"},
            ("p", None, "g"),
        ),
        (
            ["--wandb-project", "flag", "--wandb-entity", "me", "--wandb-group", "mine"],
            {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_RUN_GROUP": "g"},
            ("flag", "me", "mine"),
        ),
    ],
    ids=["defaults", "environment", "flags beat it"],
)
def test_a_flag_beats_the_environment_and_that_the_default(
    monkeypatch, flags, environment, expected
):
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = _wandb_names(parse_config(Config, flags), "run")
    assert (names["project"], names["entity"], names["group"]) == expected
    assert names["name"] == "run"
