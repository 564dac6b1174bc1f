"""The published vectors are what the papers say, and the training code reproduces them."""

import json

import pytest
import torch

from common.algo.aggregation import BatchTotals
from tests.variants import VARIANTS, token_losses
from tests.vectors.make import DIRECTORY, file_name, vector


@pytest.mark.parametrize("name", VARIANTS)
def test_the_file_is_what_the_slow_loop_writes(name):
    assert json.loads((DIRECTORY / file_name(name)).read_text(encoding="utf-8")) == vector(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_training_code_reproduces_the_file(name):
    objective = VARIANTS[name]
    cases = json.loads((DIRECTORY / file_name(name)).read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 4
    for case in cases:
        log_probs = torch.tensor(case["log_probs"], dtype=torch.float64, requires_grad=True)
        old = torch.tensor(case["log_probs_old"], dtype=torch.float64)
        advantages = torch.tensor(case["advantages"], dtype=torch.float64)
        mask = torch.tensor(case["mask"], dtype=torch.bool)
        totals = BatchTotals(
            case["sequences_in_optimizer_batch"], case["tokens_in_optimizer_batch"]
        )
        per_token = token_losses(objective, log_probs, old, advantages, mask)
        loss = objective.aggregate(per_token, mask, totals)
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
        assert log_probs.grad is not None
        torch.testing.assert_close(
            log_probs.grad, torch.tensor(case["gradient"], dtype=torch.float64), rtol=1e-12, atol=0
        )
