import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.advantages import group_advantages


def test_advantages_of_a_group_worked_out_by_hand():
    # mean 0.25, squared deviations 0.5625 + 3 * 0.0625 = 0.75, Bessel-corrected std = sqrt(0.25)
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    expected = [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(reward=st.floats(-1e6, 1e6, width=32), size=st.integers(2, 20))
def test_equal_rewards_give_exactly_zero(dtype, reward, size):
    assert group_advantages(torch.full((size,), reward, dtype=dtype)).tolist() == [0.0] * size


def test_the_mean_of_equal_rewards_alone_would_not_give_zero():
    rewards = torch.full((15,), 17.3)
    assert (rewards - rewards.mean()).abs().max() > 0
    assert group_advantages(rewards).abs().max() == 0


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12))
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(rewards):
    values = torch.tensor(rewards, dtype=torch.float64)
    advantages = group_advantages(values)
    assert math.isclose(float(advantages.sum()), 0, abs_tol=1e-8)
    order = values.argsort(stable=True)
    assert (advantages[order].diff() >= 0).all()


@pytest.mark.parametrize("size", [0, 1])
def test_a_group_without_a_baseline_is_refused(size):
    with pytest.raises(ValueError, match="at least two"):
        group_advantages(torch.ones(size))
