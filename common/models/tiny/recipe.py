"""From nothing to a small instruction-tuned model: the recipe that all bundled models share.

A bundled model is this recipe with data of its own: any iterator of conversations, each a list of
messages of which the assistant's are taught. The matrices are trained with Muon and the rest with
AdamW (AdamW alone needs many times the steps to learn to copy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.models.tiny.tokenizer import END_ID, END_TOKEN, PAD_ID
from common.tools.calls import closing_tag

Conversation = list[dict[str, str]]

_IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to fine-tune."""

    steps: int
    batch_size: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    final_lr_fraction: float = 0.05
    max_grad_norm: float = 1.0


def build_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A stock Qwen3 of 0.87 million parameters (its normalised queries and keys learn to copy)."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=352,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterator[Conversation],
    recipe: Recipe,
) -> None:
    """Teach the assistant's part of the conversations, in place; shows a progress bar."""
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    ]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    optimizers = (
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_cosine(recipe))
        for optimizer in optimizers
    ]
    model.train()
    for _ in track(range(recipe.steps), description="fine-tuning"):
        batch = [encode(tokenizer, next(conversations)) for _ in range(recipe.batch_size)]
        token_ids, labels = collate(batch)
        loss = model(input_ids=token_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def encode(
    tokenizer: PreTrainedTokenizerFast, conversation: Conversation
) -> tuple[list[int], list[int]]:
    """Token ids and labels; only the assistant's turns and their end tokens are taught.

    A turn that ends in a tool call ends where the call does: what follows is not the assistant's.
    """
    token_ids: list[int] = []
    labels: list[int] = []
    read = ""
    for number, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(
            conversation[:number], add_generation_prompt=True, tokenize=False
        )
        turn = message["content"]
        if not turn.endswith(closing_tag("tags")):
            turn += END_TOKEN
        given = tokenizer(str(prompt).removeprefix(read), add_special_tokens=False).input_ids
        taught = tokenizer(turn, add_special_tokens=False).input_ids
        token_ids += given + taught
        labels += [_IGNORED] * len(given) + taught
        read = f"{prompt}{turn}"
    return token_ids, labels


def collate(batch: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-pad to the longest: causal attention never looks at what comes after."""
    length = max(len(token_ids) for token_ids, _ in batch)
    rows = [ids + [PAD_ID] * (length - len(ids)) for ids, _ in batch]
    labels = [row + [_IGNORED] * (length - len(row)) for _, row in batch]
    return torch.tensor(rows), torch.tensor(labels)


def _warmup_then_cosine(recipe: Recipe) -> Callable[[int], float]:
    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        decayed = recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * cosine
        return min(1.0, (step + 1) / recipe.warmup_steps) * decayed

    return factor
