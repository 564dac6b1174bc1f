"""The rows of a decode loop as tensors: what they have read, and what they expect next.

Rows that began with the same prompt are one line, until what they sample differs.
"""

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
    """Full attention's cache of a layer, into which a token is written without copying the rest.

    There is room for `most_lines`, of which those in use come first.
    """

    def __init__(self, most_lines: int = 0) -> None:
        super().__init__()
        self._most_lines = most_lines
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._lines = self._start = self._end = 0

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
        keys[: self._lines, :, self._end : end] = key_states
        values[: self._lines, :, self._end : end] = value_states
        return self._show(self._lines, self._start, end)

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values, `lines heads time features`."""
        assert self._buffers is not None
        keys, values = (
            buffer[: self._lines, :, self._start : self._end] for buffer in self._buffers
        )
        return keys, values

    def make_room(self, most_lines: int) -> None:
        """For so many lines, and some more tokens."""
        self._most_lines = most_lines
        if self._buffers is not None:
            keys, values = self.contents
            self._hold([keys], [values], keys.shape[-2])

    def fork(self, parents: Int[Tensor, " new"]) -> None:
        """More lines, after all others, that have read what their parents have."""
        if self._buffers is None:
            return
        lines = self._lines + len(parents)
        for buffer, part in zip(self._buffers, self.contents, strict=True):
            buffer[self._lines : lines, :, self._start : self._end] = part[parents]
        self._show(lines, self._start, self._end)

    def subset(self, lines: Int[Tensor, " kept"], first: int) -> RoomyLayer:
        """A layer of its own with these lines, in this order, from their column `first` on."""
        layer = RoomyLayer()
        if self._buffers is not None:
            keys, values = (part[:, :, first:].index_select(0, lines) for part in self.contents)
            layer.lazy_initialization(keys, values)
            layer._buffers = (keys, values)
            layer._show(len(lines), 0, keys.shape[-2])
        return layer

    def keep(
        self, kept: Int[Tensor, " kept"], moved: Int[Tensor, " moved"], most_lines: int
    ) -> None:
        """Keep the lines `kept`, of which those at the places `moved` come from elsewhere."""
        self._most_lines = most_lines
        if self._buffers is None:
            return
        for part in self.contents:
            part.index_copy_(0, moved, part.index_select(0, kept[moved]))
        self._show(len(kept), self._start, self._end)

    def gathered(self, columns: Int[Tensor, "lines kept"]) -> RoomyLayer:
        """A layer with these columns of each line."""
        layer = RoomyLayer(self._most_lines)
        if self._buffers is None:
            return layer
        keys, values = (
            part.gather(-2, columns[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
            for part in self.contents
        )
        layer.lazy_initialization(keys, values)
        layer._hold([keys], [values], keys.shape[-2])
        return layer

    def drop_columns(self, count: int) -> None:
        if self._buffers is not None:
            self._show(self._lines, self._start + count, self._end)

    @classmethod
    def stacked(cls, layers: Sequence[RoomyLayer]) -> RoomyLayer:
        """The lines of several layers, each padded on the left to the longest.

        A layer that uses the keys and values of another one never has any of its own.
        """
        stacked = cls(sum(max(layer._lines, layer._most_lines) for layer in layers))
        if layers[0]._buffers is None:
            return stacked
        keys, values = zip(*(layer.contents for layer in layers), strict=True)
        stacked.lazy_initialization(keys[0], values[0])
        stacked._hold(keys, values, max(part.shape[-2] for part in keys))
        return stacked

    def _hold(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int, room: int = ROOM
    ) -> tuple[Tensor, Tensor]:
        lines = sum(map(len, keys))
        most = max(lines, self._most_lines)
        new_keys, new_values = (_with_room(parts, most, length, room) for parts in (keys, values))
        self._buffers = (new_keys, new_values)
        return self._show(lines, 0, length)

    def _show(self, lines: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        self._lines, self._start, self._end = lines, start, end
        self.keys, self.values = self.contents
        return self.keys, self.values


def _with_room(parts: Sequence[Tensor], most_lines: int, length: int, room: int) -> Tensor:
    """The parts below one another, each ending at `length`, with zeros before and room after."""
    _, heads, _, features = parts[0].shape
    buffer = parts[0].new_empty(most_lines, heads, length + room, features)
    line = 0
    for part in parts:
        start = length - part.shape[-2]
        buffer[line : line + len(part), :, :start] = 0
        buffer[line : line + len(part), :, start:length] = part
        line += len(part)
    return buffer


@dataclass
class DecodeBatch:
    """Lines are padded on the left: the last position of each is the one that was read last."""

    line_logits: Float[Tensor, "lines vocab"]
    attention: Int[Tensor, "lines time"]
    """1 on what a line has read, 0 on what is not its own."""
    cache: transformers.DynamicCache
    line_of: Int[Tensor, " rows"] | None = None
    """The line of each row, and no line is without one; None if each has that of its number."""

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
            batch.line_of = of_prompt
            for layer in batch._layers:
                layer.make_room(len(prompts))
        else:
            batch.keep(of_prompt)
        return batch

    @property
    def logits(self) -> Float[Tensor, "rows vocab"]:
        return self.line_logits if self.line_of is None else self.line_logits[self.line_of]

    @property
    def can_grow(self) -> bool:
        """Whether rows can join: layers that keep a window or a state have no room for padding."""
        return all(isinstance(layer, RoomyLayer) for layer in self.cache.layers)

    def indices(self, places: Sequence[int] | np.ndarray) -> Int[Tensor, " places"]:
        """Places of rows, on the device of the rows."""
        return torch.as_tensor(places, dtype=torch.long, device=self.line_logits.device)

    def extend(
        self, model: transformers.PreTrainedModel, token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Let each row read some tokens. No two of them may be one line."""
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
        if self.line_of is not None:
            tokens, reading = self._by_line(self.line_of, tokens, reading)
        self._forward(model, tokens[:, None], reading[:, None])

    def _by_line(
        self,
        line_of: Int[Tensor, " rows"],
        tokens: Int[Tensor, " rows"],
        reading: Bool[Tensor, " rows"],
    ) -> tuple[Int[Tensor, " lines"], Bool[Tensor, " lines"]]:
        """What each line reads, after a line has been made for each way in which its rows go on."""
        lines = len(self.line_logits)
        if lines == len(line_of):
            place = torch.empty_like(line_of)
            place[line_of] = torch.arange(lines, device=place.device)
            return tokens[place], reading[place]
        ways = 1 + int(self.line_logits.shape[-1])
        way = torch.where(reading, tokens + 1, 0)
        pairs, pair_of = (line_of * ways + way).unique(return_inverse=True)
        parents, way = pairs // ways, pairs % ways
        # Pairs are in the order of their lines. The first way of a line stays in its place.
        is_new = torch.zeros_like(parents, dtype=torch.bool)
        is_new[1:] = parents[1:] == parents[:-1]
        places = torch.where(is_new, lines - 1 + is_new.cumsum(0), parents)
        self.line_of = places[pair_of]
        new = parents[is_new]
        if len(new):
            self.attention = torch.cat([self.attention, self.attention[new]])
            for layer in self._layers:
                layer.fork(new)
        way = torch.empty_like(way).scatter(0, places, way)
        return (way - 1).clamp(min=0), way > 0

    def _forward(
        self,
        model: transformers.PreTrainedModel,
        token_ids: Int[Tensor, "lines new"],
        reading: Bool[Tensor, "lines new"],
    ) -> None:
        new = reading.to(self.attention)
        positions = self.attention.sum(dim=-1, keepdim=True) + new.cumsum(dim=-1) - 1
        self.attention = torch.cat([self.attention, new], dim=-1)
        self.line_logits = model(
            input_ids=token_ids.to(model.device),
            attention_mask=self.attention,
            position_ids=positions.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def keep(self, kept: Int[Tensor, " kept"]) -> None:
        """Keep these rows, in this order. Columns that none of them has read go.

        Lines at the end move into the places of those that no row has any more.
        """
        if not self.can_grow:
            self.line_logits, self.attention = self.line_logits[kept], self.attention[kept]
            self.cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
            return
        lines = kept if self.line_of is None else self._lines_of(self.line_of[kept])
        moved = (lines != torch.arange(len(lines), device=kept.device)).nonzero()[:, 0]
        attention = self.attention[lines]
        unread = int(attention.any(dim=0).int().argmax())
        self.line_logits, self.attention = self.line_logits[lines], attention[:, unread:]
        for layer in self._layers:
            layer.keep(lines, moved, len(kept))
            layer.drop_columns(unread)

    def _lines_of(self, line_of: Int[Tensor, " kept"]) -> Int[Tensor, " lines"]:
        """The lines that rows have, those that move after all others; their new numbers are
        the rows'."""
        used = torch.zeros_like(self.attention[:, 0], dtype=torch.bool)
        used[line_of] = True
        number = torch.arange(len(used), device=used.device)
        lines = number[: int(used.sum())].clone()
        holes = ~used[: len(lines)]
        lines[holes] = number[len(lines) :][used[len(lines) :]]
        self.line_of = torch.empty_like(number).scatter(0, lines, number[: len(lines)])[line_of]
        return lines

    def subset(self, rows: Int[Tensor, " kept"]) -> DecodeBatch:
        """A batch of its own of these rows, in this order, a line each, without columns that none
        has read."""
        lines = rows if self.line_of is None else self.line_of[rows]
        attention = self.attention[lines]
        unread = int(attention.any(dim=0).int().argmax())
        cache = _cache_of([layer.subset(lines, unread) for layer in self._layers])
        return DecodeBatch(self.line_logits[lines], attention[:, unread:], cache)

    def packed(self) -> DecodeBatch:
        """The same rows without the gaps that others' reading left in them."""
        longest = int(self.attention.sum(dim=-1).max())
        if longest == self.attention.shape[1]:
            return self
        # A stable sort of 0 and 1 puts what was read last, in the order in which it was read.
        columns = self.attention.argsort(dim=-1, stable=True)[:, -longest:]
        cache = _cache_of([layer.gathered(columns) for layer in self._layers])
        attention = self.attention.gather(-1, columns)
        return DecodeBatch(self.line_logits, attention, cache, self.line_of)

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
        logits = [batch.line_logits for batch in batches]
        line_of = None
        if any(batch.line_of is not None for batch in batches):
            before = np.cumsum([0, *map(len, logits)])
            line_of = torch.cat(
                [
                    int(lines)
                    + (
                        torch.arange(len(own), device=own.device)
                        if batch.line_of is None
                        else batch.line_of
                    )
                    for batch, own, lines in zip(batches, logits, before, strict=False)
                ]
            )
        return DecodeBatch(torch.cat(logits), torch.cat(attention), cache, line_of)

    @property
    def _layers(self) -> list[RoomyLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, RoomyLayer)]


def _cache_of(layers: Sequence[RoomyLayer]) -> transformers.DynamicCache:
    cache = transformers.DynamicCache()
    cache.layers[:] = layers
    return cache
