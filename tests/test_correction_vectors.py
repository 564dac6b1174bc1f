"""`correction.json` is what the slow loops write, the training code reproduces it, and none of the
wrong corrections in `WRONG` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals, masked_mean, masked_sum
from common.algo.correction import CORRECTIONS
from common.algo.objective import Objective
from common.algo.surrogate import token_log_ratio
from common.algo.tokens import TokenBatch
from tests.slow_corrections import BOUNDS
from tests.test_vectors import agrees, read, tensor, text_of
from tests.variants import VARIANTS
from tests.vectors.make import CORRECTION, all_vectors, as_text

Correction = Callable[[TokenBatch], Tensor]
GRPO = VARIANTS["grpo"]


def reproduces(name: str, correction: Correction, objective: Objective = GRPO) -> bool:
    """Whether weights, loss and gradient are those of the file, and all weights are finite."""
    file = read(CORRECTION)
    (case,) = (case for case in file["cases"] if case["name"] == name)
    mask = torch.tensor(file["mask"], dtype=torch.bool)
    totals = BatchTotals(file["sequences_in_optimizer_batch"], file["tokens_in_optimizer_batch"])
    log_probs = tensor(file["log_probs"]).requires_grad_()
    tokens = TokenBatch(
        log_probs,
        tensor(file["log_probs_old"]),
        tensor(file["log_probs_sampler"]),
        None,
        torch.tensor(file["advantages"], dtype=torch.float64)[:, None].expand(mask.shape),
        mask,
        totals,
    )
    log_ratio = token_log_ratio(log_probs, tokens.log_probs_old, mask)
    weights = correction(tokens)
    loss = objective.aggregate(weights * objective.surrogate(log_ratio, tokens)[0], mask, totals)
    loss.backward()
    assert log_probs.grad is not None
    found = (torch.where(mask, weights, 0.0), loss, log_probs.grad)
    wanted = (case["weights"], case["loss"], case["gradient"])
    agree = all(agrees(f, w, file["tolerance"]) for f, w in zip(found, wanted, strict=True))
    return agree and bool(weights.isfinite().all())


def test_the_file_is_what_the_slow_loops_write():
    assert text_of(CORRECTION) == as_text(all_vectors()[CORRECTION])


def test_the_file_has_the_bounds_that_are_usual_here():
    assert {name: function.keywords for name, function in CORRECTIONS.items()} == BOUNDS


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_training_code_reproduces_the_file(name):
    assert reproduces(name, CORRECTIONS[name])


def log_weights(tokens: TokenBatch) -> Tensor:
    return torch.where(tokens.mask, tokens.log_probs_old - tokens.log_probs_sampler, 0.0)


def within(judged: Tensor, weights: Tensor, low: float, high: float) -> Tensor:
    return torch.where((judged < low) | (judged > high), 0.0, weights)


def inverted(tokens: TokenBatch) -> Tensor:
    return (-log_weights(tokens)).exp().clamp(max=2.0)


def with_gradient(tokens: TokenBatch) -> Tensor:
    current = torch.where(tokens.mask, tokens.log_probs - tokens.log_probs_sampler, 0.0)
    weights = CORRECTIONS["token_truncated"](tokens)
    return weights * (current - current.detach()).exp()


def of_the_policy_as_it_is_now(tokens: TokenBatch) -> Tensor:
    return CORRECTIONS["token_truncated"](replace(tokens, log_probs_old=tokens.log_probs.detach()))


def times_mask(tokens: TokenBatch) -> Tensor:
    weights = (tokens.log_probs_old - tokens.log_probs_sampler).exp() * tokens.mask
    return weights.clamp(max=2.0)


def bounded_below_too(tokens: TokenBatch) -> Tensor:
    return log_weights(tokens).exp().clamp(0.5, 2.0)


def dropped_above_the_cap(tokens: TokenBatch) -> Tensor:
    weights = log_weights(tokens).exp()
    return within(weights, weights, 0.0, 2.0)


def judged_after_a_cap(tokens: TokenBatch) -> Tensor:
    weights = log_weights(tokens).exp().clamp(max=5.0)
    return within(weights, weights, 0.5, 5.0)


def bounds_on_the_log(tokens: TokenBatch) -> Tensor:
    return within(log_weights(tokens), log_weights(tokens).exp(), 0.5, 5.0)


def kept_at_the_bounds(tokens: TokenBatch) -> Tensor:
    return log_weights(tokens).exp().clamp(0.5, 5.0)


def kept_with_weight_one(tokens: TokenBatch) -> Tensor:
    return (CORRECTIONS["token_masked"](tokens) > 0).double()


def product_judged(tokens: TokenBatch) -> Tensor:
    total = masked_sum(log_weights(tokens), tokens.mask)[:, None]
    return within(total.exp(), log_weights(tokens).exp(), 0.99, 1.01)


def arithmetic_mean_judged(tokens: TokenBatch) -> Tensor:
    mean = masked_mean(log_weights(tokens).exp(), tokens.mask)[:, None]
    return within(mean, log_weights(tokens).exp(), 0.99, 1.01)


def mean_over_the_width_judged(tokens: TokenBatch) -> Tensor:
    mean = log_weights(tokens).mean(-1, keepdim=True)
    return within(mean.exp(), log_weights(tokens).exp(), 0.99, 1.01)


def mean_as_the_weight(tokens: TokenBatch) -> Tensor:
    mean = masked_mean(log_weights(tokens), tokens.mask).exp()[:, None].expand(tokens.mask.shape)
    return within(mean, mean, 0.99, 1.01)


def mean_for_the_product(tokens: TokenBatch) -> Tensor:
    mean = masked_mean(log_weights(tokens), tokens.mask).exp()[:, None]
    return mean.clamp(max=2.0).expand(tokens.mask.shape)


def product_of_capped(tokens: TokenBatch) -> Tensor:
    capped = log_weights(tokens).exp().clamp(max=2.0)
    return capped.prod(-1, keepdim=True).expand(tokens.mask.shape)


def without_a_lower_bound(tokens: TokenBatch) -> Tensor:
    return CORRECTIONS["sequence_masked"](tokens, low=0.0)


def shifted(tokens: TokenBatch, *, old: Tensor, sign: float = 1.0, total: bool = False) -> Tensor:
    reduce = masked_sum if total else masked_mean
    shift = sign * reduce(old - tokens.log_probs.detach(), tokens.mask)[:, None]
    return torch.where((tokens.advantages < 0) & (shift > 0.5), 0.0, torch.ones_like(shift))


def whatever_the_sign(tokens: TokenBatch) -> Tensor:
    return CORRECTIONS["opsm"](replace(tokens, advantages=-tokens.advantages.abs()))


def against_the_old_policy(tokens: TokenBatch) -> Tensor:
    return shifted(tokens, old=tokens.log_probs_old)


def the_other_way(tokens: TokenBatch) -> Tensor:
    return shifted(tokens, old=tokens.log_probs_sampler, sign=-1.0)


def summed(tokens: TokenBatch) -> Tensor:
    return shifted(tokens, old=tokens.log_probs_sampler, total=True)


WRONG: dict[str, tuple[str, Correction]] = {
    "mu / pi_old": ("token_truncated", inverted),
    "a weight with a gradient": ("token_truncated", with_gradient),
    "pi / mu": ("token_truncated", of_the_policy_as_it_is_now),
    "a mask that multiplies": ("token_truncated", times_mask),
    "a lower bound": ("token_truncated", bounded_below_too),
    "dropped above the cap": ("token_truncated", dropped_above_the_cap),
    "judged after a cap": ("token_masked", judged_after_a_cap),
    "bounds on the log": ("token_masked", bounds_on_the_log),
    "kept at the bounds": ("token_masked", kept_at_the_bounds),
    "weight 1 on what is kept": ("token_masked", kept_with_weight_one),
    "a mean for the product": ("sequence_truncated", mean_for_the_product),
    "a product of what is capped": ("sequence_truncated", product_of_capped),
    "no lower bound": ("sequence_masked", without_a_lower_bound),
    "the product judged": ("sequence_geometric", product_judged),
    "an arithmetic mean judged": ("sequence_geometric", arithmetic_mean_judged),
    "a mean over the width judged": ("sequence_geometric", mean_over_the_width_judged),
    "the mean as the weight": ("sequence_geometric", mean_as_the_weight),
    "whatever the sign of A": ("opsm", whatever_the_sign),
    "against the old policy": ("opsm", against_the_old_policy),
    "log(pi / mu)": ("opsm", the_other_way),
    "a sum of log(mu / pi)": ("opsm", summed),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_correction_does_not_reproduce_the_file(wrong):
    assert not reproduces(*WRONG[wrong])


@pytest.mark.parametrize("name", sorted(name for name in CORRECTIONS if "truncated" not in name))
def test_what_leaves_the_denominator_with_its_tokens_does_not_reproduce_it(name):
    correction = CORRECTIONS[name]

    def aggregate(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
        kept = mask & (per_token != 0)
        dropped = int((mask.any(-1) & ~kept.any(-1)).sum())
        return GRPO.aggregate(per_token, kept, BatchTotals(totals.sequences - dropped, 1))

    assert not reproduces(name, correction, replace(GRPO, aggregate=aggregate))
