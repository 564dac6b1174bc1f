"""Which sequences go through a model together, and which of them each process takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st

from common.replay_buffer import Experience, MicroBatchLimits, even_parts, micro_batches


def sequence(task: int, length: int) -> Experience:
    zeros = torch.zeros(length)
    return Experience(task, zeros.long(), zeros.bool(), zeros.long() - 1, zeros, zeros)


def shape(batches: Sequence[Sequence[Experience]]) -> list[list[tuple[int, int]]]:
    """Task and length of each sequence."""
    return [[(one.task_id, len(one)) for one in batch] for batch in batches]


def split(
    sequences: Sequence[Experience], tokens: int, most: int | None = None
) -> list[list[tuple[int, int]]]:
    return shape(micro_batches(sequences, MicroBatchLimits(tokens, most)))


SEQUENCES = st.lists(st.builds(sequence, st.integers(0, 4), st.integers(1, 30)), max_size=40)
LIMITS = st.builds(MicroBatchLimits, st.integers(1, 200), st.none() | st.integers(1, 9))


@given(SEQUENCES, LIMITS)
def test_every_sequence_is_in_one_micro_batch_within_the_limits(sequences, limits):
    batches = micro_batches(sequences, limits)
    assert sorted(map(id, chain.from_iterable(batches))) == sorted(map(id, sequences))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= limits.tokens
        assert len(batch) <= (limits.sequences or len(batch))


@given(SEQUENCES, LIMITS)
def test_a_task_that_fits_into_a_micro_batch_is_in_one(sequences, limits):
    batches = micro_batches(sequences, limits)
    for task in {one.task_id for one in sequences}:
        lengths = [len(one) for one in sequences if one.task_id == task]
        fits = len(lengths) * max(lengths) <= limits.tokens or len(lengths) == 1
        if fits and len(lengths) <= (limits.sequences or len(lengths)):
            assert sum(any(one.task_id == task for one in batch) for batch in batches) == 1


def test_micro_batches_by_hand():
    lengths = [(8, 8), (7, 4), (9, 3), (8, 7), (7, 9), (8, 6)]
    sequences = [sequence(*each) for each in lengths]
    of_7, of_8, of_9 = [(7, 9), (7, 4)], [(8, 8), (8, 7), (8, 6)], [(9, 3)]
    assert split(sequences, 54) == [of_7 + of_8 + of_9]
    assert split(sequences, 53) == [of_7 + of_8, of_9]
    assert split(sequences, 44) == [of_7, of_8 + of_9]
    assert split(sequences, 44, 3) == [of_7, of_8, of_9]
    # Neither of two tasks fits: as many of the rest as do.
    assert split(sequences, 16) == [of_7[:1], [of_7[1], of_8[0]], of_8[1:], of_9]
    assert split(sequences, 1) == [[one] for one in of_7 + of_8 + of_9]


@given(SEQUENCES, st.integers(1, 5))
def test_parts_have_as_many_tokens_each_give_or_take_a_sequence(sequences, count):
    parts = even_parts(sequences, count)
    assert len(parts) == count
    assert sorted(map(id, chain.from_iterable(parts))) == sorted(map(id, sequences))
    mean, longest = sum(map(len, sequences)) / count, max(map(len, sequences), default=0)
    assert all(abs(sum(map(len, part)) - mean) <= longest for part in parts)
    tasks = chain.from_iterable({one.task_id for one in part} for part in parts)
    assert len(list(tasks)) <= len({one.task_id for one in sequences}) + count - 1


def test_tasks_are_in_one_part_but_for_those_at_the_cuts():
    """36 tokens: halves of 18, thirds of 12."""
    lengths = [(6, 6), (7, 4), (5, 8), (6, 6), (7, 2), (5, 10)]
    sequences = [sequence(*each) for each in lengths]
    of_5, of_6, of_7 = [(5, 10), (5, 8)], [(6, 6), (6, 6)], [(7, 4), (7, 2)]
    assert shape(even_parts(sequences, 1)) == [of_5 + of_6 + of_7]
    assert shape(even_parts(sequences, 2)) == [of_5, of_6 + of_7]
    assert shape(even_parts(sequences, 3)) == [of_5[:1], [of_5[1], of_6[0]], [of_6[1], *of_7]]
