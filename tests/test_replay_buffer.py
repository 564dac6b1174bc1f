import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.aggregation import BatchTotals
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    Experience,
    ExperienceBatch,
    ReplayBuffer,
    WaitingBatches,
    experiences_from,
    side_by_side,
    with_advantages,
)
from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from tests.helpers import collated, random_experiences, random_model, with_log_probs

CPU = torch.device("cpu")


def experience(number: int, length: int = 4) -> Experience:
    zeros = torch.zeros(length)
    mask = torch.zeros(length, dtype=torch.bool)
    return Experience(number, torch.full((length,), number), mask, mask.long() - 1, zeros, zeros)


def shuffle(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_append_len_clear_and_limit():
    buffer = ReplayBuffer(limit=3)
    for number in range(5):
        buffer.append(experience(number))
    assert [item.task_id for item in buffer] == [2, 3, 4]
    buffer.extend([experience(5), experience(6)])
    assert [item.task_id for item in buffer] == [4, 5, 6]
    assert len(buffer) == 3
    buffer.clear()
    assert len(buffer) == 0
    assert list(buffer.batches(2, shuffle())) == []


def test_batches_wait_for_their_step_and_none_is_lost_for_want_of_room():
    waiting = WaitingBatches[str](2)
    waiting.put(4, "fourth")
    waiting.put(3, "third")
    with pytest.raises(ValueError, match=r"no room for step 5 beside \[3, 4\]"):
        waiting.put(5, "fifth")
    assert (list(waiting), waiting[3], waiting[4]) == ([3, 4], "third", "fourth")
    waiting.forget_before(4)
    assert 3 not in waiting
    with pytest.raises(ValueError, match="no room for step 4"):
        waiting.put(4, "another fourth")
    waiting.put(5, "fifth")
    assert list(waiting) == [4, 5]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 5))
def test_batches_hold_every_experience_once(count, size, seed):
    buffer = ReplayBuffer()
    buffer.extend(experience(number) for number in range(count))
    batches = list(buffer.batches(size, shuffle(seed)))
    assert sorted(item.task_id for batch in batches for item in batch) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


def test_the_shuffle_alone_chooses_the_batches():
    buffer = ReplayBuffer()
    buffer.extend(experience(number, length=40 - number) for number in range(32))

    def members(seed: int) -> list[set[int]]:
        return [{item.task_id for item in batch} for batch in buffer.batches(8, shuffle(seed))]

    assert members(1) == members(1)
    assert members(1) != members(2)
    assert set(range(8)) not in members(1)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 6))
def test_micro_batches_are_a_partition_padded_to_their_own_longest(lengths, size):
    items = [experience(number, length) for number, length in enumerate(lengths)]
    batches = collated(items, size)
    assert sum(len(batch) for batch in batches) == len(items)
    longest_first = sorted(lengths, reverse=True)
    assert [batch.token_ids.shape[1] for batch in batches] == longest_first[::size]
    assert sum(int(batch.attention_mask.sum()) for batch in batches) == sum(lengths)
    for batch in batches:
        assert batch.attention_mask.sum(dim=1).tolist() == [
            lengths[number] for number in batch.token_ids[:, 0].tolist()
        ]


def test_a_padded_batch_by_hand():
    long = Experience(
        0,
        torch.tensor([5, 6, 7]),
        torch.tensor([False, True, True]),
        torch.tensor([-1, 0, 0]),
        advantages=torch.tensor([1.5, 1.5, 1.5], dtype=torch.float64),
        log_probs_sampler=torch.tensor([0.0, -1.0, -2.0]),
        log_probs_old=torch.tensor([0.0, -1.25, -2.25]),
    )
    short = Experience(
        1,
        torch.tensor([8, 9]),
        torch.tensor([False, True]),
        torch.tensor([-1, 0]),
        advantages=torch.tensor([-0.5, -0.5], dtype=torch.float64),
        log_probs_sampler=torch.tensor([0.0, -3.0]),
        log_probs_old=torch.tensor([0.0, -3.25]),
    )
    batch = ExperienceBatch.collate([long, short], CPU)
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.sampled.tolist() == [[False, True, True], [False, True, False]]
    assert batch.log_probs_old is not None
    assert batch.log_probs_old.tolist() == [[0, -1.25, -2.25], [0, -3.25, 0]]
    assert batch.log_probs_sampler.tolist() == [[0, -1.0, -2.0], [0, -3.0, 0]]
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [[1.5, 1.5, 1.5], [-0.5, -0.5, 0]]
    assert batch.advantages.dtype == torch.float32
    assert batch.log_probs_ref is None
    assert (int(batch.attention_mask.sum()), len(batch)) == (5, 2)


def test_what_has_no_advantages_cannot_be_learned_from():
    batch = ExperienceBatch.collate([experience(0, 3)], CPU)
    with pytest.raises(ValueError, match="no advantages"):
        batch.tokens(torch.zeros(1, 3), BatchTotals(1, 1))


