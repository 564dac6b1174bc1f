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
