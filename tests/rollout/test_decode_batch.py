"""The cache of a decode loop holds keys and values alike, in the precision of the arithmetic."""

import torch

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
