"""Adapters added into the weights that they adapt, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers


@contextmanager
def adapters_merged(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Let each linear map compute with its adapter in it: one product instead of three.

    The weights are swapped for their sums and swapped back, so that they are what they were to the
    bit; until then they take their memory a second time. A model without adapters, and one whose
    weights are not float32, is left as it is: a sum in bfloat16 would lose most of an adapter, and
    other tokens would be sampled than are learned from.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        yield
        return
    from peft.tuners.lora.layer import Linear

    adapted = [module for module in model.modules() if isinstance(module, Linear)]
    layers = [(layer, _weight(layer)) for layer in adapted]
    layers = [(layer, weight) for layer, weight in layers if weight.dtype == torch.float32]
    own = [weight.data for _, weight in layers]
    try:
        with torch.no_grad():
            for layer, weight in layers:
                (name,) = layer.active_adapters
                weight.data = weight + layer.get_delta_weight(name)
                layer.merged_adapters.append(name)
        yield
    finally:
        for (layer, weight), values in zip(layers, own, strict=True):
            weight.data = values
            layer.merged_adapters.clear()


def _weight(layer: Any) -> torch.nn.Parameter:
    return layer.get_base_layer().weight
