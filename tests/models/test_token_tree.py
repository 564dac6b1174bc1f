"""Every token of every sequence is read once, after all that comes before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.models.token_tree import MOST_PADDING, PASS_TOKENS, TokenTree

# Few tokens, so that sequences have beginnings in common.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)
PASSES = st.sampled_from([0, 1, 4, PASS_TOKENS])


def arrays(sequences: list[list[int]]) -> list[np.ndarray]:
    return [np.array(sequence, dtype=np.int64) for sequence in sequences]


def beginnings(tree: TokenTree) -> list[tuple[int, ...] | None]:
    """All that has been read up to each place, None for padding."""
    known: list[tuple[int, ...] | None] = []
    for part in tree.passes:
        new: list[tuple[int, ...] | None] = []
        for ids, reads, past, remembers, positions in zip(
            part.token_ids, part.reads, part.past, part.remembers, part.positions, strict=True
        ):
            places = past[remembers]
            read = tuple(part_of(known[place])[-1] for place in places)
            assert not len(places) or part_of(known[places[-1]]) == read
            for token, is_read, position in zip(ids, reads, positions, strict=True):
                if is_read:
                    assert position == len(read)
                    read = (*read, int(token))
                new.append(read if is_read else None)
        known += new
    return known


def part_of(beginning: tuple[int, ...] | None) -> tuple[int, ...]:
    assert beginning is not None
    return beginning


def num_read(tree: TokenTree) -> int:
    assert tree.counts.positions == sum(part.reads.size for part in tree.passes)
    assert tree.counts.read == sum(int(part.reads.sum()) for part in tree.passes)
    return tree.counts.read


@given(SEQUENCES, PASSES, st.booleans())
def test_each_token_is_found_after_its_own_beginning(sequences, pass_tokens, shares):
    tree = TokenTree.of(arrays(sequences), shares=shares, pass_tokens=pass_tokens)
    known = beginnings(tree)
    for row, sequence in zip(tree.places, sequences, strict=True):
        for length, place in enumerate(row[: len(sequence)], start=1):
            assert known[place] == tuple(sequence[:length])


@given(SEQUENCES, PASSES, st.booleans())
def test_no_more_is_read_than_distinct_sequences_have_and_no_less_than_distinct_beginnings(
    sequences, pass_tokens, shares
):
    distinct = {tuple(sequence) for sequence in sequences}
    different = {sequence[:length] for sequence in distinct for length in range(1, 1 + 12)}
    read = num_read(TokenTree.of(arrays(sequences), shares=shares, pass_tokens=pass_tokens))
    assert len(different) <= read <= sum(map(len, distinct))
    if not shares:
        assert read == sum(map(len, distinct))


@given(SEQUENCES, PASSES, st.booleans())
def test_a_pass_pads_at_most_a_tenth_or_what_a_pass_costs(sequences, pass_tokens, shares):
    for part in TokenTree.of(arrays(sequences), shares=shares, pass_tokens=pass_tokens).passes:
        padding = part.reads.size - int(part.reads.sum())
        assert padding <= max(pass_tokens, MOST_PADDING * part.reads.size)


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_what_is_read_does_not_depend_on_the_order_of_sequences(sequences, random):
    shuffled = random.sample(sequences, len(sequences))
    tree, other = (TokenTree.of(arrays(some), pass_tokens=1) for some in (sequences, shuffled))
    assert beginnings(tree) == beginnings(other)


def test_a_prompt_is_read_once_for_all_that_follows_it():
    """Two prompts of 3 and 2 tokens, two completions each, of 2, 1, 1 and 1 tokens."""
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8, 9], [7, 8, 0]]
    tree = TokenTree.of(arrays(rows), pass_tokens=0)
    assert num_read(tree) == 3 + 2 + 2 + 1 + 1 + 1
    assert sorted(int(part.reads.sum()) for part in tree.passes[:2]) == [2, 3]
    assert tree.places[0, :3].tolist() == tree.places[1, :3].tolist()


def test_turns_of_a_conversation_share_what_is_the_same_of_their_history():
    """A description of tools for all, a question for two, then other calls."""
    tools, question, other = list(range(10, 40)), [1, 2, 3, 4, 5], [6, 7, 8]
    rows = [[*tools, *question, 50], [*tools, *question, 51, 52], [*tools, *other]]
    tree = TokenTree.of(arrays(rows), pass_tokens=0)
    assert num_read(tree) == 30 + 5 + 1 + 2 + 3
    assert [part.past.shape[1] for part in tree.passes] == [0, 30, 30, 35, 35]


def test_equal_sequences_are_read_once_even_where_nothing_else_is_shared():
    tree = TokenTree.of(arrays([[1, 2, 3], [1, 2], [1, 2, 3]]), shares=False)
    assert num_read(tree) == 5
    assert tree.places[0].tolist() == tree.places[2].tolist()
    assert all(part.past.size == 0 for part in tree.passes)


def test_what_saves_less_than_two_passes_is_not_shared():
    """Nine sequences with a beginning of n tokens: 8 n are saved."""
    for length, shared in ((2 * PASS_TOKENS // 8, False), (2 * PASS_TOKENS // 8 + 1, True)):
        rows = [[*range(100, 100 + length), last] for last in range(9)]
        tree = TokenTree.of(arrays(rows))
        assert num_read(tree) == (length + 9 if shared else 9 * (length + 1))


@pytest.mark.parametrize("seed", range(3))
def test_of_batches_of_usual_size_a_tenth_is_padding(seed):
    """16 tasks with prompts of 40 to 200 tokens and 8 completions of 20 to 500 each."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, 30_000, random.integers(40, 200)) for _ in range(16)]
    completions = [random.integers(0, 30_000, random.integers(20, 500)) for _ in range(16 * 8)]
    rows = [np.append(prompts[n // 8], completion) for n, completion in enumerate(completions)]
    tree = TokenTree.of(rows)
    assert num_read(tree) == sum(map(len, prompts)) + sum(map(len, completions))
    assert tree.counts.positions < num_read(tree) / 0.9


def test_sequences_that_all_begin_one_another_are_read_in_few_passes():
    """A policy that has collapsed writes one token again and again. Of 1,499 lengths the tree has
    as many levels as are worth it, not one for each length."""
    tree = TokenTree.of([np.zeros(length, dtype=np.int64) for length in range(1, 1500)])
    assert len(tree.passes) < 60
    assert num_read(tree) < 0.4 * sum(range(1500))
