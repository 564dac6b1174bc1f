"""Token ids in, token ids out: a batched decode loop over any causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import transformers
from torch import Tensor

from common.rollout.sampling import Sampling, StreamKey, sample_tokens

# Dropping finished rows copies the cache of the others, so it waits until this share has finished.
COMPACT_FRACTION = 1 / 8


@dataclass(frozen=True)
class Request:
    """A prompt to continue with the random numbers of a stream."""

    prompt_ids: tuple[int, ...]
    stream: StreamKey


@dataclass
class Completion:
    """The tokens sampled for a request, the stop token included, and why they end.

    `stop_reason` is `stop` (a stop token), `length` (`max_new_tokens`) or `context` (the sequence
    would grow beyond the longest length allowed).
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stop_reason: str = ""


class Interrupted(Exception):
    """Somebody asked the run to stop while it was decoding; what was decoded is dropped."""


@runtime_checkable
class Generator(Protocol):
    """Anything that continues prompts."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]: ...


@contextmanager
def evaluation_mode(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Switch off what transformers does in training mode only, gradient checkpointing above all."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LocalGenerator:
    """Decodes with the policy itself, all requests in one batch.

    A prompt that several requests share is read once and its cache repeated. Rows that have
    finished leave the batch.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        stop_ids: frozenset[int],
        max_length: int,
        *,
        use_bfloat16: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`interrupted` is asked before every token; once it says so, `Interrupted` is raised."""
        self.model = model
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.use_bfloat16 = use_bfloat16
        self.interrupted = interrupted

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        completions = [Completion() for _ in requests]
        budgets = [
            min(sampling.max_new_tokens, self.max_length - len(request.prompt_ids))
            for request in requests
        ]
        rows = [number for number, budget in enumerate(budgets) if budget > 0]
        for number in set(range(len(requests))).difference(rows):
            completions[number].stop_reason = "context"
        if rows:
            autocast = torch.autocast(
                self.model.device.type, torch.bfloat16, enabled=self.use_bfloat16
            )
            with evaluation_mode(self.model), autocast:
                self._decode(requests, completions, budgets, rows, sampling)
        return completions

    def _decode(
        self,
        requests: Sequence[Request],
        completions: list[Completion],
        budgets: Sequence[int],
        rows: list[int],
        sampling: Sampling,
    ) -> None:
        device = self.model.device
        logits, attention, cache = self._prefill([requests[row].prompt_ids for row in rows])
        positions = attention.sum(dim=-1)
        uniforms = torch.from_numpy(
            np.stack([requests[row].stream.uniforms(max(budgets)) for row in rows])
        )
        uniforms = uniforms.to(device, torch.float32 if device.type == "mps" else torch.float64)
        finished: set[int] = set()
        for step in range(max(budgets)):
            if self.interrupted():
                raise Interrupted
            tokens, log_probs = sample_tokens(logits, uniforms[:, step], sampling)
            for index, (token, log_prob) in enumerate(
                zip(tokens.tolist(), log_probs.tolist(), strict=True)
            ):
                row = rows[index]
                if row in finished:
                    continue
                completion = completions[row]
                completion.token_ids.append(token)
                completion.log_probs.append(log_prob)
                if token in self.stop_ids:
                    completion.stop_reason = "stop"
                elif step + 1 == budgets[row]:
                    within = step + 1 == sampling.max_new_tokens
                    completion.stop_reason = "length" if within else "context"
                else:
                    continue
                finished.add(row)
            kept = [index for index, row in enumerate(rows) if row not in finished]
            if not kept:
                return
            if len(rows) - len(kept) >= COMPACT_FRACTION * len(rows):
                rows = [rows[index] for index in kept]
                finished.clear()
                keep = torch.tensor(kept, device=device)
                cache.reorder_cache(keep)  # pyright: ignore[reportArgumentType]
                attention, positions, uniforms, tokens = (
                    attention[keep],
                    positions[keep],
                    uniforms[keep],
                    tokens[keep],
                )
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=-1)
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=attention,
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            positions = positions + 1

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, Tensor, transformers.Cache]:
        """Read each distinct prompt once; returns logits, attention mask and cache per row."""
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        length = max(len(prompt) for prompt in distinct)
        padded = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in distinct])
        lengths = torch.tensor([[len(prompt)] for prompt in distinct])
        attention = (torch.arange(length) >= length - lengths).long().to(self.model.device)
        cache = transformers.DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=padded.to(self.model.device),
            attention_mask=attention,
            position_ids=(attention.cumsum(dim=-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        row_prompt = torch.tensor([distinct[prompt] for prompt in prompts], device=logits.device)
        cache.reorder_cache(row_prompt)  # pyright: ignore[reportArgumentType]
        return logits[row_prompt], attention[row_prompt], cache
