"""The work in the passes of a model, counted by hooks: by what went through it, not by what had to.

A pass forward over tokens has 2 operations per weight and token, and attention 4 per feature of a
head for every pair of a query and a key, masked or not, as torch's `FlopCounterMode` counts it. The
projection onto the vocabulary counts the tokens that are projected. A pass backward has the same
again for the gradient of what went in, and once more for that of the weights that are trained.

Bytes are the least that has to be moved: the weights once in a pass, what comes out of every
projection, and in attention the keys and values once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from typing import Any, cast

import transformers
from torch import Tensor, nn

from benchmarks.machine import Machine


@dataclass(frozen=True)
class Work:
    passes: int = 0
    tokens: int = 0
    """That went through the layers, padding and repeated prompts included."""
    flops: float = 0.0
    """Of products with weights."""
    bytes: float = 0.0
    """Of weights and of what the products make of them."""
    attention_flops: float = 0.0
    attention_bytes: float = 0.0
    """Of keys and values."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Work:
        """The same tokens and passes, with so many times the operations and bytes."""
        passes, tokens, *amounts = astuple(self)
        return Work(passes, tokens, *(factor * amount for amount in amounts))

    @property
    def all_flops(self) -> float:
        return self.flops + self.attention_flops

    @property
    def all_bytes(self) -> float:
        return self.bytes + self.attention_bytes

    def least_seconds(self, machine: Machine) -> float:
        """What the machine takes at best: the longer of computing and moving, of each kind."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth) + max(
            self.attention_flops / machine.flops, self.attention_bytes / machine.bandwidth
        )


@dataclass(frozen=True)
class Architecture:
    """What the formulas need to know of a dense decoder."""

    layers: int
    query_features: int
    """Heads times features of a head."""
    key_features: int
    layer_weights: int
    """In the products of all layers."""
    linear_maps: tuple[tuple[int, int], ...]
    """Inputs and outputs of the products of a layer and of the projection, each shape once."""
    linear_outputs: int
    """Features that come out of all products of all layers."""
    trained_share: float
    """Of the weights in products."""
    bytes_per_number: int

    @classmethod
    def of(cls, model: transformers.PreTrainedModel) -> Architecture:
        config: Any = model.config.get_text_config()
        head = model.get_output_embeddings()
        maps = [m for m in model.modules() if isinstance(m, nn.Linear)]
        inner = [module for module in maps if module is not head]
        features = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        weights = [module.weight for module in maps]
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        return cls(
            config.num_hidden_layers,
            config.num_attention_heads * features,
            config.num_key_value_heads * features,
            sum(module.weight.numel() for module in inner),
            tuple(dict.fromkeys((module.in_features, module.out_features) for module in maps)),
            sum(module.out_features for module in inner),
            trained / sum(weight.numel() for weight in weights),
            weights[0].element_size(),
        )

    def through_layers(self, rows: int, queries: int, keys: int) -> Work:
        """Of a pass of `rows` x `queries` tokens, each of which looks at `keys`."""
        tokens = rows * queries
        numbers = self.layer_weights + tokens * self.linear_outputs
        return Work(
            passes=1,
            tokens=tokens,
            flops=2.0 * self.layer_weights * tokens,
            bytes=float(self.bytes_per_number * numbers),
            attention_flops=4.0 * self.layers * self.query_features * tokens * keys,
            attention_bytes=2.0
            * self.bytes_per_number
            * self.layers
            * self.key_features
            * rows
            * keys,
        )

    def through_projection(self, tokens: int, width: int, vocabulary: int) -> Work:
        numbers = width * vocabulary + tokens * vocabulary
        return Work(
            flops=2.0 * tokens * width * vocabulary, bytes=float(self.bytes_per_number * numbers)
        )

    def backward(self, forward: Work) -> Work:
        """Of the pass backward through what a pass forward went through."""
        return forward.times(1 + self.trained_share)


@contextmanager
def counting(
    model: transformers.PreTrainedModel, add: Callable[[Work], object]
) -> Iterator[Architecture]:
    """Tell `add` of all that goes through the model."""
    architecture = Architecture.of(model)

    def count_layers(_: nn.Module, inputs: tuple[()], named: dict[str, Any], output: Any) -> None:
        rows, queries = output.last_hidden_state.shape[:2]
        cache = named.get("past_key_values")
        keys = queries if cache is None else cache.get_seq_length()
        add(architecture.through_layers(rows, queries, keys))

    head = cast(nn.Linear, model.get_output_embeddings())

    def count_projection(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        tokens = inputs[0].numel() // head.in_features
        add(architecture.through_projection(tokens, head.in_features, head.out_features))

    with ExitStack() as hooks:
        layers = model.base_model.register_forward_hook(count_layers, with_kwargs=True)
        hooks.callback(layers.remove)
        hooks.callback(head.register_forward_hook(count_projection).remove)
        yield architecture
