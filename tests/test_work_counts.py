"""The formulas of work count what torch counts, and the hooks miss no pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import Machine
from benchmarks.work import Work, counting
from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.rollout.decode_batch import DecodeBatch

PROMPTS = [(5, 6, 7, 8, 9), (5, 6, 7, 8, 9), (10, 11, 12)]


@pytest.fixture(scope="module")
def model():
    """With attention made of plain products: torch counts no other kind on a CPU."""
    return load_policy(ModelOptions("tiny", torch.device("cpu"), attn="eager"))


def test_a_pass_forward_and_backward_has_the_operations_that_torch_counts(model):
    counted: list[Work] = []
    policy = TokenLogProbs(model, 1.0)
    token_ids = torch.randint(5, 400, (3, 17))
    sampled = torch.ones_like(token_ids, dtype=torch.bool)
    sampled[:, :9] = False
    with counting(model, counted.append) as architecture:
        with FlopCounterMode(display=False) as forward:
            loss = policy(token_ids, torch.ones_like(sampled), sampled)[0].sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    work = sum(counted, Work())
    assert (work.passes, work.tokens) == (1, 51)
    # Rotation is a product of positions and frequencies, once for all heads and layers.
    assert work.all_flops == pytest.approx(forward.get_total_flops(), rel=1e-4)
    assert architecture.backward(work).all_flops == pytest.approx(
        backward.get_total_flops(), rel=1e-4
    )


def test_frozen_weights_have_no_gradient_to_be_computed():
    adapted = load_policy(
        ModelOptions("tiny", torch.device("cpu"), attn="eager", lora_rank=4, lora_alpha=8)
    )
    counted: list[Work] = []
    token_ids = torch.randint(5, 400, (2, 16))
    with counting(adapted, counted.append) as architecture:
        with FlopCounterMode(display=False) as forward:
            loss = adapted(input_ids=token_ids).logits.sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    work = sum(counted, Work())
    assert work.all_flops == pytest.approx(forward.get_total_flops(), rel=1e-4)
    # The first layer's own input needs no gradient, which the formula does not know.
    assert architecture.backward(work).all_flops == pytest.approx(
        backward.get_total_flops(), rel=0.1
    )


@torch.no_grad()
def test_prompts_that_are_shared_count_once_and_a_decoded_token_sees_all_before_it(model):
    counted: list[Work] = []
    with counting(model, counted.append), FlopCounterMode(display=False) as torchs:
        batch = DecodeBatch.read(model, PROMPTS)
        batch.append(model, torch.tensor([5, 6, 7]), torch.tensor([True, True, True]))
    read, decoded = (work for work in counted if work.passes)
    # Two distinct prompts, padded to five tokens; then a token each of three rows.
    assert (read.tokens, decoded.tokens) == (10, 3)
    # 4 layers of 4 heads of 32, keys and values, 3 rows of 6 positions, float32.
    assert decoded.attention_bytes == 4 * 128 * 2 * 3 * 6 * 4
    assert sum(counted, Work()).all_flops == pytest.approx(torchs.get_total_flops(), rel=1e-4)


def test_the_least_seconds_are_of_what_takes_longer_in_products_and_in_attention():
    machine = Machine(flops=100.0, bandwidth=10.0)
    work = Work(flops=200.0, bytes=10.0, attention_flops=100.0, attention_bytes=50.0)
    assert work.least_seconds(machine) == 2.0 + 5.0
