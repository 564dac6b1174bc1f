import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.advantages import (
    ComparedBatch,
    best_alone_advantages,
    group_advantages,
    leave_one_out_advantages,
    mean_centred_advantages,
    mean_normalised_advantages,
    within_groups,
)


def batch_of(groups: Sequence[Sequence[float]], scores: dict | None = None) -> ComparedBatch:
    """A batch of these rewards, group by group, with one sampled token each."""
    rewards = torch.tensor([r for group in groups for r in group], dtype=torch.float64)
    sizes = torch.tensor([len(group) for group in groups])
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    numbers = torch.arange(len(groups)).repeat_interleave(sizes)
    return ComparedBatch(rewards, scores or {}, numbers, torch.zeros_like(mask).long(), None, mask)


CENTRED = [group_advantages, mean_centred_advantages, leave_one_out_advantages]
ALL = [*CENTRED, mean_normalised_advantages, best_alone_advantages]


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        # Mean 0.25; squared deviations 0.5625 + 3 x 0.0625 = 0.75; Bessel: std = sqrt(0.25).
        (group_advantages, [0.75 / 0.5001, *[-0.25 / 0.5001] * 3]),
        (mean_centred_advantages, [0.75, -0.25, -0.25, -0.25]),
        # The means of the others are 0 and, three times, 1/3.
        (leave_one_out_advantages, [1.0, -1 / 3, -1 / 3, -1 / 3]),
        (mean_normalised_advantages, [3.0, -1.0, -1.0, -1.0]),
        (best_alone_advantages, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages_of_a_group_worked_out_by_hand(advantages, expected):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert advantages(rewards).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(reward=st.floats(-1e6, 1e6, width=32), size=st.integers(2, 20))
def test_equal_rewards_give_exactly_zero(advantages, dtype, reward, size):
    assert advantages(torch.full((size,), reward, dtype=dtype)).tolist() == [0.0] * size


def test_the_mean_of_equal_rewards_alone_would_not_give_zero():
    rewards = torch.full((15,), 17.3)
    assert (rewards - rewards.mean()).abs().max() > 0
    assert mean_centred_advantages(rewards).abs().max() == 0


@pytest.mark.parametrize("advantages", CENTRED)
@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12))
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(advantages, rewards):
    values = torch.tensor(rewards, dtype=torch.float64)
    result = advantages(values)
    assert math.isclose(float(result.sum()), 0, abs_tol=1e-8)
    assert (result[values.argsort(stable=True)].diff() >= -1e-12).all()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.5, 0.25, 1.5, 1.5], [0.0] * 4),
        ([0.5, 0.25, -1.0], [0.25, 0.0, 0.0]),
        ([-3.0, -1.0], [0.0, 2.0]),
    ],
)
def test_the_best_has_its_lead_where_it_is_alone(rewards, expected):
    assert best_alone_advantages(torch.tensor(rewards)).tolist() == expected


@pytest.mark.parametrize("rewards", [[-1.0, 1.0], [-1.0, 0.0, 0.0], [0.1, 0.2, -0.3]])
def test_where_the_mean_is_not_positive_nothing_is_divided_by_it(rewards):
    for dtype in (torch.float32, torch.float64):
        found = mean_normalised_advantages(torch.tensor(rewards, dtype=dtype))
        assert found.tolist() == [0.0] * len(rewards)


@given(
    st.lists(st.floats(0, 10, width=16), min_size=2, max_size=12),
    st.sampled_from([0.25, 2.0, 512.0]),
)
def test_in_means_of_the_group_the_unit_of_rewards_is_nothing(rewards, unit):
    values = torch.tensor(rewards, dtype=torch.float64)
    found, scaled = mean_normalised_advantages(values), mean_normalised_advantages(unit * values)
    torch.testing.assert_close(scaled, found)
    assert math.isclose(float(found.sum()), 0, abs_tol=1e-9)
    if found.any():
        assert float(found.min()) >= -1
        expected = mean_centred_advantages(values) / (sum(rewards) / len(rewards))
        torch.testing.assert_close(found, expected)


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12))
def test_leave_one_out_is_the_mean_centred_advantage_times_g_over_g_minus_one(rewards):
    values = torch.tensor(rewards, dtype=torch.float64)
    scale = len(rewards) / (len(rewards) - 1)
    torch.testing.assert_close(
        leave_one_out_advantages(values),
        mean_centred_advantages(values) * scale,
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("size", [0, 1])
def test_a_group_without_a_baseline_is_refused(advantages, size):
    with pytest.raises(ValueError, match="at least two"):
        advantages(torch.ones(size))


@pytest.mark.parametrize("numbers", [[0, 1, 0, 1], [1, 1, 0, 0]])
def test_groups_that_are_not_side_by_side_are_refused(numbers):
    batch = replace(batch_of([[1.0, 0.0], [1.0, 0.0]]), groups=torch.tensor(numbers))
    with pytest.raises(ValueError, match=r"^groups are not in order and side by side: \["):
        within_groups(batch, advantages=group_advantages)


@pytest.mark.parametrize("advantages", ALL)
def test_groups_of_any_size_are_compared_apart(advantages):
    groups = [[1.0, 0.0, 0.0, 0.0], [3.0, 5.0], [2.0, 2.0, 2.0]]
    expected = torch.cat([advantages(torch.tensor(g, dtype=torch.float64)) for g in groups])
    found = within_groups(batch_of(groups), advantages=advantages)
    assert found.tolist() == expected.tolist()
    assert found.dtype == torch.float64
