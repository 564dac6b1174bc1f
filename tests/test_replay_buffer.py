import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    Experience,
    ExperienceBatch,
    ReplayBuffer,
    experiences_from,
    micro_batches,
    with_log_probs,
)
from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from tests.helpers import random_experiences, random_model

CPU = torch.device("cpu")


def experience(number: int, length: int = 4) -> Experience:
    zeros = torch.zeros(length)
    mask = torch.zeros(length, dtype=torch.bool)
    return Experience(number, torch.full((length,), number), mask, 0.0, zeros, zeros)


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
    batches = list(micro_batches(items, size, CPU))
    assert sum(len(batch) for batch in batches) == len(items)
    assert [b.token_ids.shape[1] for b in batches] == [
        max(sorted(lengths)[start : start + size]) for start in range(0, len(lengths), size)
    ]
    assert sum(batch.num_tokens for batch in batches) == sum(lengths)
    for batch in batches:
        assert batch.attention_mask.sum(dim=1).tolist() == [
            lengths[number] for number in batch.token_ids[:, 0].tolist()
        ]


def test_a_padded_batch_by_hand():
    long = Experience(
        0,
        torch.tensor([5, 6, 7]),
        torch.tensor([False, True, True]),
        1.5,
        log_probs_sampler=torch.tensor([0.0, -1.0, -2.0]),
        log_probs_old=torch.tensor([0.0, -1.25, -2.25]),
    )
    short = Experience(
        1,
        torch.tensor([8, 9]),
        torch.tensor([False, True]),
        -0.5,
        log_probs_sampler=torch.tensor([0.0, -3.0]),
        log_probs_old=torch.tensor([0.0, -3.25]),
    )
    batch = ExperienceBatch.collate([long, short], CPU)
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.sampled.tolist() == [[False, True, True], [False, True, False]]
    assert batch.log_probs_old.tolist() == [[0, -1.25, -2.25], [0, -3.25, 0]]
    assert batch.advantages.tolist() == [1.5, -0.5]
    assert batch.log_probs_ref is None
    assert (batch.num_tokens, len(batch)) == (5, 2)


def test_experiences_carry_the_advantage_and_the_mask_of_their_rollout():
    segments = (Segment((5, 6), False), Segment((7,), True, (-0.5,)))
    answered = Rollout(Trajectory(segments, "stop"), Transcript(""), {}, 1.0, True)
    silent = Rollout(Trajectory(segments[:1], "context"), Transcript(""), {}, 0.0, False)
    good, bad = experiences_from([Group(Task(3, "", ""), [answered, silent], [0.7, -0.7])])
    assert good.token_ids.tolist() == [5, 6, 7]
    assert good.sampled.tolist() == [False, False, True]
    assert good.log_probs_old.tolist() == [0, 0, -0.5]
    assert (good.advantage, bad.advantage, good.task_id) == (0.7, -0.7, 3)
    assert not bad.sampled.any()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_log_probs_return_to_the_experience_they_belong_to(size):
    policy = TokenLogProbs(random_model(torch.float64), 1.0)
    items = random_experiences(8)
    scored = with_log_probs(items, policy, policy, size)
    for item, result in zip(items, scored, strict=True):
        mask = torch.ones(1, len(item), dtype=torch.bool)
        log_probs, entropy = policy(item.token_ids[None], mask, item.sampled[None])
        torch.testing.assert_close(result.log_probs_old, log_probs[0].detach())
        assert result.log_probs_ref is not None
        torch.testing.assert_close(result.log_probs_ref, log_probs[0].detach())
        assert result.entropy is not None
        torch.testing.assert_close(result.entropy, entropy[0])
        assert not result.log_probs_old.requires_grad
