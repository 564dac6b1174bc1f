"""The loss against a slow implementation written from the papers, number by number."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algo.kl import kl_divergence_k3
from common.algo.loss import clipped_loss, clipped_tokens, sequence_mean, token_log_ratio
from common.algo.masking import masked_mean, masked_sum


def grpo_loss(log_probs, old, ref, advantages, mask, num_sequences, kl_weight=0.1, high=0.3):
    log_ratio = token_log_ratio(log_probs, old, mask)
    per_token = clipped_loss(log_ratio, advantages, 0.2, high)
    per_token = per_token + kl_weight * kl_divergence_k3(log_probs, ref, mask)
    return sequence_mean(per_token, mask, num_sequences)


def brute_force(log_probs, old, ref, advantages, mask, num_sequences, kl_weight=0.1, high=0.3):
    """Loss and its gradient with respect to log_probs, one token at a time, in Python floats."""
    loss, gradient = 0.0, np.zeros(log_probs.shape)
    for i in range(len(log_probs)):
        count = max(1, int(mask[i].sum()))
        for t in np.flatnonzero(mask[i]):
            ratio = math.exp(log_probs[i, t] - old[i, t])
            clipped = min(max(ratio, 0.8), 1 + high)
            difference = ref[i, t] - log_probs[i, t]
            surrogate = min(ratio * advantages[i], clipped * advantages[i])
            k3 = math.exp(difference) - difference - 1
            loss += (-surrogate + kl_weight * k3) / count / num_sequences
            moves = ratio * advantages[i] <= clipped * advantages[i]
            slope = (-ratio * advantages[i] if moves else 0.0) + kl_weight * (
                1 - math.exp(difference)
            )
            gradient[i, t] = slope / count / num_sequences
    return loss, gradient


@st.composite
def batches(draw):
    rows, time = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.01, 0.3, 3.0]))
    old = rng.normal(-2, 1, (rows, time))
    log_probs = old + rng.normal(0, spread, (rows, time))
    ref = log_probs + rng.normal(0, spread, (rows, time))
    advantages = rng.normal(0, 1, rows) * (rng.random(rows) < 0.8)
    mask = rng.random((rows, time)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return log_probs, old, ref, advantages, mask


@settings(max_examples=200)
@given(batches(), st.integers(0, 3))
def test_loss_and_gradient_equal_the_brute_force(batch, others):
    """`others` are sequences of the optimizer batch that are not in this micro-batch."""
    num_sequences = len(batch[0]) + others
    log_probs, *rest = [torch.from_numpy(array) for array in batch]
    log_probs.requires_grad_()
    loss = grpo_loss(log_probs, *rest, num_sequences=num_sequences)
    loss.backward()
    expected_loss, expected_gradient = brute_force(*batch, num_sequences=num_sequences)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9, abs=1e-12)
    assert log_probs.grad is not None
    np.testing.assert_allclose(log_probs.grad.numpy(), expected_gradient, rtol=1e-9, atol=1e-12)


def test_masked_positions_have_no_gradient_even_where_nothing_is_finite():
    bad = [float("nan"), float("-inf"), float("inf")]
    log_probs = torch.tensor([[-1.0, *bad], [-2.0, *bad]], requires_grad=True)
    mask = torch.tensor([[True, False, False, False]] * 2)
    garbage = torch.tensor([[-1.5, *reversed(bad)]] * 2)
    loss = grpo_loss(log_probs, garbage, garbage, torch.tensor([1.0, -1.0]), mask, 2)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert log_probs.grad is not None
    assert (log_probs.grad[:, 1:] == 0).all()
    assert (log_probs.grad[:, 0] != 0).all()


def test_a_zero_advantage_leaves_the_policy_term_at_exactly_zero():
    log_ratio = torch.randn(3, 4)
    loss = clipped_loss(log_ratio, torch.zeros(3), 0.2, 0.2)
    assert (loss == 0).all()


def test_on_policy_the_gradient_is_minus_advantage_over_length():
    log_probs = torch.full((1, 5), -1.0, requires_grad=True)
    mask = torch.ones(1, 5).bool()
    log_ratio = token_log_ratio(log_probs, log_probs.detach(), mask)
    sequence_mean(clipped_loss(log_ratio, torch.tensor([2.0]), 0.2, 0.2), mask, 1).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [pytest.approx([-2 / 5] * 5)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [
        (1.31, 1.0, True),
        (1.29, 1.0, False),
        (1.31, -1.0, False),
        (0.79, -1.0, True),
        (0.81, -1.0, False),
        (0.79, 1.0, False),
    ],
)
def test_tokens_count_as_clipped_exactly_where_they_have_no_gradient(ratio, advantage, clipped):
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    clip = (log_ratio, torch.tensor([advantage]), 0.2, 0.3)
    clipped_loss(*clip).sum().backward()
    assert log_ratio.grad is not None
    assert bool(clipped_tokens(*clip)) == clipped
    assert (float(log_ratio.grad) == 0) == clipped


def test_a_huge_ratio_stays_finite():
    mask = torch.ones(1, 1).bool()
    log_ratio = token_log_ratio(torch.tensor([[0.0]]), torch.tensor([[-1000.0]]), mask)
    assert torch.isfinite(clipped_loss(log_ratio, torch.tensor([-1.0]), 0.2, 0.2)).all()


def test_masked_sum_and_mean_by_hand():
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, float("nan")], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    assert masked_sum(values, mask).tolist() == [5.0, 8.0, 0.0]
    assert masked_mean(values, mask).tolist() == [2.5, 4.0, 0.0]
