"""Adapters and the model that they adapt, written as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.models.load import ModelOptions, load_reference, load_tokenizer


def merge(checkpoint: Path, *, trust_remote_code: bool = False) -> Path:
    """Write the whole model beside the checkpoint, in float32; returns its directory.

    Raises `UserError` if it is there already, or if the model that is adapted cannot be loaded,
    and `UntrustedCodeError` if that has code which may not run.
    """
    import peft

    merged = checkpoint.with_name(f"merged_{checkpoint.name}")
    if merged.exists():
        raise UserError(f"{merged}: exists; remove it, or use it as it is")
    base_name = peft.PeftConfig.from_pretrained(str(checkpoint)).base_model_name_or_path
    cpu = torch.device("cpu")
    base = load_reference(ModelOptions(str(base_name), cpu, trust_remote_code=trust_remote_code))
    model: Any = peft.PeftModel.from_pretrained(base, str(checkpoint))
    model.merge_and_unload().save_pretrained(merged)
    tokenizer = load_tokenizer(str(checkpoint), trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(merged)
    return merged
