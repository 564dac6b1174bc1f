"""Models and tokenizers by bundled name, directory or Hub id."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

BUNDLED = Path(__file__).parent / "tiny" / "weights"


def locate(model_name: str) -> str:
    """The directory of a bundled model; any other name as it is."""
    bundled = BUNDLED / model_name
    return str(bundled) if (bundled / "config.json").is_file() else model_name


def is_bundled(model_name: str) -> bool:
    return locate(model_name) != model_name


def load_tokenizer(model_name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(locate(model_name))


def load_policy(model_name: str, device: torch.device) -> PreTrainedModel:
    """The model in float32 with dropout off, on the device."""
    transformers_logging.disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        locate(model_name), dtype=torch.float32, device_map=device
    )
    disable_dropout(model)
    return model


def load_reference(model_name: str, device: torch.device) -> PreTrainedModel:
    """A frozen copy of the model that the policy started as."""
    return load_policy(model_name, device).requires_grad_(False)


def disable_dropout(model: torch.nn.Module) -> None:
    """Ratios compare two passes over the same tokens; noise in either would look like learning."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a turn: those of the generation config and the tokenizer's own."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    return frozenset(int(token_id) for token_id in ids if token_id is not None)
