"""Each correction against slow loops and numbers worked out by hand, and what must always hold."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.aggregation import BatchTotals, sequence_mean
from common.algo.correction import CORRECTIONS
from common.algo.surrogate import clipped_surrogate, token_log_ratio
from common.algo.tokens import TokenBatch

# log(pi_old / mu) of the tokens that count; the second row has one where nothing is sampled.
LOG_WEIGHTS = [
    [math.log(3), math.log(0.4), math.log(1.5)],
    [math.log(0.9), math.nan, math.log(1.2)],
    [math.nan, math.nan, math.nan],
]
MASK = [[True, True, True], [True, False, True], [False, False, False]]


def tokens_of(log_weights, mask, *, pi=None, advantages=None) -> TokenBatch:
    """With pi_old at -1 everywhere, and pi there too unless it is given."""
    log_weights = torch.tensor(log_weights, dtype=torch.float64)
    mask = torch.tensor(mask)
    old = torch.full_like(log_weights, -1.0)
    pi = old.clone() if pi is None else torch.tensor(pi, dtype=torch.float64)
    if advantages is None:
        advantages = torch.ones_like(old)
    totals = BatchTotals(len(mask), int(mask.sum()))
    return TokenBatch(
        pi.requires_grad_(), old, old - log_weights, None, torch.as_tensor(advantages), mask, totals
    )


@pytest.mark.parametrize(
    ("name", "bounds", "expected"),
    [
        # Of the first row, by hand: the weights are 3, 0.4 and 1.5, their product is 1.8 and its
        # cube root 1.216; of the second 0.9 and 1.2, 1.08 and 1.039.
        ("token_truncated", {}, [[2, 0.4, 1.5], [0.9, 1.2]]),
        ("token_truncated", {"cap": 1.0}, [[1, 0.4, 1], [0.9, 1]]),
        ("token_masked", {}, [[3, 0, 1.5], [0.9, 1.2]]),
        ("token_masked", {"low": 0.3, "high": 2.0}, [[0, 0.4, 1.5], [0.9, 1.2]]),
        ("sequence_truncated", {}, [[1.8] * 3, [1.08] * 2]),
        ("sequence_truncated", {"cap": 1.5}, [[1.5] * 3, [1.08] * 2]),
        ("sequence_masked", {}, [[1.8] * 3, [1.08] * 2]),
        ("sequence_masked", {"low": 0.5, "high": 1.5}, [[0] * 3, [1.08] * 2]),
        ("sequence_masked", {"low": 1.5, "high": 2.0}, [[1.8] * 3, [0] * 2]),
        ("sequence_geometric", {"low": 0.9, "high": 1.1}, [[0] * 3, [0.9, 1.2]]),
        ("sequence_geometric", {"low": 1.1, "high": 1.22}, [[3, 0.4, 1.5], [0] * 2]),
    ],
)
def test_weights_worked_out_by_hand(name, bounds, expected):
    tokens = tokens_of(LOG_WEIGHTS, MASK)
    weights = partial(CORRECTIONS[name], **bounds)(tokens)
    for row, mask, wanted in zip(weights, tokens.mask, expected, strict=False):
        assert row[mask].tolist() == pytest.approx(wanted)


def test_opsm_drops_what_the_policy_has_left_behind_and_was_bad():
    """log(mu / pi) has the means 0.6, 0.4 and 0.6; the tokens of a sequence may differ in sign."""
    pi = [[-1.9, -1.3], [-1.3, -1.5], [-1.0, -2.2]]
    advantages = [[-1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]]
    tokens = tokens_of([[0.0, 0.0]] * 3, [[True, True]] * 3, pi=pi, advantages=advantages)
    assert CORRECTIONS["opsm"](tokens).tolist() == [[0, 0], [1, 1], [0, 1]]
    assert CORRECTIONS["opsm"](tokens, cap=0.3).tolist() == [[0, 0], [0, 0], [0, 1]]
    assert CORRECTIONS["opsm"](tokens, cap=0.7).tolist() == [[1, 1], [1, 1], [1, 1]]


def test_opsm_looks_at_the_sampler_and_at_the_policy_as_it_is_now():
    """Not at the old policy, which stands between the two."""
    tokens = tokens_of([[-0.9]], [[True]], pi=[[-0.2]], advantages=[[-1.0]])
    assert CORRECTIONS["opsm"](tokens).tolist() == [[1]]
    tokens = tokens_of([[-0.3]], [[True]], pi=[[-1.3]], advantages=[[-1.0]])
    assert CORRECTIONS["opsm"](tokens).tolist() == [[0]]


def test_bounds_are_inclusive():
    tokens = tokens_of([[math.log(0.5), 0.0, math.log(5)]], [[True] * 3])
    exact = tokens.log_probs_old - tokens.log_probs_sampler
    low, _, high = exact.exp()[0].tolist()
    weights = CORRECTIONS["token_masked"](tokens, low=low, high=high)
    assert weights.tolist() == [[low, 1.0, high]]


@pytest.mark.parametrize("name", CORRECTIONS)
def test_where_sampler_and_policy_agree_every_weight_is_1(name):
    tokens = tokens_of([[0.0, 0.0], [0.0, 0.0]], [[True, True], [True, False]])
    assert CORRECTIONS[name](tokens)[tokens.mask].tolist() == [1, 1, 1]


def slow_weights(name: str, log_weights: list[float], **bounds: float) -> list[float]:
    """Of one sequence, over Python floats."""
    low, high = bounds.get("low", 0.0), bounds.get("high", math.inf)
    cap = bounds.get("cap", math.inf)
    total = sum(log_weights)
    judged = {
        "token_truncated": log_weights,
        "token_masked": log_weights,
        "sequence_truncated": [total] * len(log_weights),
        "sequence_masked": [total] * len(log_weights),
        "sequence_geometric": [total / len(log_weights)] * len(log_weights),
    }[name]
    own = log_weights if "token" in name or "geometric" in name else judged
    return [
        min(math.exp(log_weight), cap) if low <= math.exp(by) <= high else 0.0
        for log_weight, by in zip(own, judged, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(CORRECTIONS.keys() - {"opsm"}))
@given(
    log_weights=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    holes=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_weights_equal_the_slow_loop_whatever_lies_between(name, log_weights, holes):
    """Tokens that were given stand between those that were sampled."""
    padded, mask = [], []
    for log_weight, hole in zip(log_weights, holes, strict=False):
        padded += [math.inf, log_weight] if hole else [log_weight]
        mask += [False, True] if hole else [True]
    tokens = tokens_of([padded], [mask])
    found = CORRECTIONS[name](tokens)
    kept = (tokens.log_probs_old - tokens.log_probs_sampler)[tokens.mask].tolist()
    expected = slow_weights(name, kept, **CORRECTIONS[name].keywords)
    np.testing.assert_allclose(found[tokens.mask], expected, rtol=1e-12)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_have_no_gradient(name):
    """Not even where the old log-probs are the policy's own."""
    tokens = tokens_of(LOG_WEIGHTS, MASK)
    weights = CORRECTIONS[name](tokens)
    assert not weights.requires_grad
    assert weights.shape == tokens.mask.shape