def test_experiences_carry_the_advantages_and_the_mask_of_their_rollout():
    segments = (Segment((5, 6), False), Segment((7,), True, (-0.5,)))
    answered = Rollout(Trajectory(segments, "stop"), Transcript(""), {}, 1.0, True)
    silent = Rollout(Trajectory(segments[:1], "context"), Transcript(""), {}, 0.0, False)
    groups = [Group(Task(3, "", ""), [answered, silent])]
    groups, (good, bad) = with_advantages(groups, experiences_from(groups), lambda b: b.rewards)
    assert [list(group.advantages) for group in groups] == [[1.0, 0.0]]
    assert good.token_ids.tolist() == [5, 6, 7]
    assert good.sampled.tolist() == [False, False, True]
    assert good.log_probs_old is not None
    assert good.log_probs_old.tolist() == [0, 0, -0.5]
    assert good.advantages is not None
    assert bad.advantages is not None
    assert (good.advantages.tolist(), bad.advantages.tolist()) == ([1.0] * 3, [0.0] * 2)
    assert good.task_id == 3
    assert not bad.sampled.any()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_log_probs_return_to_the_experience_they_belong_to(size):
    policy = TokenLogProbs(random_model(torch.float64), 1.0)
    items = random_experiences(8)
    scored = with_log_probs(items, policy, policy, size)
    for item, result in zip(items, scored, strict=True):
        mask = torch.ones(1, len(item), dtype=torch.bool)
        log_probs, entropy = policy(item.token_ids[None], mask, item.sampled[None])
        assert result.log_probs_old is not None
        torch.testing.assert_close(result.log_probs_old, log_probs[0].detach())
        assert result.log_probs_ref is not None
        torch.testing.assert_close(result.log_probs_ref, log_probs[0].detach())
        assert result.entropy is not None
        torch.testing.assert_close(result.entropy, entropy[0])
        assert not result.log_probs_old.requires_grad


def compared() -> tuple[list[Group], list[Experience]]:
    """Two groups, the first of conversations of two turns and of one, the second of one rollout."""
    given, first, second = (
        Segment((5, 6), False),
        Segment((7,), True, (-0.5,)),
        Segment((8, 9), True, (-1.0, -2.0)),
    )

    def rollout(reward: float, *segments: Segment) -> Rollout:
        scores = {"right": reward, "short": 1 - reward if reward else None}
        text, weights = Transcript(""), {"right": 1.0}
        return Rollout(Trajectory(segments, "stop"), text, scores, reward, True, weights=weights)

    long = rollout(1.0, given, first, given, second)
    groups = [
        Group(Task(3, "", ""), [long, rollout(0.0, given, first)]),
        Group(Task(4, "", ""), [], errored=[long]),
        Group(Task(5, "", ""), [rollout(0.5, given, second)]),
    ]
    return groups, experiences_from(groups)


def test_advantages_see_the_whole_batch():
    groups, experiences = compared()
    policy = TokenLogProbs(random_model(torch.float64), 1.0)
    batch = side_by_side(groups, with_log_probs(experiences, policy, policy, 2))
    assert batch.rewards.tolist() == [1.0, 0.0, 0.5]
    assert batch.rewards.dtype == torch.float64
    assert batch.scores["right"].tolist() == [1.0, 0.0, 0.5]
    # Where a reward does not apply, there is no number.
    assert batch.scores["short"].nan_to_num(-1).tolist() == [0.0, -1.0, 0.5]
    assert batch.weights == {"right": 1.0}
    assert batch.groups.tolist() == [0, 0, 1]
    assert batch.turns.tolist() == [
        [-1, -1, 0, -1, -1, 1, 1],
        [-1, -1, 0, -1, -1, -1, -1],
        [-1, -1, 0, 0, -1, -1, -1],
    ]
    assert (batch.mask == (batch.turns >= 0)).all()
    assert batch.kl is not None
    assert batch.kl.abs().max() == 0
    assert side_by_side(groups, experiences).kl is None


def test_advantages_may_be_one_per_token():
    groups, experiences = compared()

    def reward_to_go(batch):
        return torch.where(batch.turns == 1, 2.0, batch.rewards[:, None])

    groups, experiences = with_advantages(groups, experiences, reward_to_go)
    rows = [e.advantages.tolist() for e in experiences if e.advantages is not None]
    assert rows == [[0, 0, 1, 0, 0, 2, 2], [0, 0, 0], [0, 0, 0.5, 0.5]]
    assert [list(group.advantages) for group in groups] == [[pytest.approx(5 / 3), 0], [], [0.5]]


def test_a_completion_keeps_its_advantage_where_only_some_of_its_tokens_have_one():
    groups, experiences = compared()

    def of_last_turn(batch):
        return torch.where(batch.turns == 1, batch.rewards[:, None], 0.0)

    groups, experiences = with_advantages(groups, experiences, of_last_turn)
    assert experiences[0].advantages is not None
    assert experiences[0].advantages.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert [list(group.advantages) for group in groups] == [[1, 0], [], [0]]
