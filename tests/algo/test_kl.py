import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.aggregation import BatchTotals
from common.algo.kl import k3_weighted_penalty, kl_divergence_k3
from common.algo.tokens import TokenBatch

EVERYWHERE = torch.tensor([[True]])


def k3(difference: float, dtype: torch.dtype = torch.float64) -> float:
    """With log_probs_ref - log_probs = difference."""
    policy = torch.zeros(1, 1, dtype=dtype)
    return float(kl_divergence_k3(policy, policy + difference, EVERYWHERE))


def test_values_worked_out_by_hand():
    assert k3(0.0) == 0.0
    assert k3(math.log(2)) == pytest.approx(2 - 1 - math.log(2))
    assert k3(-math.log(2)) == pytest.approx(0.5 - 1 + math.log(2))


@given(st.floats(-60, 60, width=32))
def test_never_negative_and_always_finite_in_float32(difference):
    value = k3(difference, torch.float32)
    assert 0 <= value < math.inf


def test_the_textbook_form_is_negative_for_small_differences_in_float32():
    small = torch.linspace(-1e-3, 1e-3, 10_001)
    assert ((small.exp() - small - 1) < 0).any()
    zeros = torch.zeros(1, len(small))
    assert (kl_divergence_k3(zeros, small[None], torch.ones(1, len(small)).bool()) >= 0).all()


def test_its_mean_over_samples_approaches_the_exact_divergence():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    torch.manual_seed(0)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)[None]
    estimate = kl_divergence_k3(policy[tokens], reference[tokens], torch.ones_like(tokens).bool())
    error = float(estimate.std()) / math.sqrt(tokens.numel())
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * error)


def test_outside_the_mask_it_is_zero_without_gradient_whatever_stands_there():
    log_probs = torch.tensor([[-1.0, float("nan"), float("-inf")]], requires_grad=True)
    reference = torch.tensor([[-2.0, -1.0, float("nan")]])
    divergence = kl_divergence_k3(log_probs, reference, torch.tensor([[True, False, False]]))
    divergence.sum().backward()
    assert divergence[0, 1:].tolist() == [0, 0]
    assert log_probs.grad is not None
    assert log_probs.grad[0, 1:].tolist() == [0, 0]
    assert float(log_probs.grad[0, 0]) == pytest.approx(1 - math.exp(-1))


@pytest.mark.parametrize("difference", [2.62, 11.5, 39.0, 100.0, -11.01, -60.0])
def test_beyond_its_bound_a_token_counts_as_ten_nats_and_has_no_gradient(difference):
    """exp(2.62) - 2.62 - 1 = 10.1, and exp(-11.01) + 11.01 - 1 = 10.01."""
    log_probs = torch.tensor([[-12.0, -1.0]], requires_grad=True)
    reference = torch.tensor([[-12.0 + difference, -1.0 + math.log(2)]])
    divergence = kl_divergence_k3(log_probs, reference, torch.ones(1, 2).bool())
    divergence.sum().backward()
    assert divergence.tolist() == [[10, pytest.approx(1 - math.log(2))]]
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0, pytest.approx(1 - 2)]]


@pytest.mark.parametrize(("difference", "slope"), [(2.6, 1 - math.exp(2.6)), (-10.9, 1.0)])
def test_up_to_its_bound_it_is_as_it_was(difference, slope):
    log_probs = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    divergence = kl_divergence_k3(log_probs, log_probs.detach() + difference, EVERYWHERE)
    divergence.sum().backward()
    assert divergence.item() == pytest.approx(math.exp(difference) - difference - 1)
    assert log_probs.grad is not None
    assert float(log_probs.grad) == pytest.approx(slope, rel=1e-4)


def test_weighted_k3_keeps_its_slope_in_float32_where_the_product_loses_it():
    """exp(25) has no digit left for 25, which is the slope under a weight of 1."""

    def slope(estimate) -> float:
        log_probs = torch.tensor([[-30.0]], requires_grad=True)
        zero, totals = torch.zeros(1, 1), BatchTotals(1, 1)
        given = (torch.tensor([[-30.0]]), torch.tensor([[-5.0]]), zero, EVERYWHERE, totals)
        estimate(TokenBatch(log_probs, log_probs.detach(), *given)).sum().backward()
        assert log_probs.grad is not None
        return log_probs.grad.item()

    def product(tokens: TokenBatch) -> torch.Tensor:
        assert tokens.log_probs_ref is not None
        difference = tokens.log_probs_ref - tokens.log_probs
        weight = (tokens.log_probs - tokens.log_probs_sampler).exp()
        return weight * (torch.expm1(difference) - difference)

    assert slope(k3_weighted_penalty) == -25
    assert slope(product) == 0


def test_a_broken_log_prob_is_seen_in_value_and_gradient():
    log_probs = torch.tensor([[math.nan]], requires_grad=True)
    divergence = kl_divergence_k3(log_probs, torch.zeros(1, 1), EVERYWHERE)
    divergence.sum().backward()
    assert divergence.isnan().all()
    assert log_probs.grad is not None
    assert log_probs.grad.isnan().all()
