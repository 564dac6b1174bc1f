"""What a model computes of a tree of tokens, where passes go on from what others have read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.models.token_tree import TokenTree

if TYPE_CHECKING:
    import transformers
    from transformers.cache_utils import DynamicLayer

# How far what follows a cache may be off, as a share of the largest number: rounding makes 1e-6 of
# it in float32, and 0.01 in bfloat16.
_TOLERANCE = 1e-4
_TOLERANCE_BFLOAT16 = 0.05

# Four with two beginnings of unequal length, of which ends are read side by side.
_EXAMPLE = [
    np.array(row) for row in ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 6], [5, 6, 1, 2], [5, 6, 3, 2])
]
_LAST = [len(row) - 1 for row in _EXAMPLE]

Read = Callable[..., Float[Tensor, "pieces time width"]]
"""A model's forward pass, from its arguments by name to its final states or its logits."""


def tree_states(
    model: transformers.PreTrainedModel, tree: TokenTree, read: Read
) -> Float[Tensor, "places width"]:
    """What `read` gives of all tokens of the tree, by their places.

    The gradient of what was read once is the sum over all that goes on from it.
    """
    states: list[Tensor] = []
    memory = _Memory(model)
    num_places = 0
    last_needed = max(int(part.past.max(initial=-1)) for part in tree.passes)
    for part in tree.passes:
        inputs: dict[str, Any] = {"input_ids": _on(model, part.token_ids), "use_cache": False}
        cache = memory.recall(_on(model, part.past)) if last_needed >= 0 else None
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        if part.past.size:
            inputs["position_ids"] = _on(model, part.positions)
        # Under causal attention nothing sees what is padded on the right.
        if not part.remembers.all():
            known = np.concatenate([part.remembers, part.reads], axis=1)
            inputs["attention_mask"] = _on(model, known.astype(np.int64))
        states.append(read(**inputs).flatten(0, 1))
        if cache is not None and num_places <= last_needed:
            memory.keep(cache, part.past.shape[1])
        num_places += part.reads.size
    return torch.cat(states)


class _Memory:
    """The keys and values of all places so far, as `places heads features` of each layer.

    A layer that uses those of another one has none of its own.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._config = model.config
        self._layers: list[tuple[Tensor, ...]] = []

    def recall(self, past: Int[Tensor, "pieces before"]) -> transformers.DynamicCache:
        """A cache in which each piece has read what is before it."""
        cache = _empty_cache(self._config)
        if past.shape[1]:
            for layer, known in zip(_layers_of(cache), self._layers, strict=True):
                if known:
                    keys, values = (_rows(past, part).transpose(1, 2) for part in known)
                    layer.update(keys, values)
        return cache

    def keep(self, cache: transformers.DynamicCache, before: int) -> None:
        """Add what a pass has read after the first so many tokens."""
        new = [
            tuple(
                part[:, :, before:].transpose(1, 2).flatten(0, 1)
                for part in (layer.keys, layer.values)
                if part is not None
            )
            for layer in _layers_of(cache)
        ]
        old = self._layers or [()] * len(new)
        self._layers = [
            tuple(map(torch.cat, zip(*parts, strict=True))) if parts[0] else parts[1]
            for parts in zip(old, new, strict=True)
        ]


def _empty_cache(config: transformers.PreTrainedConfig) -> transformers.DynamicCache:
    from transformers import DynamicCache

    return DynamicCache(config=config)


def _layers_of(cache: transformers.DynamicCache) -> list[DynamicLayer]:
    from transformers.cache_utils import DynamicLayer

    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _rows(indices: Int[Tensor, "*shape"], table: Tensor) -> Tensor:
    """The rows of a table: an embedding's gradient is summed in the same order every time."""
    return nn.functional.embedding(indices, table.flatten(1)).unflatten(-1, table.shape[1:])


def _on(model: transformers.PreTrainedModel, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(model.device, non_blocking=True)


def why_it_cannot_share(model: transformers.PreTrainedModel, read: Read) -> str:
    """What keeps a model from reading equal beginnings once; "" for nothing.

    Seen on a few tokens: what follows a cache must be computed as without one, and have the same
    gradient.
    """
    from transformers.cache_utils import DynamicLayer

    if model.is_activation_checkpointing:
        return "gradient checkpointing leaves no cache to go on from"
    kind = type(model).__name__
    layers = _empty_cache(model.config).layers
    if not all(type(layer) is DynamicLayer for layer in layers):
        return f"{kind} has layers that keep a window or a state of what they read"
    exact = all(parameter.dtype.itemsize >= 4 for parameter in model.parameters())
    exact &= not torch.is_autocast_enabled(model.device.type)
    tolerance = _TOLERANCE if exact else _TOLERANCE_BFLOAT16
    apart, together = (_example(model, read, shares=shares) for shares in (False, True))
    for one, other in zip(apart, together, strict=True):
        # What is not a number is not within it.
        off, size = float((one - other).abs().max()), float(one.abs().max())
        if not off <= tolerance * size:
            return f"{kind} computes what follows a cache otherwise ({off:.2g} of {size:.2g})"
    return ""


def _example(
    model: transformers.PreTrainedModel, read: Read, *, shares: bool
) -> tuple[Tensor, ...]:
    """The last states of an example, and their gradient by the first weights that are trained.

    By the first two: under LoRA the gradient of the first is 0 at the start.
    """
    tree = TokenTree.of(_EXAMPLE, shares=shares, pass_tokens=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad][:2]
    with torch.set_grad_enabled(bool(trained)):
        states = tree_states(model, tree, read)[tree.places[range(len(_LAST)), _LAST]]
        weights = torch.linspace(-1, 1, states.numel(), device=states.device).view_as(states)
        gradients = torch.autograd.grad((states * weights).sum(), trained) if trained else ()
    return states.detach(), *gradients
