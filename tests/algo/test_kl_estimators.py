"""What each estimator of the KL descends and what its value is, by enumeration.

A policy over five tokens writes three of them: all 125 completions, float64. What is expected of an
estimator is compared with the exact divergences at every prefix, weighted by how often the policy
(off policy: the sampler) comes there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from common.algo.advantages import (
    ComparedBatch,
    leave_one_out_advantages,
    with_kl_in_reward,
    within_groups,
)
from common.algo.aggregation import BatchTotals
from common.algo.kl import (
    MAX_WEIGHT,
    k2_penalty,
    k3_penalty,
    k3_weighted_penalty,
    kl_divergence_k1,
)
from common.algo.tokens import TokenBatch

VOCABULARY, LENGTH = 5, 3
COMPLETIONS = torch.tensor(list(product(range(VOCABULARY), repeat=LENGTH)))
MASK = torch.ones_like(COMPLETIONS, dtype=torch.bool)
# The prefixes in the order (), (0), ... (4), (0, 0), ... (4, 4).
PREFIXES = torch.stack(
    [
        torch.zeros(len(COMPLETIONS), dtype=torch.long),
        1 + COMPLETIONS[:, 0],
        1 + VOCABULARY + VOCABULARY * COMPLETIONS[:, 0] + COMPLETIONS[:, 1],
    ],
    dim=1,
)
NUMBER_OF_PREFIXES = 1 + VOCABULARY + VOCABULARY**2


def random_logits(seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (NUMBER_OF_PREFIXES, VOCABULARY)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


POLICY = random_logits(0, 1.0)
REFERENCE = POLICY + random_logits(1, 0.7)
# A sampler that is off by a temperature and some noise.
SAMPLER = POLICY / 1.3 + random_logits(2, 0.2)


def of_tokens(logits: Tensor) -> Tensor:
    """The log-probs of the tokens of all completions."""
    return logits.log_softmax(-1)[PREFIXES, COMPLETIONS]


def probabilities(logits: Tensor) -> Tensor:
    """Of all completions."""
    return of_tokens(logits).sum(-1).exp()


def visits(logits: Tensor) -> Tensor:
    """How often each prefix is met."""
    met = torch.zeros(NUMBER_OF_PREFIXES, dtype=torch.float64)
    likely = probabilities(logits)[:, None].expand_as(PREFIXES)
    return met.index_add(0, PREFIXES.flatten(), likely.flatten())


@dataclass(frozen=True)
class Expected:
    """A value in nats per completion, and its gradient in the policy's logits."""

    value: float
    gradient: Tensor

    def relative_error(self, exact: Expected) -> float:
        return float((self.gradient - exact.gradient).norm() / exact.gradient.norm())

    def cosine(self, exact: Expected) -> float:
        return float(torch.cosine_similarity(self.gradient.flatten(), exact.gradient.flatten(), 0))


def expected_of(loss: Callable[[Tensor], Tensor]) -> Expected:
    policy = POLICY.clone().requires_grad_()
    value = loss(policy)
    (gradient,) = torch.autograd.grad(value, policy)
    return Expected(value.item(), gradient)


def exact(*, reverse: bool, sampler: Tensor = POLICY) -> Expected:
    """KL(policy || reference), or KL(reference || policy), at the prefixes of a sampler."""

    def loss(policy: Tensor) -> Tensor:
        ours, theirs = policy.log_softmax(-1), REFERENCE.log_softmax(-1)
        first, second = (theirs, ours) if reverse else (ours, theirs)
        return (visits(sampler) * (first.exp() * (first - second)).sum(-1)).sum()

    return expected_of(loss)


Estimator = Callable[[TokenBatch], Tensor]


def k1_penalty(tokens: TokenBatch) -> Tensor:
    """No choice of a run: `--kl-estimator k1` in the loss is refused for what is shown here."""
    assert tokens.log_probs_ref is not None
    return kl_divergence_k1(tokens.log_probs, tokens.log_probs_ref, tokens.mask)


def sums(
    estimator: Estimator, policy: Tensor, sampler: Tensor = POLICY, old: Tensor = POLICY
) -> Tensor:
    """Of an estimator over the tokens of each completion."""
    log_probs = of_tokens(policy)
    tokens = TokenBatch(
        log_probs,
        of_tokens(old),
        of_tokens(sampler),
        of_tokens(REFERENCE),
        torch.zeros_like(log_probs),
        MASK,
        BatchTotals(len(MASK), MASK.numel()),
    )
    return estimator(tokens).sum(-1)


