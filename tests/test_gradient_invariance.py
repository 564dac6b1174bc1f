"""The gradient of an optimizer batch depends on what is in it, not on how it is cut and padded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.algo.kl import kl_divergence_k3
from common.algo.loss import clipped_loss, sequence_mean, token_log_ratio
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience, ExperienceBatch, micro_batches
from tests.helpers import random_experiences, random_model

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def gradient(batches: list[ExperienceBatch], dtype: torch.dtype) -> Tensor:
    """The flat gradient summed over micro-batches of one optimizer batch of 7 sequences."""
    model = random_model(dtype)
    policy = TokenLogProbs(model, temperature=0.9)
    for batch in batches:
        log_probs, _ = policy(batch.token_ids, batch.attention_mask, batch.sampled)
        assert batch.log_probs_ref is not None
        log_ratio = token_log_ratio(log_probs, batch.log_probs_old, batch.sampled)
        per_token = clipped_loss(log_ratio, batch.advantages.to(dtype), 0.2, 0.2)
        kl = kl_divergence_k3(log_probs, batch.log_probs_ref, batch.sampled)
        sequence_mean(per_token + 0.1 * kl, batch.sampled, 7).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def whole(experiences: list[Experience]) -> list[ExperienceBatch]:
    return [ExperienceBatch.collate(experiences, CPU)]


def padded(batch: ExperienceBatch, count: int) -> ExperienceBatch:
    """The batch with `count` more columns of garbage that no mask covers."""

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, count), value=fill)

    assert batch.log_probs_ref is not None
    return replace(
        batch,
        token_ids=widen(batch.token_ids, 7),
        attention_mask=widen(batch.attention_mask, False),
        sampled=widen(batch.sampled, False),
        log_probs_old=widen(batch.log_probs_old, float("nan")),
        log_probs_ref=widen(batch.log_probs_ref, float("-inf")),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
class TestTheGradientIsTheSame:
    def check(self, dtype: torch.dtype, batches: list[ExperienceBatch]) -> None:
        expected = gradient(whole(random_experiences(7, dtype=dtype)), dtype)
        error = (gradient(batches, dtype) - expected).norm() / expected.norm()
        assert expected.norm() > 1e-3
        assert float(error) < TOLERANCE[dtype]

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_for_any_micro_batch_size(self, dtype, size):
        self.check(dtype, list(micro_batches(random_experiences(7, dtype=dtype), size, CPU)))

    def test_in_any_order(self, dtype):
        experiences = random_experiences(7, dtype=dtype)
        self.check(dtype, whole([experiences[index] for index in (3, 6, 0, 2, 5, 1, 4)]))

    def test_with_more_padding(self, dtype):
        batch = whole(random_experiences(7, dtype=dtype))[0]
        self.check(dtype, [padded(batch, 9)])


def test_a_sequence_of_zero_advantage_adds_nothing_to_the_policy_term():
    experience = replace(random_experiences(1)[0], advantage=0.0)
    model = random_model(torch.float32)
    batch = ExperienceBatch.collate([experience], CPU)
    log_probs, _ = TokenLogProbs(model, 1.0)(batch.token_ids, batch.attention_mask, batch.sampled)
    log_ratio = token_log_ratio(log_probs, batch.log_probs_old, batch.sampled)
    sequence_mean(clipped_loss(log_ratio, batch.advantages, 0.2, 0.2), batch.sampled, 1).backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
