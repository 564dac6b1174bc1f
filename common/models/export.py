"""Weights as an inference engine takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file

from common.scratch import passing_weights

if TYPE_CHECKING:
    import transformers


def write_weights(model: transformers.PreTrainedModel, directory: Path) -> int:
    """Write the weights, of a model with adapters those alone; returns their bytes.

    A projection that is tied to the embedding is written as well, by its own name: vLLM 0.32
    leaves it as it was, and says nothing, where new weights lack it. Raises `UserError` where there
    is no room.
    """
    with passing_weights(directory):
        model.save_pretrained(directory, max_shard_size="1000GB")
        head = cast(torch.nn.Linear | None, model.get_output_embeddings())
        has_adapters = getattr(model, "_hf_peft_config_loaded", False)
        if head is not None and not has_adapters:
            embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
            if head.weight is embedding.weight:
                name = next(name for name, module in model.named_modules() if module is head)
                tied = {f"{name}.weight": head.weight.detach()}
                save_file(tied, directory / "tied.safetensors", metadata={"format": "pt"})
        return sum(file.stat().st_size for file in directory.iterdir())


def num_bytes(model: torch.nn.Module) -> int:
    """Of all weights."""
    return sum(parameter.nbytes for parameter in model.parameters())
