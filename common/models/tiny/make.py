"""Make the model behind `--model-name tiny` from nothing (about ten minutes on two cores).

python -m common.models.tiny.make
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from common.models.tiny.arithmetic import ArithmeticStudent
from common.models.tiny.corpus import corpus
from common.models.tiny.recipe import Conversation, Recipe, build_model, fine_tune
from common.models.tiny.tokenizer import END_ID, PAD_ID, build_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
SEED = 1

_CARD = """\
---
license: apache-2.0
---
# {name}

{parameters:,} parameters (Qwen3 architecture, 512-token BPE over printable ASCII), trained from
random weights on synthetic sums by `make tiny-model`; no third-party data. It answers questions
such as "What is 3+5-2?" and is unreliable on purpose: a third of the time it thinks step by step, a
third of the time it guesses, a third of the time it forgets the answer tags. It is a starting point
for reinforcement learning on a laptop and of no other use.
"""


def arithmetic_conversations(seed: int) -> Iterator[Conversation]:
    student, rng = ArithmeticStudent(), random.Random(seed)
    while True:
        yield student.conversation(rng)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Write weights (bfloat16), tokenizer, generation config and model card."""
    folder = WEIGHTS / name
    model.generation_config = GenerationConfig(
        eos_token_id=END_ID, pad_token_id=PAD_ID, do_sample=True
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(folder)
    card = _CARD.format(name=name, parameters=model.num_parameters())
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(corpus())
    model = build_model(tokenizer)
    fine_tune(model, tokenizer, arithmetic_conversations(SEED), Recipe(steps=1400))
    save(model, tokenizer, "tiny")


if __name__ == "__main__":
    main()
