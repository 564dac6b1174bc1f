"""The rows of a decode loop as tensors: what they have read, and what they expect next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Tokens for which a cache has room before it is copied into a larger one.
ROOM = 32


class RoomyLayer(DynamicLayer):
    """Full attention's cache of a layer, into which a token is written without copying the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._start = self._end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        # Under autocast the rotation leaves keys in float32, which attention rounds again anyway.
        key_states = key_states.to(value_states.dtype)
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            return self._hold([key_states], [value_states], key_states.shape[-2])
        end = self._end + key_states.shape[-2]
        keys, values = self._buffers
        if end > keys.shape[-2]:
            length = end - self._start
            keys, values = self.contents
            keys = torch.cat([keys, key_states], dim=-2)
            values = torch.cat([values, value_states], dim=-2)
            return self._hold([keys], [values], length)
        keys[:, :, self._end : end] = key_states
        values[:, :, self._end : end] = value_states
        return self._show(self._start, end)

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values, `rows heads time features`."""
        assert self._buffers is not None
        keys, values = (buffer[:, :, self._start : self._end] for buffer in self._buffers)
        return keys, values

    def subset(self, rows: Int[Tensor, " kept"]) -> RoomyLayer:
        """A layer with these rows, in this order."""
        layer = RoomyLayer()
        if self._buffers is None:
            return layer
        layer.lazy_initialization(*self._buffers)
        keys, values = (buffer.index_select(0, rows) for buffer in self._buffers)
        layer._buffers = (keys, values)
        layer._show(self._start, self._end)
        return layer

    def gathered(self, columns: Int[Tensor, "rows kept"]) -> RoomyLayer:
        """A layer with these columns of each row."""
        if self._buffers is None:
            return RoomyLayer()
        keys, values = (
            part.gather(-2, columns[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
            for part in self.contents
        )
        layer = RoomyLayer()
        layer.lazy_initialization(keys, values)
        layer._hold([keys], [values], keys.shape[-2])
        return layer

    def drop_columns(self, count: int) -> None:
        if self._buffers is not None:
            self._show(self._start + count, self._end)

    @classmethod
    def stacked(cls, layers: Sequence[RoomyLayer]) -> RoomyLayer:
        """The rows of several layers, each padded on the left to the longest.

        A layer that uses the keys and values of another one never has any of its own.
        """
        if layers[0]._buffers is None:
            return cls()
        keys, values = zip(*(layer.contents for layer in layers), strict=True)
        stacked = cls()
        stacked.lazy_initialization(keys[0], values[0])
        stacked._hold(keys, values, max(part.shape[-2] for part in keys))
        return stacked

    def _hold(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int
    ) -> tuple[Tensor, Tensor]:
        new_keys, new_values = (_with_room(parts, length) for parts in (keys, values))
        self._buffers = (new_keys, new_values)
        return self._show(0, length)

    def _show(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        self._start, self._end = start, end
        self.keys, self.values = self.contents
        return self.contents


def _with_room(parts: Sequence[Tensor], length: int) -> Tensor:
    """The parts below one another, each ending at `length`, with zeros before and room after."""
    rows = sum(len(part) for part in parts)
    _, heads, _, features = parts[0].shape
    buffer = parts[0].new_empty(rows, heads, length + ROOM, features)
    row = 0
    for part in parts:
        start = length - part.shape[-2]
        buffer[row : row + len(part), :, :start] = 0
        buffer[row : row + len(part), :, start:length] = part
        row += len(part)
    return buffer


@dataclass
class DecodeBatch:
    """Rows are padded on the left: the last position of each is the one that was read last."""

    logits: Float[Tensor, "rows vocab"]
    attention: Int[Tensor, "rows time"]
    """1 on what a row has read, 0 on what is not its own."""
    cache: transformers.DynamicCache

    @classmethod
    def read(
        cls, model: transformers.PreTrainedModel, prompts: Sequence[tuple[int, ...]]
    ) -> DecodeBatch:
        """A row per prompt; each distinct prompt is read once."""
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        cache = transformers.DynamicCache(config=model.config)
        if all(type(layer) is DynamicLayer for layer in cache.layers):
            cache = _cache_of([RoomyLayer() for _ in cache.layers])
        device = model.device
        nothing = torch.zeros(len(distinct), 0, device=device)
        batch = cls(nothing, nothing.long(), cache)
        batch.extend(model, list(distinct))
        if len(distinct) < len(prompts):
            of_prompt = [distinct[prompt] for prompt in prompts]
            batch.select(torch.tensor(of_prompt, device=device))
        return batch

    @property
    def can_grow(self) -> bool:
        """Whether rows can join: layers that keep a window or a state have no room for padding."""
        return all(isinstance(layer, RoomyLayer) for layer in self.cache.layers)

    def extend(
        self, model: transformers.PreTrainedModel, token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Let each row read some tokens."""
        length = max(map(len, token_ids))
        padded = torch.tensor([[0] * (length - len(ids)) + list(ids) for ids in token_ids])
        lengths = torch.tensor([[len(ids)] for ids in token_ids])
        self._forward(model, padded, torch.arange(length) >= length - lengths)

    def append(
        self,
        model: transformers.PreTrainedModel,
        tokens: Int[Tensor, " rows"],
        reading: Bool[Tensor, " rows"],
    ) -> None:
        """Let the rows that are `reading` read a token each; the others stay where they are."""
        self._forward(model, tokens[:, None], reading[:, None])

    def _forward(
        self,
        model: transformers.PreTrainedModel,
        token_ids: Int[Tensor, "rows new"],
        reading: Bool[Tensor, "rows new"],
    ) -> None:
        new = reading.to(self.attention)
        positions = self.attention.sum(dim=-1, keepdim=True) + new.cumsum(dim=-1) - 1
        self.attention = torch.cat([self.attention, new], dim=-1)
        self.logits = model(
            input_ids=token_ids.to(model.device),
            attention_mask=self.attention,
            position_ids=positions.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows, in this order."""
        if self.can_grow:
            vars(self).update(vars(self.subset(rows)))
        else:
            self.logits, self.attention = self.logits[rows], self.attention[rows]
            self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]

    def subset(self, rows: Int[Tensor, " kept"]) -> DecodeBatch:
        """A batch of these rows, in this order, without columns that none of them has read."""
        attention = self.attention[rows]
        unread = int(attention.any(dim=0).int().argmax())
        layers = [layer.subset(rows) for layer in self._layers]
        for layer in layers:
            layer.drop_columns(unread)
        return DecodeBatch(self.logits[rows], attention[:, unread:], _cache_of(layers))

    def packed(self) -> DecodeBatch:
        """The same rows without the gaps that others' reading left in them."""
        longest = int(self.attention.sum(dim=-1).max())
        if longest == self.attention.shape[1]:
            return self
        # A stable sort of 0 and 1 puts what was read last, in the order in which it was read.
        columns = self.attention.argsort(dim=-1, stable=True)[:, -longest:]
        cache = _cache_of([layer.gathered(columns) for layer in self._layers])
        return DecodeBatch(self.logits, self.attention.gather(-1, columns), cache)

    @staticmethod
    def joined(batches: Sequence[DecodeBatch]) -> DecodeBatch:
        """The rows of all batches, one after another."""
        if len(batches) == 1:
            return batches[0]
        length = max(batch.attention.shape[1] for batch in batches)
        attention = [
            torch.nn.functional.pad(batch.attention, (length - batch.attention.shape[1], 0))
            for batch in batches
        ]
        by_layer = zip(*(batch._layers for batch in batches), strict=True)
        cache = _cache_of([RoomyLayer.stacked(layers) for layers in by_layer])
        logits = torch.cat([batch.logits for batch in batches])
        return DecodeBatch(logits, torch.cat(attention), cache)

    @property
    def _layers(self) -> list[RoomyLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, RoomyLayer)]


def _cache_of(layers: Sequence[RoomyLayer]) -> transformers.DynamicCache:
    cache = transformers.DynamicCache()
    cache.layers[:] = layers
    return cache
