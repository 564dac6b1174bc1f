"""Sampling by counters: what a conversation samples depends on who it is, not on when it runs.

Every conversation draws its uniforms from a Philox generator whose key and counter name the
conversation, and a token is the inverse of its distribution's cumulative sum at that uniform. The
batch a conversation shares, the number of processes and a resume therefore change nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.models.kept_sets import KeptSets

# The `step` of evaluation streams: fixed, and out of reach of any training step.
EVALUATION_STEP = 2**62

# Where something restricts the sampler but --top-k does not, it keeps at most so many tokens: what
# is kept of each sampled token takes memory until it is learned from.
MOST_KEPT = 512


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and from which of them.

    Of softmax(logits / temperature) the `top_k` likeliest are kept, of these the likeliest that
    together reach `top_p` of their sum, and of these all that are at least `min_p` times as likely
    as the likeliest: the order of transformers. What is kept is renormalised. Of tokens that are
    equally likely, that of the lower id comes first.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 for `MOST_KEPT` where another one restricts, else for all."""
    min_p: float = 0.0

    @property
    def restricts(self) -> bool:
        """Whether tokens are left out. At temperature 0 all but one are, and there is no draw."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def most_kept(self) -> int:
        """Tokens that a restricted sampler keeps at most."""
        return self.top_k or MOST_KEPT

    def describe(self) -> str:
        """What a restricted sampler keeps, in a line."""
        steps = [f"the {self.most_kept} likeliest (--top-k)"]
        if self.top_p < 1:
            steps.append(f"of these those that reach {self.top_p:g} of their sum (--top-p)")
        if self.min_p > 0:
            likely = f"at least {self.min_p:g} times as likely as the first"
            steps.append(f"of these those {likely} (--min-p)")
        return f"each token is sampled from {', '.join(steps)}; learner and reference see the same"


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
        return np.random.Generator(self._philox()).random(count)

    @property
    def number(self) -> int:
        """63 bits of the stream, for an engine that takes a seed."""
        return self._philox().random_raw() >> 1

    def _philox(self) -> np.random.Philox:
        return np.random.Philox(
            key=np.array([self.seed, self.step], dtype=np.uint64),
            counter=np.array([0, self.turn, self.member, self.task_id], dtype=np.uint64),
        )


def sample_tokens(
    logits: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"], sampling: Sampling
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"], KeptSets | None]:
    """One token per row, its log-probability, and what it was chosen from if that is restricted.

    The log-probability is that of the distribution that was sampled from: softmax(logits /
    temperature), renormalised over what is kept. Temperature 0 takes the likeliest token, and says
    its log-probability at temperature 1. Of logits with NaN or infinity among them all is without
    meaning, and the log-probability is NaN.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature > 0:
        scaled = scaled / sampling.temperature
    if sampling.restricts:
        token_ids, kept, scaled = _restrict(scaled, sampling)
        places, log_probs = _draw(scaled, uniforms)
        sets = KeptSets(token_ids[kept].int(), kept.sum(dim=-1).int())
        return token_ids.gather(-1, places[:, None])[:, 0], log_probs, sets
    if sampling.temperature > 0:
        return *_draw(scaled, uniforms), None
    log_probs = torch.log_softmax(scaled, dim=-1)
    tokens = log_probs.argmax(dim=-1)
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0], None


def _draw(
    scaled: Float[Tensor, "rows choices"], uniforms: Float[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    log_probs = torch.log_softmax(scaled, dim=-1)
    # Sums of NaN exceed nothing: the choice would be the one after the last.
    places = _inverse_cdf(log_probs.exp(), uniforms).clamp(max=scaled.shape[-1] - 1)
    return places, log_probs.gather(-1, places[:, None])[:, 0]


def _inverse_cdf(
    probs: Float[Tensor, "rows choices"], uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """The first choice whose cumulative sum exceeds uniform x total; never one of weight 0."""
    # A float32 sum over 150,000 tokens errs by more than a rare token's probability.
    exact = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(exact).cumsum(dim=-1)
    total = cumulative[:, -1:]
    targets = torch.minimum(
        uniforms.to(exact)[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def _restrict(
    scaled: Float[Tensor, "rows vocab"], sampling: Sampling
) -> tuple[
    Int[Tensor, "rows choices"], Bool[Tensor, "rows choices"], Float[Tensor, "rows choices"]
]:
    """The likeliest tokens by ascending id, which of them are kept, and their logits.

    Those of tokens that are not kept are -inf. top_p: arXiv 1904.09751, min_p: arXiv 2407.01082.
    """
    # A row with NaN is to have no finite log-prob; as infinity it has none, and can be sorted.
    scaled = scaled.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    token_ids = _likeliest(scaled, min(sampling.most_kept, scaled.shape[-1]))
    scaled = scaled.gather(-1, token_ids)
    kept = scaled > -torch.inf
    if sampling.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        kept &= torch.empty_like(kept).scatter(
            -1, order, probs.cumsum(dim=-1) - probs < sampling.top_p
        )
    if sampling.min_p > 0:
        kept &= scaled >= scaled.amax(dim=-1, keepdim=True) + math.log(sampling.min_p)
    return token_ids, kept, scaled.masked_fill(~kept, -torch.inf)


def _likeliest(scaled: Float[Tensor, "rows vocab"], count: int) -> Int[Tensor, "rows count"]:
    """The ids of the highest logits, ascending; at the border those of the lower ids are taken."""
    border = scaled.topk(count).values[:, -1:]
    above, level = scaled > border, scaled == border
    left = count - above.sum(dim=-1, keepdim=True)
    taken = above | (level & (level.cumsum(dim=-1, dtype=torch.int32) <= left))
    return taken.nonzero()[:, 1].view(-1, count)
