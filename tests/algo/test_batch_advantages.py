"""Advantages that look beyond a group: numbers worked out by hand, and what must always hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.algo.advantages import (
    ComparedBatch,
    group_advantages,
    mean_centred_advantages,
    within_groups,
)
from common.algo.batch_advantages import (
    batch_scaled_advantages,
    decoupled_advantages,
    length_weighted_advantages,
    of_top_entropy,
    over_all_tokens,
    reward_to_go,
)
from tests.algo.test_advantages import batch_of
from tests.slow_advantages import Compared
from tests.variants import VARIANTS, slow_advantages

NAN = math.nan
GRPO = partial(within_groups, advantages=group_advantages)
BASELINE = partial(
    over_all_tokens, values=partial(within_groups, advantages=mean_centred_advantages)
)


def with_tokens(batch: ComparedBatch, lengths: Sequence[int]) -> ComparedBatch:
    """The batch with so many sampled tokens in each row, after one that was given."""
    time = torch.arange(1 + max(lengths))
    mask = (time > 0) & (time <= torch.tensor(lengths)[:, None])
    return replace(batch, mask=mask, turns=torch.where(mask, 0, -1))


def scored(
    scores: Mapping[str, Sequence[float]], weights: Mapping[str, float], sizes: Sequence[int]
) -> ComparedBatch:
    """A batch of groups of these sizes; its rewards are the weighted sums of what applies."""
    values = {name: torch.tensor(row, dtype=torch.float64) for name, row in scores.items()}
    parts = [weight * values[name].nan_to_num(0.0) for name, weight in weights.items()]
    rest = iter(torch.stack(parts).sum(dim=0).tolist())
    rewards = [[next(rest) for _ in range(size)] for size in sizes]
    return replace(batch_of(rewards), scores=values, weights=weights)


@st.composite
def compared(draw) -> Compared:
    """Up to three groups with three scores, of which one is only logged, some do not apply and many
    are level; tokens with gaps, and penalties at some."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    weights = {"right": 1.0, "style": draw(st.sampled_from([-0.5, 0.25, 3.0]))}
    values = {name: rng.integers(-1, 3, len(groups)) / 2 for name in (*weights, "logged")}
    applies = rng.random(len(groups)) < draw(st.sampled_from([0.3, 1.0]))
    if draw(st.booleans()):
        values = {name: row * (groups != 0) for name, row in values.items()}
    scores: dict[str, list[float | None]]
    scores = {name: [float(value) for value in row] for name, row in values.items()}
    scores["style"] = [
        value if known else None for value, known in zip(scores["style"], applies, strict=True)
    ]
    mask = rng.random((len(groups), 4)) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    penalties = np.round(rng.normal(0, 0.3, mask.shape), 3) * mask
    parts = [[weights[name] * (value or 0.0) for value in scores[name]] for name in weights]
    return Compared(
        rewards=[math.fsum(values) for values in zip(*parts, strict=True)],
        groups=groups.tolist(),
        scores=scores,
        weights=weights,
        mask=mask.astype(int).tolist(),
        penalties=penalties.tolist() if draw(st.booleans()) else (),
    )


def as_tensors(given: Compared) -> ComparedBatch:
    mask = torch.tensor(given.mask, dtype=torch.bool)
    scores = {
        name: torch.tensor([NAN if one is None else one for one in row], dtype=torch.float64)
        for name, row in given.scores.items()
    }
    return ComparedBatch(
        torch.tensor(given.rewards, dtype=torch.float64),
        scores,
        torch.tensor(given.groups),
        torch.where(mask, 0, -1),
        None,
        mask,
        penalties=torch.tensor(given.penalties, dtype=torch.float64) if given.penalties else None,
        weights=given.weights,
    )


# A row for each way to compare.
COMPARING = {row.describe()["advantages"]: name for name, row in VARIANTS.items()}


