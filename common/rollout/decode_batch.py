"""The rows of a decode loop as tensors: what they have read, and what they expect next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer


@dataclass
class DecodeBatch:
    """Rows are padded on the left: position `time` of each is the one that was read last."""

    logits: Float[Tensor, "rows vocab"]
    attention: Int[Tensor, "rows time"]
    """1 on what a row has read, 0 on its padding."""
    cache: transformers.DynamicCache

    @classmethod
    def read(
        cls, model: transformers.PreTrainedModel, prompts: Sequence[tuple[int, ...]]
    ) -> DecodeBatch:
        """A row per prompt; each distinct prompt is read once."""
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        length = max(len(prompt) for prompt in distinct)
        padded = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in distinct])
        lengths = torch.tensor([[len(prompt)] for prompt in distinct])
        attention = (torch.arange(length) >= length - lengths).long().to(model.device)
        cache = transformers.DynamicCache(config=model.config)
        logits = model(
            input_ids=padded.to(model.device),
            attention_mask=attention,
            position_ids=(attention.cumsum(dim=-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        batch = cls(logits, attention, cache)
        if len(distinct) < len(prompts):
            of_prompt = [distinct[prompt] for prompt in prompts]
            batch.select(torch.tensor(of_prompt, device=model.device))
        return batch

    @property
    def can_grow(self) -> bool:
        """Whether rows can join: layers that keep a window or a state have no room for padding."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def append(self, model: transformers.PreTrainedModel, tokens: Int[Tensor, " rows"]) -> None:
        """Let each row read a token."""
        positions = self.attention.sum(dim=-1)
        ones = self.attention.new_ones(len(tokens), 1)
        self.attention = torch.cat([self.attention, ones], dim=-1)
        self.logits = model(
            input_ids=tokens[:, None],
            attention_mask=self.attention,
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows, in this order."""
        self.logits, self.attention = self.logits[rows], self.attention[rows]
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        if self.can_grow:
            self._drop_columns(int(self.attention.any(dim=0).int().argmax()))

    def _drop_columns(self, count: int) -> None:
        """Forget columns that are padding in every row."""
        if count:
            self.attention = self.attention[:, count:]
            for layer, keys, values in _contents(self.cache):
                layer.keys, layer.values = keys[:, :, count:], values[:, :, count:]

    def joined(self, other: DecodeBatch) -> DecodeBatch:
        """The rows of this batch and then those of another."""
        length = max(self.attention.shape[1], other.attention.shape[1])

        def stacked(mine: Tensor, theirs: Tensor, dim: int) -> Tensor:
            return torch.cat([_widened(mine, length, dim), _widened(theirs, length, dim)])

        for (layer, keys, values), (_, more_keys, more_values) in zip(
            _contents(self.cache), _contents(other.cache), strict=True
        ):
            layer.keys = stacked(keys, more_keys, -2)
            layer.values = stacked(values, more_values, -2)
        logits = torch.cat([self.logits, other.logits])
        return DecodeBatch(logits, stacked(self.attention, other.attention, -1), self.cache)


def _contents(cache: transformers.DynamicCache) -> list[tuple[DynamicLayer, Tensor, Tensor]]:
    """Each layer with its keys and values, `rows heads time features`."""
    layers = cast(list[DynamicLayer], cache.layers)
    return [(layer, cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]


def _widened(values: Tensor, length: int, dim: int) -> Tensor:
    """Zeros put before `values` until it has that length."""
    shape = list(values.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([values.new_zeros(shape), values], dim=dim)
