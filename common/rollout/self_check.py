"""Whether a model decodes as it computes: what is sampled must be what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from common.errors import UserError
from common.models.log_probs import TokenLogProbs
from common.rollout.decode_batch import DecodeBatch
from common.rollout.generate import evaluation_mode

# Tokens in two rows, and how many of them are decoded.
LENGTHS = (20, 13)
DECODED = 10

# Nats per token, on average. Rounding makes 1e-6 in float32, and 0.03 in bfloat16.
TOLERANCE = 1e-4
TOLERANCE_BFLOAT16 = 0.2
# Two passes of one shape round alike, but for experts, of which each reads other tokens.
TOLERANCE_AHEAD = 1e-5
TOLERANCE_AHEAD_BFLOAT16 = 0.01


@torch.no_grad()
def check_decoding(policy: TokenLogProbs, token_ids: Sequence[int], name: str) -> None:
    """Raise `UserError` for a model whose samples would not have the log-probs that are learned.

    Two prompts of unequal length, made of `token_ids`, are continued side by side with a cache, as
    in sampling; the log-probs must be those of a single pass over both, as in learning. They must
    not depend on what comes later, either. All at temperature 1: a low one multiplies rounding.
    Weights in float32 are computed with in float32, whatever the run does: in bfloat16 rounding
    hides what is wrong.
    """
    is_exact = all(weights.dtype == torch.float32 for weights in policy.model.parameters())
    use_bfloat16 = policy.use_bfloat16 and not is_exact
    policy = TokenLogProbs(policy.model, 1.0, use_bfloat16=use_bfloat16)
    text = list(islice(cycle(token_ids), max(LENGTHS)))
    rows = [text[:length] for length in LENGTHS]
    computed = _computed(policy, rows)
    if not all(bool(torch.isfinite(row).all()) for row in computed):
        raise UserError(
            f"--model-name {name}: its log-probs are not finite (NaN); its weights are damaged or "
            "overflow: take another checkpoint of it" + ("" if is_exact else ", or --dtype float32")
        )
    kind = type(policy.model).__name__
    seen = min(LENGTHS)
    other_end, _ = _computed(policy, [text[:seen] + text[:1] * (len(text) - seen), rows[1]])
    ahead = _distance(computed[0][: seen - 1], other_end[: seen - 1])
    if ahead > (TOLERANCE_AHEAD if is_exact else TOLERANCE_AHEAD_BFLOAT16):
        raise UserError(
            f"--model-name {name}: {kind} is no causal language model: what comes later moves the "
            f"log-probs of earlier tokens by {ahead:.2g} nats; take one that predicts the next "
            "token"
        )
    decoded = _decoded(policy, rows)
    off = _distance(torch.stack(decoded), torch.stack([row[-DECODED:] for row in computed]))
    if off > (TOLERANCE if is_exact else TOLERANCE_BFLOAT16):
        raise UserError(
            f"--model-name {name}: {kind} decodes prompts side by side {off:.2g} nats per token "
            "off its own log-probs, so that another policy would be sampled than learned; "
            "take a model of another architecture"
        )


def _computed(policy: TokenLogProbs, rows: Sequence[list[int]]) -> list[Tensor]:
    """Log-probs of all tokens but the first, a row each, by one forward pass."""
    token_ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    attention = torch.zeros_like(token_ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = torch.tensor(row)
        attention[number, : len(row)] = True
    scored = attention.clone()
    scored[:, 0] = False
    device = policy.model.device
    log_probs, _ = policy(token_ids.to(device), attention.to(device), scored.to(device))
    return [log_probs[number, 1 : len(row)] for number, row in enumerate(rows)]


def _decoded(policy: TokenLogProbs, rows: Sequence[list[int]]) -> list[Tensor]:
    """Log-probs of the last tokens, a row each, by a decode loop."""
    model = policy.model
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=policy.use_bfloat16)
    steps: list[Tensor] = []
    with evaluation_mode(model), autocast:
        batch = DecodeBatch.read(model, [tuple(row[:-DECODED]) for row in rows])
        for place in range(-DECODED, 0):
            tokens = torch.tensor([row[place] for row in rows], device=model.device)
            log_probs = torch.log_softmax(batch.logits.float(), dim=-1)
            steps.append(log_probs.gather(-1, tokens[:, None])[:, 0])
            batch.append(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
    return list(torch.stack(steps, dim=1))


def _distance(some: Tensor, others: Tensor) -> float:
    return float((some - others).abs().mean())
