"""The rows of a decode loop as tensors: what they have read, and what they expect next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
        new = key_states.shape[-2]
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            return self._hold([key_states], [value_states], new)
        if self._end + new > self._buffers[0].shape[-2]:
            keys, values = self.contents
            self._hold([keys], [values], keys.shape[-2], room=new + ROOM)
        keys, values = self._buffers
        end = self._end + new
        keys[:, :, self._end : end] = key_states
        values[:, :, self._end : end] = value_states
        return self._show(self._start, end)

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values, `rows heads time features`."""
        assert self._buffers is not None
        keys, values = (buffer[:, :, self._start : self._end] for buffer in self._buffers)
        return keys, values

    def subset(self, rows: Int[Tensor, " kept"], first: int, room: int) -> RoomyLayer:
        """A layer of its own with these rows, in this order, from their column `first` on."""
        layer = RoomyLayer()
        if self._buffers is None:
            return layer
        layer.lazy_initialization(*self._buffers)
        keys, values = (_selected(part[:, :, first:], rows, room) for part in self.contents)
        layer._buffers = (keys, values)
        layer._show(0, self._end - self._start - first)
        return layer

    def keep(self, kept: Int[Tensor, " kept"], moved: Int[Tensor, " moved"]) -> None:
        """Keep the rows `kept`, of which those at the places `moved` come from elsewhere."""
        if self._buffers is None:
            return
        for part in self.contents:
            part.index_copy_(0, moved, part.index_select(0, kept[moved]))
        keys, values = (buffer[: len(kept)] for buffer in self._buffers)
        self._buffers = (keys, values)
        self._show(self._start, self._end)

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
        self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int, room: int = ROOM
    ) -> tuple[Tensor, Tensor]:
        new_keys, new_values = (_with_room(parts, length, room) for parts in (keys, values))
        self._buffers = (new_keys, new_values)
        return self._show(0, length)

    def _show(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        self._start, self._end = start, end
        self.keys, self.values = self.contents
        return self.keys, self.values


def _selected(part: Tensor, rows: Int[Tensor, " kept"], room: int) -> Tensor:
    """The chosen rows, with room after them."""
    _, heads, length, features = part.shape
    buffer = part.new_empty(len(rows), heads, length + room, features)
    torch.index_select(part, 0, rows, out=buffer[:, :, :length])
    return buffer


def _with_room(parts: Sequence[Tensor], length: int, room: int) -> Tensor:
    """The parts below one another, each ending at `length`, with zeros before and room after."""
    rows = sum(len(part) for part in parts)
    _, heads, _, features = parts[0].shape
    buffer = parts[0].new_empty(rows, heads, length + room, features)
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
        if len(distinct) == len(prompts):
            return batch
        of_prompt = torch.tensor([distinct[prompt] for prompt in prompts], device=device)
        if batch.can_grow:
            return batch.subset(of_prompt, ROOM)
        batch.keep(of_prompt)
        return batch

    @property
    def can_grow(self) -> bool:
        """Whether rows can join: layers that keep a window or a state have no room for padding."""
        return all(isinstance(layer, RoomyLayer) for layer in self.cache.layers)

    def indices(self, places: Sequence[int] | np.ndarray) -> Int[Tensor, " places"]:
        """Places of rows, on the device of the rows."""
        return torch.as_tensor(places, dtype=torch.long, device=self.logits.device)

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

    def keep(self, kept: Int[Tensor, " kept"]) -> None:
        """Keep these rows, in this order, where they are: those that move lie after all others.

        Columns that none of them has read go.
        """
        if not self.can_grow:
            self.logits, self.attention = self.logits[kept], self.attention[kept]
            self.cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
            return
        moved = (kept != torch.arange(len(kept), device=kept.device)).nonzero()[:, 0]
        attention = self.attention[kept]
        unread = int(attention.any(dim=0).int().argmax())
        self.logits, self.attention = self.logits[kept], attention[:, unread:]
        for layer in self._layers:
            layer.keep(kept, moved)
            layer.drop_columns(unread)

    def subset(self, rows: Int[Tensor, " kept"], room: int = 0) -> DecodeBatch:
        """A batch of its own of these rows, in this order, without columns that none has read."""
        attention = self.attention[rows]
        unread = int(attention.any(dim=0).int().argmax())
        layers = [layer.subset(rows, unread, room) for layer in self._layers]
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
