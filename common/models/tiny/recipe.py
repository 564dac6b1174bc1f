"""From nothing to a small instruction-tuned model: the recipe that all bundled models share.

A bundled model is this recipe with data of its own: any iterator of conversations, each a list of
messages of which the assistant's are taught. The matrices are trained with Muon and the rest with
AdamW (AdamW alone needs many times the steps to learn to copy).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.models.tiny.tokenizer import END_ID, END_TOKEN, PAD_ID
from common.tools.calls import closing_tag

Conversation = list[dict[str, str]]

Encoded = tuple[list[int], list[bool]]

# So many conversations are sorted by length before they are put into batches.
_POOL = 256


@runtime_checkable
class Student(Protocol):
    """What a model is to become: conversations as it would hold them."""

    def conversation(self, rng: random.Random) -> Conversation: ...


def conversations(student: Student, rng: random.Random) -> Iterator[Conversation]:
    while True:
        yield student.conversation(rng)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to fine-tune."""

    steps: int
    batch_size: int = 64
    batch_tokens: int | None = None
    """If set, a batch is as many conversations of about one length as have so many tokens, and not
    `batch_size`."""
    context_weight: float = 0.0
    """Weight of the tokens that the assistant reads; those that it writes have 1."""
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    final_lr_fraction: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Lesson:
    """An optimizer step of fine-tuning."""

    model: PreTrainedModel
    loss: float
    grad_norm: float
    """Before it is clipped, which the gradients already are."""
    learning_rate: float
    """Muon's."""
    token_ids: list[int]
    """A conversation of its batch."""


Watch = Callable[[Lesson], None]


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
    watch: Watch = lambda lesson: None,
) -> None:
    """Teach the assistant's part of the conversations, in place; shows a progress bar.

    `watch` sees every optimizer step just before it is taken, with the gradients in place.
    """
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
    batches = grouped((encode(tokenizer, conversation) for conversation in conversations), recipe)
    for _ in track(range(recipe.steps), description="fine-tuning"):
        batch = next(batches)
        loss = weighted_loss(model, batch, recipe.context_weight)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        rate = schedules[0].get_last_lr()[0]
        watch(Lesson(model, loss.item(), norm.item(), float(rate), batch[0][0]))
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Encoded:
    """Token ids, and which of them are the assistant's: its turns and their end tokens.

    A turn that ends in a tool call ends where the call does: what follows is not the assistant's.
    """
    token_ids: list[int] = []
    taught: list[bool] = []
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
        for text, is_taught in ((str(prompt).removeprefix(read), False), (turn, True)):
            added = tokenizer(text, add_special_tokens=False).input_ids
            token_ids += added
            taught += [is_taught] * len(added)
        read = f"{prompt}{turn}"
    return token_ids, taught


def collate(batch: Sequence[Encoded], context_weight: float) -> tuple[Tensor, Tensor]:
    """Token ids and their weights in the loss, both (B, T), right-padded to the longest.

    Causal attention never looks at the padding, which comes after.
    """
    length = max(len(token_ids) for token_ids, _ in batch)
    rows = [token_ids + [PAD_ID] * (length - len(token_ids)) for token_ids, _ in batch]
    weights = [
        [1.0 if is_taught else context_weight for is_taught in taught]
        + [0.0] * (length - len(taught))
        for _, taught in batch
    ]
    return torch.tensor(rows), torch.tensor(weights)


def weighted_loss(
    model: PreTrainedModel, batch: Sequence[Encoded], context_weight: float
) -> Tensor:
    """The weighted mean of the cross-entropy of the next token."""
    token_ids, weights = collate(batch, context_weight)
    logits = model(input_ids=token_ids[:, :-1]).logits
    per_token = cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (per_token * weights).sum() / weights.sum()


def grouped(encoded: Iterator[Encoded], recipe: Recipe) -> Iterator[list[Encoded]]:
    """Batches without end; empty ones once the conversations have ended."""
    if recipe.batch_tokens is None:
        while True:
            yield list(islice(encoded, recipe.batch_size))
    shuffle = random.Random(0)
    while True:
        batches: list[list[Encoded]] = [[]]
        for one in sorted(islice(encoded, _POOL), key=lambda one: len(one[0])):
            if batches[-1] and (len(batches[-1]) + 1) * len(one[0]) > recipe.batch_tokens:
                batches.append([])
            batches[-1].append(one)
        shuffle.shuffle(batches)
        yield from batches


def _warmup_then_cosine(recipe: Recipe) -> Callable[[int], float]:
    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        decayed = recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * cosine
        return min(1.0, (step + 1) / recipe.warmup_steps) * decayed

    return factor