def estimated(estimator: Estimator, sampler: Tensor = POLICY, old: Tensor = POLICY) -> Expected:
    """The mean of the sums over completions of the sampler."""

    def loss(policy: Tensor) -> Tensor:
        return (probabilities(sampler) * sums(estimator, policy, sampler, old)).sum()

    return expected_of(loss)


POLICY_TO_REFERENCE, REFERENCE_TO_POLICY = exact(reverse=False), exact(reverse=True)
EXACT = 1e-12


def test_nothing_here_is_beyond_a_bound():
    """So that biases are those of the estimators."""
    difference = of_tokens(REFERENCE) - of_tokens(POLICY)
    assert float((difference.expm1() - difference).max()) == pytest.approx(2.95, abs=0.01)
    weights = (of_tokens(POLICY) - of_tokens(SAMPLER)).exp()
    assert float(weights.max()) == pytest.approx(1.70, abs=0.01)
    assert MAX_WEIGHT > 1.7


@pytest.mark.parametrize(
    ("estimator", "on_policy", "off_policy"),
    [
        (k1_penalty, 1.0, 1.0135),
        (k2_penalty, 1.2386, 1.1729),
        (k3_penalty, 1.0, 0.9937),
        (k3_weighted_penalty, 1.0, 1.0),
    ],
)
def test_the_value_as_a_share_of_the_exact_divergence(estimator, on_policy, off_policy):
    """k1 and k3 are right on policy, weighted k3 wherever the tokens are from."""
    for sampler, share in ((POLICY, on_policy), (SAMPLER, off_policy)):
        known = exact(reverse=False, sampler=sampler).value
        precision = EXACT if share == 1 else 1e-4
        found = estimated(estimator, sampler).value / known
        assert found == pytest.approx(share, abs=precision)


def test_on_policy_k2_and_weighted_k3_descend_the_divergence_of_the_policy_and_k3_the_other_one():
    for estimator in (k2_penalty, k3_weighted_penalty):
        assert estimated(estimator).relative_error(POLICY_TO_REFERENCE) < EXACT
    of_k3 = estimated(k3_penalty)
    assert of_k3.relative_error(REFERENCE_TO_POLICY) < EXACT
    assert of_k3.relative_error(POLICY_TO_REFERENCE) == pytest.approx(0.586, abs=1e-3)
    assert of_k3.cosine(POLICY_TO_REFERENCE) == pytest.approx(0.831, abs=1e-3)


def test_k1_in_the_loss_descends_nothing():
    gradient = estimated(k1_penalty).gradient
    assert gradient.abs().max() < 1e-15
    assert POLICY_TO_REFERENCE.gradient.abs().max() > 0.1


@pytest.mark.parametrize(
    ("estimator", "error", "error_of_the_other"),
    [
        (k1_penalty, 1.137, 1.132),
        (k2_penalty, 0.300, 0.446),
        (k3_penalty, 0.696, 0.173),
        (k3_weighted_penalty, 0.0, 0.565),
    ],
)
def test_off_policy_weighted_k3_alone_is_right(estimator, error, error_of_the_other):
    """Relative errors to the gradients of the two divergences at the sampler's prefixes."""
    found = estimated(estimator, SAMPLER)
    ours, other = (exact(reverse=reverse, sampler=SAMPLER) for reverse in (False, True))
    precision = 1e-3 if error else EXACT
    assert found.relative_error(ours) == pytest.approx(error, abs=precision)
    assert found.relative_error(other) == pytest.approx(error_of_the_other, abs=1e-3)


def over_the_old_policy(tokens: TokenBatch) -> Tensor:
    return k3_weighted_penalty(replace(tokens, log_probs_sampler=tokens.log_probs_old))


def without_the_gradient_of_the_weight(tokens: TokenBatch) -> Tensor:
    weight = (tokens.log_probs - tokens.log_probs_sampler).exp().detach()
    return weight * k3_penalty(tokens)


def test_a_weight_over_the_old_policy_does_nothing_for_another_sampler():
    """Before the first update it is 1: what is left is the gradient of k2, and its bias."""
    ours = exact(reverse=False, sampler=SAMPLER)
    found = estimated(over_the_old_policy, SAMPLER, old=POLICY)
    torch.testing.assert_close(found.gradient, estimated(k2_penalty, SAMPLER).gradient)
    assert found.relative_error(ours) == pytest.approx(0.300, abs=1e-3)
    assert estimated(over_the_old_policy, SAMPLER, old=SAMPLER).relative_error(ours) < EXACT


