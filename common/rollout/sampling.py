"""Sampling by counters: what a conversation samples depends on who it is, not on when it runs.

Every conversation draws its uniforms from a Philox generator whose key and counter name the
conversation, and a token is the inverse of its distribution's cumulative sum at that uniform. The
batch a conversation shares, the number of processes and a resume therefore change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# The `step` of evaluation streams: fixed, and out of reach of any training step.
EVALUATION_STEP = 2**62


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float
    top_p: float


@dataclass(frozen=True)
class StreamKey:
    """Names one random stream: the turn of a group member's conversation about a task in a step."""

    seed: int
    step: int
    task_id: int
    member: int
    turn: int = 0

    def uniforms(self, count: int) -> np.ndarray:
        """The first `count` numbers of the stream, in [0, 1), float64."""
        philox = np.random.Philox(
            key=np.array([self.seed, self.step], dtype=np.uint64),
            counter=np.array([0, self.turn, self.member, self.task_id], dtype=np.uint64),
        )
        return np.random.Generator(philox).random(count)


def sample_tokens(
    logits: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"], sampling: Sampling
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """One token per row and its log-probability under softmax(logits / temperature).

    The log-probability is that of the whole distribution, also when `top_p` restricts the choice,
    because the learner knows nothing of `top_p`. Temperature 0 takes the likeliest token. Of logits
    with NaN or infinity among them both are without meaning, and the log-probability is NaN.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature > 0:
        scaled = scaled / sampling.temperature
    log_probs = torch.log_softmax(scaled, dim=-1)
    if sampling.temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        tokens = _inverse_cdf(_nucleus(log_probs.exp(), sampling.top_p), uniforms)
        # Sums of NaN exceed nothing: the token would be the one after the last.
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]


def _inverse_cdf(
    probs: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """The first token whose cumulative sum exceeds uniform x total; never one of weight 0."""
    # A float32 sum over 150,000 tokens errs by more than a rare token's probability.
    exact = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(exact).cumsum(dim=-1)
    total = cumulative[:, -1:]
    targets = torch.minimum(
        uniforms.to(exact)[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def _nucleus(probs: Float[Tensor, "rows vocab"], top_p: float) -> Float[Tensor, "rows vocab"]:
    """Zero all but the likeliest tokens that together reach `top_p`. arXiv 1904.09751."""
    if top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probs).scatter(-1, order, ordered.where(before < top_p, 0.0))