@pytest.mark.parametrize("name", COMPARING.values())
@given(given=compared())
def test_every_row_compares_as_its_slow_loop(name, given):
    advantages = VARIANTS[name].advantages
    try:
        expected = slow_advantages(name, given)
    except ValueError:
        with pytest.raises(ValueError, match="penalties"):
            advantages(as_tensors(given))
        return
    found = advantages(as_tensors(given))
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-9, atol=1e-9)


def test_in_deviations_of_the_batch_a_group_keeps_its_spread():
    # Rewards 0, 2, 0, 4: mean 1.5, squared deviations 2.25 + 0.25 + 2.25 + 6.25 = 11, over 3.
    found = batch_scaled_advantages(batch_of([[0.0, 2.0], [0.0, 4.0]]))
    scale = math.sqrt(11 / 3) + 1e-4
    assert found.tolist() == pytest.approx([-1 / scale, 1 / scale, -2 / scale, 2 / scale])


def test_each_reward_is_compared_in_its_own_group_before_they_are_added():
    # Two groups of two: "right" differs in the first, "short" in both, "logged" does not count.
    batch = scored(
        {"right": [1, 0, 1, 1], "short": [0, 5, 3, 1], "logged": [9, 0, 0, 9]},
        {"right": 1.0, "short": 0.2},
        [2, 2],
    )
    right = 0.5 / (math.sqrt(0.5) + 1e-4)
    shorts = [2.5 / (5 * math.sqrt(0.5) + 1e-4), 1 / (2 * math.sqrt(0.5) + 1e-4)]
    sums = [right - 0.2 * shorts[0], -right + 0.2 * shorts[0], 0.2 * shorts[1], -0.2 * shorts[1]]
    scale = math.sqrt(sum(value**2 for value in sums) / 3) + 1e-4
    expected = [value / scale for value in sums]
    assert decoupled_advantages(batch).tolist() == pytest.approx(expected, abs=1e-12)
    # The sum of the two is level in the first group, so that comparing sums teaches nothing there.
    assert GRPO(batch).tolist()[:2] == [0.0, 0.0]


