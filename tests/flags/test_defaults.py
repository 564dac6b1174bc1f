"""Defaults that depend on other flags."""

from __future__ import annotations

import pytest

from common.flags.train_config import resolve_defaults
from tests.helpers import EXPERIMENTS, load_script


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    ("bundled", "lora_rank", "expected"),
    [(True, 0, 4e-4), (False, 0, 1e-6), (True, 16, 2e-3), (False, 16, 1e-5)],
)
def test_adapters_have_a_higher_learning_rate_than_all_weights(
    experiment, bundled, lora_rank, expected
):
    config_class = load_script(experiment).Config
    config = resolve_defaults(config_class(lora_rank=lora_rank), bundled=bundled)
    assert config.lr == expected
    assert config.max_steps == (25 if bundled else 100)
    given = resolve_defaults(config_class(lora_rank=lora_rank, lr=3e-4), bundled=bundled)
    assert given.lr == 3e-4
