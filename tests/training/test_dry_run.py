"""What a dry run says of the run."""

from __future__ import annotations

import pytest

from common.flags.train_config import resolve_defaults
from common.training.dry_run import plan
from tests.helpers import load_script

MEASURED = {
    "time/step_s": 1.0,
    "system/process_memory_gb": 0.5,
    "system/gpu_memory_reserved_gb": 0.0,
}


@pytest.mark.parametrize(
    ("draws", "said"),
    [
        (1, "32 tasks x 8 completions, at most 16,384 sampled tokens and 40,960 in all"),
        (3, "32 tasks x 8 completions in up to 3 draws, at most 49,152 sampled tokens and 122,880"),
    ],
)
def test_a_step_costs_what_all_of_its_draws_sample(draws, said):
    """256 completions of up to 64 tokens in sequences of up to 160, in two optimizer steps."""
    config = load_script("experiment_base").Config(dynamic_sampling=draws, wandb=False)
    config = resolve_defaults(config, bundled=True)
    _, step, *_ = plan(config, {"num_parameters": 7}, MEASURED)
    assert step.startswith(f"a step: {said}")
    assert step.endswith("2 optimizer steps")