def test_a_reward_that_does_not_apply_neither_adds_nor_is_compared_with():
    batch = scored(
        {"right": [1, 0, 0, 1, 0, 1], "style": [2, NAN, 4, NAN, NAN, 7]},
        {"right": 1.0, "style": 1.0},
        [3, 3],
    )
    style = 1 / (math.sqrt(2) + 1e-4)
    first = GRPO(batch_of([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]))
    sums = first + torch.tensor([-style, 0, style, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(decoupled_advantages(batch), sums / (sums.std() + 1e-4))


def test_a_penalty_at_tokens_is_none_of_the_rewards():
    batch = replace(batch_of([[1.0, 0.0]]), penalties=torch.ones(2, 1))
    with pytest.raises(ValueError, match="belong to no reward"):
        decoupled_advantages(batch)


@given(st.data())
def test_decoupled_advantages_depend_on_no_scale_but_that_of_weights(data):
    """Rewards in another unit are the same rewards; a group of equal scores gets exactly zero."""
    score = st.floats(-4, 4, width=16)
    scores = {
        name: [*data.draw(st.lists(score, min_size=4, max_size=4)), *[data.draw(score)] * 3]
        for name in ("right", "short")
    }
    weights = {"right": 1.0, "short": data.draw(st.sampled_from([-0.5, 0.25, 2.0]))}
    found = decoupled_advantages(scored(scores, weights, [4, 3]))
    assert found[4:].tolist() == [0.0] * 3
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)
    spread = min(torch.tensor(scores[name][:4]).std().item() for name in scores)
    if spread > 0.1:
        stretched = {**scores, "short": [1000 * value + 1 for value in scores["short"]]}
        again = decoupled_advantages(scored(stretched, weights, [4, 3]))
        torch.testing.assert_close(again, found, rtol=0.01, atol=0.01)


def test_a_long_completion_counts_more_in_the_baseline():
    batch = with_tokens(batch_of([[1.0, 0.0], [2.0, 4.0, 0.0]]), [1, 3, 2, 1, 0])
    # (1 x 1 + 3 x 0) / 4, and (2 x 2 + 1 x 4 + 0 x 0) / 3.
    expected = [0.75, -0.25, 2 - 8 / 3, 4 - 8 / 3, -8 / 3]
    assert length_weighted_advantages(batch).tolist() == pytest.approx(expected)


def test_where_no_completion_has_a_token_there_is_nothing_to_weigh():
    batch = with_tokens(batch_of([[1.0, 0.0], [2.0, 4.0]]), [0, 0, 1, 1])
    assert length_weighted_advantages(batch).tolist() == [0.0, 0.0, -1.0, 1.0]


@given(st.data())
def test_the_length_weighted_advantages_of_a_groups_tokens_sum_to_zero(data):
    size = data.draw(st.integers(2, 6))
    rewards = data.draw(st.lists(st.floats(-5, 5, width=16), min_size=size, max_size=size))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    found = length_weighted_advantages(with_tokens(batch_of([rewards]), lengths))
    of_tokens = found * torch.tensor(lengths)
    assert float(of_tokens.sum()) == pytest.approx(0, abs=1e-9)
    even = length_weighted_advantages(with_tokens(batch_of([rewards]), [7] * size))
    expected = mean_centred_advantages(torch.tensor(rewards, dtype=torch.float64))
    torch.testing.assert_close(even, expected)


def test_the_reward_to_go_of_a_token_has_its_own_penalty_and_all_that_follow():
    batch = with_tokens(batch_of([[1.0, 3.0]]), [3, 1])
    assert (reward_to_go(batch) == torch.tensor([[1.0], [3.0]])).all()
    penalties = torch.tensor([[0.0, 0.5, -0.25, 1.0], [0.0, 2.0, 0.0, 0.0]])
    found = reward_to_go(replace(batch, penalties=penalties))
    assert found.tolist() == [[-0.25, -0.25, 0.25, 0.0], [1.0, 1.0, 3.0, 3.0]]


def test_over_all_tokens_each_token_counts_the_same():
    batch = with_tokens(batch_of([[1.0, 0.0], [1.0, 1.0]]), [1, 3, 2, 0])
    # 1, 0, 0, 0, 1, 1: mean 0.5, squared deviations 6 x 0.25, over 5.
    scale = math.sqrt(1.5 / 5) + 1e-4
    found = over_all_tokens(batch, values=reward_to_go)
    above, below = 0.5 / scale, -0.5 / scale
    assert found.tolist() == [
        pytest.approx([0, above, 0, 0]),
        pytest.approx([0, below, below, below]),
        pytest.approx([0, above, above, 0]),
        [0, 0, 0, 0],
    ]


def test_with_a_baseline_the_tokens_of_a_level_group_get_what_the_mean_leaves_them():
    """Long completions are the worse ones in the first group: the mean over tokens is below 0."""
    batch = with_tokens(batch_of([[1.0, 0.0], [1.0, 1.0]]), [1, 3, 2, 2])
    # 0.5, -0.5 x 3, 0 x 4: mean -1/8, squared deviations 1 - 8 / 64.
    scale = math.sqrt((1 - 8 / 64) / 7) + 1e-4
    found = BASELINE(batch)
    assert found[2].tolist() == pytest.approx([0, 1 / 8 / scale, 1 / 8 / scale, 0])
    assert found[0, 1].item() == pytest.approx(5 / 8 / scale)


@pytest.mark.parametrize("advantages", [partial(over_all_tokens, values=reward_to_go), BASELINE])
@given(st.data())
def test_over_all_tokens_the_mean_is_zero_and_the_deviation_one(advantages, data):
    sizes = data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    count = sum(sizes)
    rewards = iter(data.draw(st.lists(st.sampled_from([-1.0, 0, 0.5, 2]), min_size=count)))
    batch = batch_of([[next(rewards, 0.0) for _ in range(size)] for size in sizes])
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    batch = with_tokens(batch, lengths)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    noise = torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64)
    if data.draw(st.booleans()):
        batch = replace(batch, penalties=torch.where(batch.mask, 0.1 * noise, 0.0))
    found = advantages(batch)
    assert not found[~batch.mask].any()
    tokens = found[batch.mask]
    if tokens.any():
        assert float(tokens.mean()) == pytest.approx(0, abs=1e-9)
        assert 0.5 < float(tokens.std()) < 1


