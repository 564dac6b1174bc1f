"""The cache of a decode loop holds keys and values alike, in the precision of the arithmetic."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.rollout.decode_batch import ROOM, DecodeBatch, RoomyLayer
from tests.helpers import random_model


def states(tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 3, tokens, 4).to(dtype)


def test_keys_in_float32_beside_values_in_bfloat16_are_held_in_bfloat16():
    layer = RoomyLayer()
    given: list[torch.Tensor] = []
    # What opens a cache, what there is room for, and what there is not.
    for tokens in (5, 1, ROOM):
        given.append(states(tokens, torch.float32))
        keys, values = layer.update(given[-1], states(tokens, torch.bfloat16))
        assert keys.dtype == values.dtype == torch.bfloat16
        torch.testing.assert_close(keys, torch.cat(given, dim=-2).bfloat16(), rtol=0, atol=0)


def test_keys_of_a_model_in_float32_are_held_in_bfloat16_under_autocast():
    model = random_model(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        batch = DecodeBatch.read(model, [(5, 6, 7), (8, 9)])
        batch.append(model, torch.tensor([5, 6]), torch.ones(2, dtype=torch.bool))
    for layer in batch.cache.layers:
        assert isinstance(layer, RoomyLayer)
        assert [part.dtype for part in layer.contents] == [torch.bfloat16] * 2


def test_rows_that_are_kept_where_they_are_decode_as_before():
    """Those at the end move into the places of others, and columns that none has read go."""
    prompts = [(5, 6, 7, 8, 9), (8, 9), (10, 11, 12), (4, 4), (13,)]
    model = random_model(torch.float64)
    tokens = torch.arange(20, 25)
    kept = torch.tensor([4, 1, 2])
    with torch.no_grad():
        whole, batch = (DecodeBatch.read(model, prompts) for _ in range(2))
        batch.keep(kept)
        assert batch.attention.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
        for _ in range(ROOM + 2):
            whole.append(model, tokens, torch.ones(5, dtype=torch.bool))
            batch.append(model, tokens[kept], torch.ones(3, dtype=torch.bool))
            torch.testing.assert_close(batch.logits, whole.logits[kept], rtol=0, atol=1e-9)


class TestRowsThatHaveReadTheSame:
    def test_are_read_once_until_they_part(self):
        """Six rows of two prompts, in three lines after the first token and four after the second.

        A row that does not read stays behind those that do.
        """
        model = random_model(torch.float64)
        batch = DecodeBatch.read(model, [(5, 6, 7), (8, 9), (5, 6, 7), (8, 9), (5, 6, 7), (8, 9)])
        assert len(batch.line_logits) == 2
        all_of_them = torch.ones(6, dtype=torch.bool)
        with torch.no_grad():
            batch.append(model, torch.tensor([3, 4, 3, 4, 4, 4]), all_of_them)
            assert len(batch.line_logits) == 3
            batch.append(model, torch.tensor([5, 5, 5, 5, 5, 5]), all_of_them ^ all_of_them[0])
            assert len(batch.line_logits) == 3
            reading = torch.tensor([True, True, True, False, True, True])
            batch.append(model, torch.tensor([6, 6, 6, 6, 6, 6]), reading)
            assert len(batch.line_logits) == 4
            batch.keep(torch.tensor([0, 5, 2]))
            assert len(batch.line_logits) == 2

    @settings(max_examples=40)
    @given(data=st.data())
    def test_have_the_logits_of_a_plain_pass_whatever_happens_to_them(self, data):
        model = random_model(torch.float64)
        prompts = [(5, 6, 7, 8), (9,), (10, 11)]
        few = st.integers(0, 2)
        rows = [prompts[n] for n in data.draw(st.lists(few, min_size=1, max_size=8))]
        # What a row that did not read expects next is nobody's affair.
        has_read = [True] * len(rows)
        with torch.no_grad():
            batch = DecodeBatch.read(model, rows)
            for _ in range(data.draw(st.integers(1, 8))):
                count = len(rows)
                match data.draw(st.sampled_from(["append", "append", "keep", "join", "packed"])):
                    case "append":
                        tokens = data.draw(st.lists(few, min_size=count, max_size=count))
                        flags = st.lists(st.booleans(), min_size=count, max_size=count)
                        reading = data.draw(flags)
                        batch.append(model, torch.tensor(tokens), torch.tensor(reading))
                        rows = [
                            (*row, token) if reads else row
                            for row, token, reads in zip(rows, tokens, reading, strict=True)
                        ]
                        has_read = reading
                    case "keep":
                        stay = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
                        if not any(stay):
                            continue
                        kept = moved_into_holes(stay)
                        batch.keep(torch.tensor(kept))
                        rows = [rows[place] for place in kept]
                        has_read = [has_read[place] for place in kept]
                    case "join":
                        others = [prompts[n] for n in data.draw(st.lists(few, max_size=3))]
                        some = data.draw(
                            st.lists(st.integers(0, count - 1), min_size=1, max_size=3)
                        )
                        parts = [batch, batch.subset(torch.tensor(some))]
                        if others:
                            parts.append(DecodeBatch.read(model, others))
                        batch = DecodeBatch.joined(parts)
                        rows = [*rows, *(rows[place] for place in some), *others]
                        again = [has_read[place] for place in some]
                        has_read = [*has_read, *again, *(True for _ in others)]
                    case "packed":
                        batch = batch.packed()
            for row, logits, counts in zip(rows, batch.logits, has_read, strict=True):
                plain = model(torch.tensor([row])).logits[0, -1]
                if counts:
                    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-9)


def moved_into_holes(stay: list[bool]) -> list[int]:
    """Which rows are kept, as the decode loop orders them."""
    running = np.array(stay)
    order = np.arange(running.sum())
    holes = ~running[: len(order)]
    order[holes] = len(order) + np.flatnonzero(running[len(order) :])
    return order.tolist()


def test_room_is_that_of_the_rows_at_work(model64):
    """Rows that leave give theirs back, however many have come and gone."""
    batch = DecodeBatch.read(model64, [(5, 6, 7)] * 6)
    for _ in range(4):
        batch.keep(torch.arange(3))
        batch = DecodeBatch.joined([batch, DecodeBatch.read(model64, [(5, 6, 7)] * 3)])
        for layer in batch.cache.layers:
            assert isinstance(layer, RoomyLayer)
            assert layer._buffers is not None
            assert [len(buffer) for buffer in layer._buffers] == [6, 6]
