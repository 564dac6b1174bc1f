"""What holds of every row, under every correction that it takes and every KL penalty.

Each test goes through all of them on fixed random micro-batches, side by side; the loss is put
together as in the train scripts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.correction import CORRECTIONS
from common.algo.kl import PENALTIES
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch
from tests.algo.test_advantages import batch_of
from tests.slow_corrections import SLOW_CORRECTIONS
from tests.variants import (
    PARAMETERS,
    VARIANTS,
    Sampled,
    share_of,
    slow_token_losses,
)
from tests.vectors.make import KL_BOUNDS, kl_of_token

KL_WEIGHT = 0.1


@dataclass(frozen=True)
class Choice:
    """A row, a correction and a KL penalty that go together."""

    row: str
    correction: str | None
    penalty: str

    @property
    def objective(self) -> Objective:
        chosen = replace(VARIANTS[self.row], kl_penalty=PENALTIES[self.penalty])
        if self.correction is None:
            return chosen
        return replace(chosen, correction=CORRECTIONS[self.correction])


def choices(row: str) -> Iterator[Choice]:
    corrections = () if VARIANTS[row].uses_sampler else CORRECTIONS
    for correction in (None, *corrections):
        for penalty in PENALTIES:
            yield Choice(row, correction, penalty)


each_row = pytest.mark.parametrize("row", VARIANTS)


@cache
def batch() -> TokenBatch:
    """Twelve micro-batches side by side: ratios near and far from 1, samplers near and far, masks
    with holes and empty sequences, one advantage per sequence and one per token; and there are
    others in the optimizer batch."""
    rng = np.random.default_rng(0)
    parts, masks = [], []
    for spread, mismatch, of_tokens in product((1e-4, 0.3, 3.0), (0.005, 0.5), (False, True)):
        shape = (6, 7)
        old = rng.normal(-2, 1, shape)
        new = old + rng.normal(0, spread, shape)
        sampler, ref = old + rng.normal(0, mismatch, shape), new + rng.normal(0, 1.5, shape)
        advantages = rng.normal(0, 1, shape if of_tokens else (6, 1))
        advantages[4] = 0
        parts.append((new, old, sampler, ref, np.broadcast_to(advantages, shape)))
        masks.append(rng.random(shape) < np.array([1, 0.7, 0.5, 0.3, 0.9, 0])[:, None])
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
    mask = torch.from_numpy(np.concatenate(masks))
    return TokenBatch(*columns, mask=mask, totals=BatchTotals(len(mask) + 3, int(mask.sum()) + 5))


# Sequences that take small steps, under a sampler that is far off, and none of which is empty; and
# those that take no large steps.
NEAR = (12, 13, 14, 18, 19)
WITHOUT_LARGE_STEPS = torch.arange(48)


def loss_of(objective: Objective, tokens: TokenBatch, kl_weight: float = KL_WEIGHT) -> Tensor:
    log_ratio = objective.log_ratio(tokens.log_probs, tokens.log_probs_old, tokens.mask)
    surrogate, _ = objective.surrogate(log_ratio, tokens)
    if objective.correction is not None:
        surrogate = objective.correction(tokens) * surrogate
    loss = objective.aggregate(surrogate, tokens.mask, tokens.totals)
    if kl_weight == 0:
        return loss
    penalty = objective.aggregate(objective.kl_penalty(tokens), tokens.mask, tokens.totals)
    return loss + kl_weight * penalty


def with_gradient(
    objective: Objective, tokens: TokenBatch, kl_weight: float = KL_WEIGHT
) -> tuple[Tensor, Tensor]:
    log_probs = tokens.log_probs.clone().requires_grad_()
    loss = loss_of(objective, replace(tokens, log_probs=log_probs), kl_weight)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return loss.detach(), gradient


def changed(tokens: TokenBatch, change: Callable[[str, Tensor], Tensor]) -> TokenBatch:
    """With another tensor for each; the totals stay."""
    names = [field.name for field in fields(tokens) if field.name != "totals"]
    return replace(tokens, **{name: change(name, getattr(tokens, name)) for name in names})


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], why: object) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda m: f"{why}: {m}")


@each_row
def test_loss_and_gradient_equal_the_slow_loop(row):
    parameters, tokens = PARAMETERS[row], batch()
    losses = [slow_token_losses(parameters, sampled) for sampled in sequences()]
    shares = [share_of(parameters, len(sampled), tokens.totals) for sampled in sequences()]
    for choice in choices(row):
        loss, gradient = 0.0, torch.zeros_like(tokens.log_probs)
        weights, penalties = slow_weights(choice.correction), slow_penalties(choice.penalty)
        for i, share in enumerate(shares):
            kl, slopes = penalties[i]
            loss += share * float(weights[i] @ as_tensor(losses[i].values) + KL_WEIGHT * kl.sum())
            of_tokens = weights[i] @ as_tensor(losses[i].slopes) + KL_WEIGHT * slopes
            gradient[learned()[i], tokens.mask[learned()[i]]] = share * of_tokens
        assert_same(with_gradient(choice.objective, tokens), (as_tensor(loss), gradient), choice)


def as_tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@cache
def learned() -> list[int]:
    """The sequences with a token to learn from."""
    return batch().mask.any(dim=-1).nonzero()[:, 0].tolist()


@cache
def sequences() -> list[Sampled]:
    tokens = batch()
    columns = (tokens.log_probs, tokens.log_probs_old, tokens.log_probs_sampler, tokens.advantages)
    return [Sampled(*(c[i, tokens.mask[i]].tolist() for c in columns)) for i in learned()]


@cache
def slow_weights(correction: str | None) -> list[Tensor]:
    if correction is None:
        return [torch.ones(len(sampled), dtype=torch.float64) for sampled in sequences()]
    slow, bounds = SLOW_CORRECTIONS[correction], CORRECTIONS[correction].keywords
    return [as_tensor(slow(sampled, **bounds)) for sampled in sequences()]


@cache
def slow_penalties(penalty: str) -> list[tuple[Tensor, Tensor]]:
    """Of each token, and its slope."""
    tokens, name = batch(), f"kl_{penalty}"
    assert tokens.log_probs_ref is not None
    found = []
    for i, sampled in zip(learned(), sequences(), strict=True):
        references = tokens.log_probs_ref[i, tokens.mask[i]].tolist()
        pairs = [
            kl_of_token(name, *of_token, KL_BOUNDS[name])
            for of_token in zip(sampled.new, references, sampled.sampler, strict=True)
        ]
        kl, slopes = zip(*pairs, strict=True)
        found.append((as_tensor(kl), as_tensor(slopes)))
    return found


@each_row
def test_it_is_the_same_however_the_batch_is_cut(row):
    tokens = batch()
    parts = torch.arange(len(tokens.mask)).split([1, 6, 25, 40])
    for choice in choices(row):
        shares = [with_gradient(choice.objective, at(tokens, part)) for part in parts]
        losses, gradients = zip(*shares, strict=True)
        found = torch.stack(losses).sum(), torch.cat(gradients)
        assert_same(found, with_gradient(choice.objective, tokens), choice)


def at(tokens: TokenBatch, rows: Tensor) -> TokenBatch:
    return changed(tokens, lambda _, values: values[rows])


@each_row
def test_it_is_the_same_in_any_order_and_with_any_padding(row):
    tokens = batch()
    order = torch.randperm(len(tokens.mask), generator=torch.Generator().manual_seed(0))
    for choice in choices(row):
        loss, gradient = with_gradient(choice.objective, tokens)
        found = with_gradient(choice.objective, at(tokens, order))
        assert_same(found, (loss, gradient[order]), choice)
        wider = torch.nn.functional.pad(gradient, (2, 3))
        found = with_gradient(choice.objective, changed(tokens, with_garbage))
        assert_same(found, (loss, wider), choice)


def with_garbage(name: str, values: Tensor) -> Tensor:
    """Two columns before and three after, which no mask covers."""
    garbage = {"mask": 0, "log_probs_ref": -math.inf, "log_probs_sampler": math.inf}
    return torch.nn.functional.pad(values, (2, 3), value=garbage.get(name, math.nan))


@each_row
def test_what_stands_outside_the_mask_has_no_effect(row):
    """Not even where it is not finite."""
    nothing = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    tokens = batch()
    names = [field.name for field in fields(tokens)]

    def broken(name: str, values: Tensor) -> Tensor:
        if name == "mask":
            return values
        pattern = nothing.roll(names.index(name)).repeat(values.numel())[: values.numel()]
        return torch.where(tokens.mask, values, pattern.view_as(values))

    for choice in choices(row):
        found = with_gradient(choice.objective, changed(tokens, broken))
        assert_same(found, with_gradient(choice.objective, tokens), choice)


@each_row
def test_what_is_nan_where_it_counts_is_nan_in_the_gradient(row):
    """Of its sequence alone. Steps are skipped by the norm of their gradient, which must not hide
    what is broken."""
    for choice in choices(row):
        tokens, broken = batch(), torch.zeros(len(batch().mask), dtype=torch.bool)
        for sequence, name in zip(NEAR, looked_at(choice), strict=False):
            values = getattr(tokens, name).clone()
            values[sequence, batch().mask[sequence].nonzero()[0]] = math.nan
            tokens, broken[sequence] = replace(tokens, **{name: values}), True
        _, gradient = with_gradient(choice.objective, tokens)
        assert torch.equal(gradient.isnan().any(dim=-1), broken), choice


def looked_at(choice: Choice) -> list[str]:
    uses_sampler = VARIANTS[choice.row].uses_sampler
    names = ["log_probs", "log_probs_ref", "advantages"]
    if not uses_sampler:
        names.append("log_probs_old")
    if uses_sampler or choice.correction or choice.penalty == "k3_weighted":
        names.append("log_probs_sampler")
    return names


@each_row
def test_without_advantages_there_is_exactly_nothing_to_learn(row):
    still = replace(batch(), advantages=torch.zeros_like(batch().advantages))
    for choice in choices(row):
        loss, gradient = with_gradient(choice.objective, still, kl_weight=0)
        assert loss == 0, choice
        assert (gradient == 0).all(), choice


@each_row
@pytest.mark.parametrize("value", [0.0, 17.3, -1e9])
def test_equal_rewards_have_exactly_no_advantage_whatever_their_value(row, value):
    """The mean of fifteen rewards of 17.3 is not 17.3 in floating point."""
    scores = {"only": torch.full((30,), value, dtype=torch.float64)}
    compared = replace(batch_of([[value] * 15] * 2, scores), weights={"only": 1.0})
    assert (VARIANTS[row].advantages(compared) == 0).all()


@pytest.mark.parametrize("row", [row for row in VARIANTS if not PARAMETERS[row].stop_gradient])
def test_the_gradient_equals_finite_differences(row):
    """Rows with a stop-gradient have another one than that of their value."""
    generator = torch.Generator().manual_seed(0)
    near = at(batch(), WITHOUT_LARGE_STEPS)
    near = replace(near, log_probs_ref=near.log_probs + 0.1)
    for choice in choices(row):
        _, gradient = with_gradient(choice.objective, near)
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (
            loss_of(choice.objective, replace(near, log_probs=near.log_probs + step))
            for step in (1e-6 * direction, -1e-6 * direction)
        )
        slope, expected = float(ahead - behind) / 2e-6, float((gradient * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-8), choice