@pytest.mark.parametrize("lengths", [[1, 4, 2], [0, 0, 1], [0, 0, 0]])
@pytest.mark.parametrize(
    "values", [reward_to_go, partial(within_groups, advantages=mean_centred_advantages)]
)
def test_equal_rewards_leave_every_token_exactly_zero(lengths, values):
    batch = with_tokens(batch_of([[17.3] * 3]), lengths)
    assert not over_all_tokens(batch, values=values).any()


def entropic(entropy: Sequence[Sequence[float]], mask: Sequence[Sequence[int]]) -> ComparedBatch:
    """A group of two with rewards of 1 and 0."""
    sampled = torch.tensor(mask, dtype=torch.bool)
    turns = torch.where(sampled, 0, -1)
    batch = replace(batch_of([[1.0, 0.0]]), mask=sampled, turns=turns)
    return replace(batch, entropy=torch.tensor(entropy))


def sides(batch: ComparedBatch) -> Tensor:
    return batch.rewards * 2 - 1


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (1e-9, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        (0.2, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        # Two of six would be 2.1 and one of the two that are level at 0.4: both are kept.
        (1 / 3, [[0, 1, 1, 0], [0, 0, 1, 0]]),
        (0.5, [[0, 1, 1, 0], [0, 0, 1, 0]]),
        (5 / 6, [[0, 1, 1, 0], [0, 1, 1, 1]]),
        (1.0, [[0, 1, 1, 1], [0, 1, 1, 1]]),
    ],
)
def test_the_tokens_of_highest_entropy_keep_their_advantages(share, kept):
    """The highest of all would be where nothing is sampled."""
    batch = entropic([[9.0, 0.4, 2.1, 0.0], [9.0, 0.1, 0.4, 0.3]], [[0, 1, 1, 1], [0, 1, 1, 1]])
    expected = torch.tensor(kept) * torch.tensor([[1.0], [-1.0]])
    assert (of_top_entropy(batch, advantages=sides, share=share) == expected).all()


@given(
    st.lists(st.floats(0, 8, width=16), min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.floats(0, 1, exclude_min=True),
)
def test_as_many_tokens_are_kept_as_asked_for_and_no_surer_one(entropies, sampled, share):
    batch = entropic(
        [entropies[:4], entropies[4:]],
        [[int(one) for one in sampled[:4]], [int(one) for one in sampled[4:]]],
    )
    kept = of_top_entropy(batch, advantages=sides, share=share) != 0
    assert not kept[~batch.mask].any()
    assert batch.entropy is not None
    of_kept, of_others = batch.entropy[kept], batch.entropy[batch.mask & ~kept]
    if sum(sampled):
        assert len(of_kept) >= max(1, round(share * sum(sampled)))
        assert (of_kept > of_kept.min()).sum() < max(1, round(share * sum(sampled)))
        assert bool((of_others < of_kept.min()).all())


def test_advantages_of_tokens_are_kept_as_they_are():
    batch = entropic([[0.1, 0.2], [0.3, 0.4]], [[1, 1], [1, 1]])
    of_tokens = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = of_top_entropy(batch, advantages=lambda _: of_tokens, share=0.5)
    assert found.tolist() == [[0.0, 0.0], [3.0, 4.0]]


def test_without_entropies_there_are_no_highest():
    with pytest.raises(ValueError, match="has not been computed"):
        of_top_entropy(batch_of([[1.0, 0.0]]), advantages=sides, share=0.5)