def gradient(name: str, tokens: TokenBatch) -> list[list[float]]:
    surrogate = partial(clipped_surrogate, clip_eps=0.2, clip_eps_high=0.2)
    log_ratio = token_log_ratio(tokens.log_probs, tokens.log_probs_old, tokens.mask)
    per_token = CORRECTIONS[name](tokens) * surrogate(log_ratio, tokens)[0]
    sequence_mean(per_token, tokens.mask, tokens.totals).backward()
    assert tokens.log_probs.grad is not None
    return tokens.log_probs.grad.tolist()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_nan_that_counts_reaches_the_gradient_and_any_other_does_not(name):
    """Its own token at the least; none of another sequence."""
    rows = [[0.0, math.nan, 0.0], [0.0, math.nan, 0.0]]
    found = gradient(name, tokens_of(rows, [[True, True, True], [True, False, True]]))
    assert math.isnan(found[0][1])
    assert found[1] == [-0.25, 0, -0.25]


@pytest.mark.parametrize("name", sorted(CORRECTIONS.keys() - {"opsm"}))
def test_a_dropped_or_bounded_token_stays_in_the_denominator(name):
    """Of two sequences the second is far off: what the first one counts for stays."""
    near = gradient(name, tokens_of([[0.0, 0.0], [0.0, 0.0]], [[True, True]] * 2))
    far = gradient(name, tokens_of([[0.0, 0.0], [3.0, 3.0]], [[True, True]] * 2))
    assert far[0] == near[0] == [-0.25, -0.25]
    assert far[1] == ([-0.25 * 2] * 2 if "truncated" in name else [0, 0])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_sampler_that_is_far_off_overflows_nothing(name):
    tokens = tokens_of([[900.0, 0.0], [-900.0, 0.0]], [[True, True]] * 2)
    assert CORRECTIONS[name](tokens).isfinite().all()
