"""SmolLM2-135M-Instruct whose turns end at a token that is all but never sampled.

So completions are as long as they may be, on every side of a comparison.
"""

from __future__ import annotations

from pathlib import Path

from common.models.smollm2 import read_smollm2

END = "<jupyter_script>"


def make_smollm2(directory: Path) -> None:
    """Write it as a directory that `from_pretrained` reads."""
    model, tokenizer = read_smollm2()
    tokenizer.eos_token = END
    # Only a reply ends with it; what the model is told is written as it was trained to read it.
    written = "'<|im_end|>' + '\n'"
    assert written in tokenizer.chat_template
    ends = f"('{END}' if message['role'] == 'assistant' else '<|im_end|>') + '\n'"
    tokenizer.chat_template = tokenizer.chat_template.replace(written, ends)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
