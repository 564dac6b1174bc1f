"""Write a run's model with its adapters merged in: `make merge-lora RUN=<run or checkpoint>`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.models.load import ModelOptions, load_reference, load_tokenizer

_ADAPTERS = "adapter_config.json"


def find_adapters(run: Path) -> Path:
    """The checkpoint itself, or the newest of a run. Raises `UserError` if it has no adapters."""
    if not run.is_dir():
        raise UserError(f"RUN={run}: no such directory; give a run or one of its checkpoints")
    steps = sorted(run.glob("checkpoints/step_*"), key=lambda path: int(path.name.split("_")[1]))
    checkpoint = [run, *steps][-1]
    if (checkpoint / _ADAPTERS).is_file():
        return checkpoint
    if (checkpoint / "model.safetensors").is_file():
        raise UserError(f"RUN={run}: {checkpoint.name} is a whole model already; use it as it is")
    raise UserError(f"RUN={run}: it holds no adapters; give a run that trained with --lora-rank")


def merge(checkpoint: Path) -> Path:
    """Write the whole model beside the checkpoint, in float32; returns its directory.

    Raises `UserError` if it is there already, or if the model that is adapted cannot be loaded.
    """
    import peft

    merged = checkpoint.with_name(f"merged_{checkpoint.name}")
    if merged.exists():
        raise UserError(f"{merged}: exists; remove it, or use it as it is")
    base_name = peft.PeftConfig.from_pretrained(str(checkpoint)).base_model_name_or_path
    base = load_reference(ModelOptions(str(base_name), torch.device("cpu")))
    model: Any = peft.PeftModel.from_pretrained(base, str(checkpoint))
    model.merge_and_unload().save_pretrained(merged)
    load_tokenizer(str(checkpoint)).save_pretrained(merged)
    return merged


def main(arguments: list[str]) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError("make merge-lora: needs peft; run pip install -e '.[lora]'")
    if len(arguments) != 1:
        raise UserError("RUN: missing; run make merge-lora RUN=<run directory or checkpoint>")
    merged = merge(find_adapters(Path(arguments[0])))
    sys.stdout.write(f"merged model: {merged}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
