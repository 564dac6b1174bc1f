"""Objectives by numbers worked out by hand; `test_every_objective.py` has what holds of all."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.algo.aggregation import (
    BatchTotals,
    constant_length_mean,
    masked_mean,
    masked_sum,
    sequence_mean,
    token_mean,
)
from common.algo.objective import Objective
from common.algo.surrogate import (
    clipped_surrogate,
    clipped_weight,
    sequence_log_ratio,
)
from common.algo.tokens import TokenBatch
from tests.variants import MAX_TOKENS, VARIANTS, Arrays, token_losses


@st.composite
def micro_batches(draw):
    """Shapes, masks and ratios near and far from 1; some sequences empty or without advantage."""
    rows, time = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1e-4, 0.3, 3.0]))
    of_tokens = (rows, time)
    of_advantages = draw(st.sampled_from([(rows,), of_tokens]))
    old = rng.normal(-2, 1, of_tokens)
    return Arrays(
        log_probs=old + rng.normal(0, spread, of_tokens),
        old=old,
        sampler=old + rng.normal(0, draw(st.sampled_from([0.0, 0.3])), of_tokens),
        advantages=rng.normal(0, 1, of_advantages) * (rng.random(of_advantages) < 0.8),
        mask=rng.random((rows, time)) < draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


def loss_and_gradient(
    objective: Objective, arrays: Arrays, totals: BatchTotals
) -> tuple[float, np.ndarray]:
    log_probs = torch.from_numpy(arrays.log_probs).clone().requires_grad_()
    mask = torch.from_numpy(arrays.mask)
    per_token = token_losses(
        objective,
        log_probs,
        torch.from_numpy(arrays.old),
        torch.from_numpy(arrays.advantages),
        mask,
        torch.from_numpy(arrays.sampler),
    )
    loss = objective.aggregate(per_token, mask, totals)
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad.numpy()


def on_policy(lengths: list[int]) -> Arrays:
    time = max(lengths)
    mask = np.arange(time) < np.array(lengths)[:, None]
    log_probs = np.full((len(lengths), time), -1.0)
    return Arrays(log_probs, log_probs, log_probs, np.ones(len(lengths)), mask)


def test_weight_per_token_of_a_short_and_a_long_answer():
    """The paper's length bias: in GRPO a token of a ten times longer answer weighs a tenth."""
    arrays, totals = on_policy([5, 50]), BatchTotals(2, 55)
    weights = {
        name: -loss_and_gradient(objective, arrays, totals)[1][:, 0]
        for name, objective in VARIANTS.items()
    }
    assert weights["dr_grpo"][0] == weights["dr_grpo"][1]
    assert weights["dr_grpo"][0] == pytest.approx(1 / (2 * MAX_TOKENS))
    assert weights["grpo"][0] == pytest.approx(10 * weights["grpo"][1])
    assert weights["grpo"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["dapo"].tolist() == pytest.approx([1 / 55, 1 / 55])
    assert weights["gspo"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["cispo"].tolist() == pytest.approx([1 / 55, 1 / 55])
    assert weights["rloo"].tolist() == pytest.approx([1 / 2, 1 / 2])
    assert weights["grpo_dual_clip"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["sapo"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["gspo_token"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["gmpo"].tolist() == pytest.approx([1 / 10, 1 / 100])
    assert weights["luspo"].tolist() == pytest.approx([1 / 2, 1 / 2])
    assert weights["dppo_tv"].tolist() == pytest.approx([1 / (2 * MAX_TOKENS)] * 2)
    assert weights["ipo"].tolist() == pytest.approx([1 / 55, 1 / 55])
    assert weights["vespo"].tolist() == pytest.approx([1 / 55, 1 / 55])


def one_row(log_probs: torch.Tensor, advantage: float) -> TokenBatch:
    """A sequence of sampled tokens with one advantage."""
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    advantages = torch.full_like(log_probs, advantage)
    return TokenBatch(log_probs, log_probs, log_probs, None, advantages, mask, BatchTotals(1, 1))


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
def test_a_surrogate_counts_as_clipped_exactly_where_it_has_no_gradient(ratio, advantage, clipped):
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    tokens = one_row(log_ratio.detach(), advantage)
    loss, marked = clipped_surrogate(log_ratio, tokens, clip_eps=0.2, clip_eps_high=0.3)
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert bool(marked) == clipped
    assert (float(log_ratio.grad) == 0) == clipped


# Of a token alone in its sequence: pi, pi_old, mu, A; then the loss and its slope in log pi.
BY_HAND = {
    "grpo_dual_clip": [
        ((0.4, 0.1, 0.1, -2.0), (6.0, 0.0)),
        ((0.25, 0.1, 0.1, -2.0), (5.0, 5.0)),
        ((0.4, 0.1, 0.1, 2.0), (-2.4, 0.0)),
    ],
    "sapo": [
        ((0.1, 0.1, 0.9, 2.0), (-4.0, -2.0)),
        ((0.1, 0.1, 0.9, -2.1), (4.0, 2.1)),
        # r = 1 + log 3, where the gate is 3/4 of its most.
        ((0.1 + 0.1 * math.log(3), 0.1, 0.9, 1.0), (-3.0, -0.75 * (1 + math.log(3)))),
    ],
    "gspo_token": [
        ((0.1, 0.1, 0.9, 2.0), (-2.0, -2.0)),
        ((0.2, 0.1, 0.1, 2.0), (-2.0008, 0.0)),
        ((0.2, 0.1, 0.1, -2.0), (4.0, 4.0)),
    ],
    "gmpo": [
        ((0.12, 0.1, 0.9, 2.0), (-2.4, -2.4)),
        ((0.2, 0.1, 0.1, 2.0), (-2 * math.exp(0.4), 0.0)),
        ((0.2, 0.1, 0.1, -2.0), (4.0, 4.0)),
        ((0.05, 0.1, 0.1, -2.0), (2 * math.exp(-0.4), 0.0)),
    ],
    "luspo": [
        ((0.1, 0.1, 0.9, 2.0), (-2.0, -2.0)),
        ((0.2, 0.1, 0.1, 2.0), (-2.005, 0.0)),
        ((0.05, 0.1, 0.1, -2.0), (1.996, 0.0)),
    ],
    "dppo_tv": [
        ((0.5, 0.1, 0.4, 2.0), (2.5 * math.log(2), -2.5)),
        ((0.5, 0.5, 0.3, 2.0), (0.0, 0.0)),
        ((0.5, 0.5, 0.3, -3.0), (-5 * math.log(2), 5.0)),
        ((0.5, 0.5, 0.7, -3.0), (0.0, 0.0)),
        # A ratio of 250, of which 20 are left: the probability has risen by 0.1245 alone.
        ((0.125, 0.1, 0.0005, 1.0), (20 * math.log(8), -20.0)),
    ],
    "ipo": [
        ((0.5, 0.1, 0.25, 2.0), (-4.0, -4.0)),
        ((0.5, 0.5, 0.1, 2.0), (0.0, 0.0)),
        ((0.5, 0.5, 0.1, -2.0), (0.0, 0.0)),
        ((0.5, 0.5, 0.9, -2.0), (0.0, 0.0)),
    ],
    "vespo": [
        ((0.5, 0.1, 0.5, 2.0), (2 * math.log(2), -2.0)),
        ((0.5, 0.5, 0.25, 1.0), (4 * math.exp(-3) * math.log(2), -4 * math.exp(-3))),
        ((0.5, 0.5, 0.25, -1.0), (-8 * math.exp(-2) * math.log(2), 8 * math.exp(-2))),
    ],
}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [(name, given, expected) for name, rows in BY_HAND.items() for given, expected in rows],
)
def test_the_loss_of_a_token_and_its_slope_by_hand(name, given, expected):
    policy, old, sampler = (np.log(np.array([[probability]])) for probability in given[:3])
    row = replace(VARIANTS[name], aggregate=partial(constant_length_mean, max_tokens=1))
    arrays = Arrays(policy, old, sampler, np.array([given[3]]), np.array([[True]]))
    loss, gradient = loss_and_gradient(row, arrays, BatchTotals(1, 1))
    assert (loss, gradient.item()) == pytest.approx(expected)


def surrogate_of(name: str, arrays: Arrays) -> tuple[Tensor, Tensor | None, TokenBatch]:
    old, sampler, mask = map(torch.from_numpy, (arrays.old, arrays.sampler, arrays.mask))
    log_probs = torch.from_numpy(arrays.log_probs).clone().requires_grad_()
    advantages = torch.from_numpy(arrays.advantages.reshape(len(mask), -1)).expand(mask.shape)
    tokens = TokenBatch(log_probs, old, sampler, None, advantages, mask, BatchTotals(1, 1))
    log_ratio = VARIANTS[name].log_ratio(log_probs, old, mask)
    return *VARIANTS[name].surrogate(log_ratio, tokens), tokens


CLIPPING = [name for name in VARIANTS if surrogate_of(name, on_policy([1]))[1] is not None]


@pytest.mark.parametrize("name", [name for name in CLIPPING if name != "cispo"])
@settings(max_examples=25)
@given(arrays=micro_batches())
def test_a_token_counts_as_clipped_exactly_where_its_own_loss_does_not_move_it(name, arrays):
    """CISPO counts the weights that it bounds, and moves those tokens still."""
    losses, clipped, tokens = surrogate_of(name, arrays)
    assert clipped is not None
    assert not (clipped & ~tokens.mask).any()
    for row, time in (tokens.mask & (tokens.advantages != 0)).nonzero().tolist():
        (gradient,) = torch.autograd.grad(losses[row, time], tokens.log_probs, retain_graph=True)
        assert bool(gradient[row, time] == 0) == bool(clipped[row, time])


def test_cispo_bounds_the_weight_at_one_plus_eps_and_keeps_the_gradient():
    log_ratio = torch.tensor([[math.log(5.0), math.log(0.1)]])
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, clipped = clipped_weight(log_ratio, one_row(log_probs, 2.0), clip_eps_high=0.3)
    loss.sum().backward()
    assert clipped.tolist() == [[True, False]]
    assert loss.tolist() == [pytest.approx([1.3 * 2 * 1, 0.1 * 2 * 2])]
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [pytest.approx([-2.6, -0.2])]


def test_the_sequence_ratio_is_the_geometric_mean_over_sampled_tokens():
    new = torch.tensor([[math.log(0.4), math.log(0.9), 7.0], [0.0, 0.0, 0.0]])
    old = torch.tensor([[math.log(0.1), math.log(0.9), -7.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    ratio = sequence_log_ratio(new, old, mask).exp()
    assert ratio.tolist() == [pytest.approx([2.0, 2.0, 1.0]), [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("new", "old"), [(0.0, -1000.0), (-1000.0, 0.0)])
def test_a_huge_ratio_stays_finite_in_float32(name, advantage, new, old):
    log_probs = torch.tensor([[new, -1.0]], requires_grad=True)
    mask, before = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[old, -1.0]])
    losses = token_losses(VARIANTS[name], log_probs, before, torch.tensor([advantage]), mask)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


def test_aggregations_by_hand():
    per_token = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    totals = BatchTotals(sequences=4, tokens=10)
    assert sequence_mean(per_token, mask, totals).item() == pytest.approx((1.5 + 3) / 4)
    assert token_mean(per_token, mask, totals).item() == pytest.approx(6 / 10)
    by_constant = constant_length_mean(per_token, mask, totals, max_tokens=5)
    assert by_constant.item() == pytest.approx(6 / 20)
    assert token_mean(per_token, mask & False, BatchTotals(3, 0)).item() == 0


def test_masked_sum_and_mean_by_hand():
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, float("nan")], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    assert masked_sum(values, mask).tolist() == [5.0, 8.0, 0.0]
    assert masked_mean(values, mask).tolist() == [2.5, 4.0, 0.0]