def test_a_weight_without_gradient_descends_the_other_divergence():
    found = estimated(without_the_gradient_of_the_weight, SAMPLER)
    assert found.relative_error(exact(reverse=True, sampler=SAMPLER)) < EXACT


def test_the_gradient_of_weighted_k3_is_that_of_the_product():
    """Where nothing is bounded and float64 leaves digits, automatic differentiation agrees."""

    def product_of_both(tokens: TokenBatch) -> Tensor:
        return (tokens.log_probs - tokens.log_probs_sampler).exp() * k3_penalty(tokens)

    product, ours = (estimated(f, SAMPLER) for f in (product_of_both, k3_weighted_penalty))
    assert ours.value == pytest.approx(product.value, rel=EXACT)
    assert ours.relative_error(product) < EXACT


KL_WEIGHT = 0.3
REWARDS = torch.rand(len(COMPLETIONS), generator=torch.Generator().manual_seed(3)).double()


def exact_penalised() -> Expected:
    """E[reward] - weight * KL(policy || reference), of whole completions."""

    def loss(policy: Tensor) -> Tensor:
        shift = (of_tokens(policy) - of_tokens(REFERENCE)).sum(-1)
        return (probabilities(policy) * (REWARDS - KL_WEIGHT * shift)).sum()

    return expected_of(loss)


def test_k1_in_the_reward_ascends_the_reward_less_the_divergence_of_completions():
    """All 15,625 groups of two completions, compared as `rloo` does."""
    pairs = torch.cartesian_prod(torch.arange(len(COMPLETIONS)), torch.arange(len(COMPLETIONS)))
    members, mask = pairs.flatten(), MASK.repeat(2 * len(COMPLETIONS), 1)
    batch = ComparedBatch(
        REWARDS[members],
        {},
        torch.arange(len(pairs)).repeat_interleave(2),
        torch.zeros_like(mask, dtype=torch.long),
        kl_divergence_k1(of_tokens(POLICY)[members], of_tokens(REFERENCE)[members], mask),
        mask,
    )
    compare = partial(within_groups, advantages=leave_one_out_advantages)
    advantages = with_kl_in_reward(batch, advantages=compare, kl_weight=KL_WEIGHT)

    def loss(policy: Tensor) -> Tensor:
        of_pairs = probabilities(POLICY)[pairs].prod(-1)
        scores = of_tokens(policy).sum(-1)[pairs]
        return (of_pairs * (advantages.reshape(pairs.shape) * scores).mean(-1)).sum()

    assert expected_of(loss).relative_error(exact_penalised()) < EXACT


def exact_of_completions() -> Expected:
    """KL(policy || reference) of whole completions: a token changes the prefixes after it, too."""

    def loss(policy: Tensor) -> Tensor:
        return (probabilities(policy) * (of_tokens(policy) - of_tokens(REFERENCE)).sum(-1)).sum()

    return expected_of(loss)


def in_the_reward(estimator: Estimator) -> Expected:
    """What an estimator descends as a number, beside the log-probs of a completion."""
    values = sums(estimator, POLICY)

    def loss(policy: Tensor) -> Tensor:
        return (probabilities(POLICY) * values * of_tokens(policy).sum(-1)).sum()

    return expected_of(loss)


@pytest.mark.parametrize(
    ("estimator", "error", "cosine"),
    [(k1_penalty, 0.0, 1.0), (k2_penalty, 0.813, 0.645), (k3_penalty, 0.996, 0.339)],
)
def test_in_the_reward_k1_alone_is_right(estimator, error, cosine):
    found, known = in_the_reward(estimator), exact_of_completions()
    assert found.relative_error(known) == pytest.approx(error, abs=1e-3 if error else EXACT)
    assert found.cosine(known) == pytest.approx(cosine, abs=1e-3)


def test_in_the_reward_k3_lacks_just_what_it_descends_in_the_loss():
    known, in_loss = exact_of_completions(), estimated(k3_penalty)
    left = Expected(0.0, known.gradient - in_loss.gradient)
    assert in_the_reward(k3_penalty).relative_error(left) < EXACT


def test_in_the_loss_the_effect_of_a_token_on_later_ones_is_left_out():
    found = estimated(k2_penalty)
    assert found.relative_error(exact_of_completions()) == pytest.approx(0.304, abs=1e-3)
    assert found.cosine(exact_of_completions()) == pytest.approx(0.953, abs=1e-3)
