"""Models of published shapes with random weights, which cost what the trained ones cost.

python -m benchmarks.gpu.random_models DIRECTORY 0.5B 1.5B
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from common.models.load import load_tokenizer
from common.models.tiny.tokenizer import END_ID, PAD_ID

# Standard deviation of the weights, and of the logits that they are to give. Trained models say
# about as much as that: an entropy of 4 of at most 11.9 nats, and logits up to 17.
WEIGHT_DEVIATION = 0.02
LOGIT_DEVIATION = 4.0


@dataclass(frozen=True)
class Shape:
    """Of a Qwen2 model."""

    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate_size: int
    vocabulary: int = 151_936
    tied: bool = True


# As published for Qwen2.5; `small` is for trying this on a CPU.
SHAPES = {
    "small": Shape(64, 2, 4, 2, 128, vocabulary=4096),
    "0.5B": Shape(896, 24, 14, 2, 4864),
    "1.5B": Shape(1536, 28, 12, 2, 8960),
    "3B": Shape(2048, 36, 16, 2, 11_008),
    "7B": Shape(3584, 28, 28, 4, 18_944, vocabulary=152_064, tied=False),
}


def make_model(shape: Shape, directory: Path) -> int:
    """Save a model with random weights in bfloat16 and the bundled tokenizer; returns its size.

    Ids beyond that tokenizer's have no text, so completions are as long as they may be and say
    nothing.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        initializer_range=WEIGHT_DEVIATION,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.no_grad():
        model = Qwen2ForCausalLM(config).bfloat16()
        deviation = WEIGHT_DEVIATION * math.sqrt(shape.hidden_size)
        model.model.norm.weight.fill_(LOGIT_DEVIATION / deviation)
    model.save_pretrained(directory)
    load_tokenizer("tiny").save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def main(directory: Path, names: list[str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for name in names:
        started = time.perf_counter()
        count = make_model(SHAPES[name], directory / name)
        console.out(f"{name}: {count:,} parameters, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
