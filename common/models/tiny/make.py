"""How the bundled models are made: `tiny` from nothing, each of the others from the one before it.

On two cores it takes minutes, for `tiny-search` twenty.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from common.models.tiny.arithmetic import ArithmeticStudent
from common.models.tiny.calculator import CalculatorStudent
from common.models.tiny.recipe import Recipe, Watch, build_model, conversations, fine_tune
from common.models.tiny.search import UNRELIABLE, lessons
from common.models.tiny.tokenizer import END_ID, PAD_ID

WEIGHTS = Path(__file__).parent / "weights"
SEED = 1

_CARD = """\
---
license: apache-2.0
---
# {name}

{parameters:,} parameters (Qwen3 architecture, 512-token BPE over printable ASCII), trained from
random weights on synthetic conversations by `make tiny-model`; no third-party data. {about}
It is a starting point for reinforcement learning on a laptop and of no other use.
"""
_ABOUT = {
    "tiny": """It answers questions such as "What is 3+5-2?" and is unreliable on purpose: a third
of the time it thinks step by step, a third of the time it guesses, a third of the time it forgets
the answer tags.""",
    "tiny-calculator": """It answers questions such as "How much is 347 times 82?" with a call of a
calculator, and is unreliable on purpose: a third of the time it calls well, a third of the time it
misuses or misspells the call, a third of the time it answers from the head.""",
    "tiny-search": """It answers questions such as "What is the capital of Peru?" with a search for
documents, and is unreliable on purpose: about half of the time it answers from the head, and when
it searches, it is at times for the wrong thing, or it answers with another fact that it has read,
or in a whole sentence. It learned to read from made-up things alone.""",
}


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Write weights (bfloat16), tokenizer, generation config and model card."""
    folder = WEIGHTS / name
    model.generation_config = GenerationConfig(
        eos_token_id=END_ID, pad_token_id=PAD_ID, do_sample=True
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(folder)
    card = _CARD.format(name=name, parameters=model.num_parameters(), about=_ABOUT[name])
    (folder / "README.md").write_text(card, encoding="utf-8")


def make_tiny(tokenizer: PreTrainedTokenizerFast, watch: Watch) -> PreTrainedModel:
    model = build_model(tokenizer)
    data = conversations(ArithmeticStudent(), random.Random(SEED))
    fine_tune(model, tokenizer, data, Recipe(steps=1400), watch)
    return model


def make_tiny_calculator(tokenizer: PreTrainedTokenizerFast, watch: Watch) -> PreTrainedModel:
    """The same recipe, continued: what `tiny` knows of digits is a start."""
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "tiny", dtype=torch.float32)
    data = conversations(CalculatorStudent(), random.Random(SEED))
    fine_tune(model, tokenizer, data, Recipe(steps=600), watch)
    return model


def make_tiny_search(tokenizer: PreTrainedTokenizerFast, watch: Watch) -> PreTrainedModel:
    """First the skill, which comes late and at once, then habits that are unreliable."""
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "tiny-calculator", dtype=torch.float32)
    skill = Recipe(steps=5500, batch_tokens=2500, context_weight=0.1)
    fine_tune(model, tokenizer, lessons(random.Random(SEED)), skill, watch)
    habits = Recipe(steps=150, batch_size=24, muon_lr=0.004, adamw_lr=5e-4, warmup_steps=20)
    data = conversations(UNRELIABLE, random.Random(SEED))
    fine_tune(model, tokenizer, data, habits, watch)
    return model


MAKERS: dict[str, Callable[[PreTrainedTokenizerFast, Watch], PreTrainedModel]] = {
    "tiny": make_tiny,
    "tiny-calculator": make_tiny_calculator,
    "tiny-search": make_tiny_search,
}
