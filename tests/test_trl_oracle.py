"""Our losses against TRL's own, where the definitions are the same, and by how much where not."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from common.algo.aggregation import masked_mean
from common.algo.batch_advantages import of_top_entropy
from common.algo.correction import CORRECTIONS
from common.algo.kl import PENALTIES
from common.algo.objective import Objective
from tests.algo.test_advantages import batch_of
from tests.trl_namespace import Inputs, make_inputs, trl_loss, trl_scored
from tests.variants import VARIANTS


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs()


def ours(objective: Objective, inputs: Inputs, kl_weight: float = 0.0) -> tuple[float, Tensor]:
    """As the train scripts put it together."""
    log_probs = inputs.log_probs.clone().requires_grad_()
    tokens = inputs.tokens(log_probs)
    log_ratio = objective.log_ratio(log_probs, inputs.old, inputs.mask)
    per_token, _ = objective.surrogate(log_ratio, tokens)
    if objective.correction is not None:
        per_token = objective.correction(tokens) * per_token
    loss = objective.aggregate(per_token, inputs.mask, inputs.totals)
    penalty = objective.aggregate(objective.kl_penalty(tokens), inputs.mask, inputs.totals)
    (loss + kl_weight * penalty).backward()
    assert log_probs.grad is not None
    return (loss + kl_weight * penalty).item(), log_probs.grad


def assert_the_same(found: tuple[float, Tensor], expected: tuple[float, Tensor, Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-11, atol=1e-14)
    assert found[1].abs().max() > 1e-3


def trl_weights(inputs: Inputs, mode: str, low: float | None, high: float | None) -> Tensor:
    settings = {
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": low,
        "vllm_importance_sampling_clip_max": high,
    }
    scores = torch.zeros(len(inputs.mask), 1, dtype=torch.float64)
    return trl_scored(inputs, scores, group_size=2, **settings)["importance_sampling_ratio"]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# The settings of TRL that mean the same as a row, and how far log(pi / pi_old) spreads.
SEQUENCES: dict[str, Any] = {"importance_sampling_level": "sequence"}
SAME: dict[str, tuple[dict[str, Any], float]] = {
    "grpo": ({"loss_type": "grpo"}, 0.3),
    "dr_grpo": ({"loss_type": "dr_grpo"}, 0.3),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, 0.3),
    "gspo": (SEQUENCES | {"epsilon_low": 3e-4, "epsilon_high": 4e-4}, 1e-3),
    "grpo_dual_clip": ({"loss_type": "grpo", "args.delta": 3.0}, 1.5),
    "sapo": ({"loss_type": "sapo"}, 0.3),
    "luspo": (
        SEQUENCES | {"loss_type": "luspo", "epsilon_low": 2e-3, "epsilon_high": 2.5e-3},
        5e-3,
    ),
    "vespo": ({"loss_type": "vespo"}, 0.3),
}


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("name", SAME)
def test_the_same_definition_gives_the_same_loss_and_gradient(name, kl_weight):
    settings, spread = SAME[name]
    inputs = make_inputs(spread)
    found = ours(VARIANTS[name], inputs, kl_weight)
    assert_the_same(found, trl_loss(inputs, beta=kl_weight, **settings))


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_gmpo_is_the_same(kl_weight):
    trainer = pytest.importorskip("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
    inputs = make_inputs(0.6)
    expected = trl_loss(inputs, trainer, beta=kl_weight, epsilon_low=0.4, epsilon_high=0.4)
    assert_the_same(ours(VARIANTS["gmpo"], inputs, kl_weight), expected)


def test_vespo_is_the_same_under_another_sampler_where_no_correction_cuts_its_weights():
    """TRL multiplies policy / old policy by its correction's weights of tokens, ours is policy /
    sampler at once: the default, which drops a token at 3, makes another weight of the answer."""
    inputs = make_inputs(sampler_spread=0.4)
    found = ours(VARIANTS["vespo"], inputs)
    exact = trl_weights(inputs, "token_truncate", None, math.inf)
    assert_the_same(found, trl_loss(inputs, weights=exact, loss_type="vespo"))

    cut = trl_weights(inputs, "token_mask", None, 1.5)
    _, theirs, _ = trl_loss(inputs, weights=cut, loss_type="vespo")
    changed = ((theirs - found[1]).abs() > 1e-12).any(dim=-1)
    with_a_cut = ((cut == 0) & inputs.mask).any(dim=-1) & (inputs.advantages != 0)
    assert changed.tolist() == with_a_cut.tolist()


@pytest.mark.parametrize(("share", "quantile"), [(0.25, 0.25), (6 / 27, 0.2)])
def test_the_tokens_of_highest_entropy_are_the_same_but_for_the_quantile(inputs, share, quantile):
    """Of these 27 tokens both keep 7 for a quarter. For a fifth we keep 5, the nearest number; TRL
    keeps the 6 at or above a quantile that it interpolates."""
    chosen = of_top_entropy(
        replace(
            batch_of([inputs.advantages.tolist()]),
            turns=torch.where(inputs.mask, 0, -1),
            mask=inputs.mask,
            entropy=inputs.entropy,
        ),
        advantages=lambda _: inputs.advantages,
        share=share,
    )
    settings, _ = SAME["dapo"]
    found = ours(VARIANTS["dapo"], replace(inputs, advantages=chosen))
    assert_the_same(found, trl_loss(inputs, top_entropy_quantile=quantile, **settings))


def test_cispo_differs_in_what_its_upper_bound_is_counted_from(inputs):
    """Ours is 1 + eps_high, as in the paper; TRL's is `epsilon_high` itself. Its default of 0.2
    therefore cuts every on-policy weight of 1 down to a fifth."""
    expected = trl_loss(inputs, loss_type="cispo", epsilon_high=1 + 0.3)
    assert_the_same(ours(VARIANTS["cispo"], inputs), expected)

    on_policy = replace(inputs, old=inputs.log_probs)
    _, gradient = ours(VARIANTS["cispo"], on_policy)
    _, shrunk, _ = trl_loss(on_policy, loss_type="cispo")
    torch.testing.assert_close(shrunk, 0.2 * gradient, rtol=1e-11, atol=1e-14)


def test_dapo_differs_in_the_tokens_it_divides_by_with_several_steps_per_generation(inputs):
    """Ours counts the tokens of the optimizer batch. TRL divides by the mean number of tokens per
    optimizer step of the generation, which is another number where the steps are uneven."""
    tokens = inputs.totals.tokens
    other_step = 3 * tokens
    loss, gradient = ours(VARIANTS["dapo"], inputs)
    settings = {"args.steps_per_generation": 2, "generated_tokens": tokens + other_step}
    their_loss, their_gradient, _ = trl_loss(
        inputs, loss_type="dapo", epsilon_high=0.28, **settings
    )
    assert their_loss == pytest.approx(loss * tokens / ((tokens + other_step) / 2), rel=1e-12)
    torch.testing.assert_close(their_gradient, gradient / 2, rtol=1e-11, atol=1e-14)


def test_rloo_differs_in_its_ratio_which_is_that_of_the_whole_answer_and_clipped(inputs):
    """On policy the gradients are the same. Off policy TRL weighs each token by the product of the
    ratios of all tokens of its answer, ours by its own."""
    rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer").RLOOTrainer
    on_policy = replace(inputs, old=inputs.log_probs)
    _, gradient = ours(VARIANTS["rloo"], on_policy)
    _, expected, _ = trl_loss(on_policy, rloo_trainer)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)

    _, gradient = ours(VARIANTS["rloo"], inputs)
    _, theirs, _ = trl_loss(inputs, rloo_trainer, epsilon_low=1.0, epsilon_high=1e9)
    products = torch.where(inputs.mask, inputs.log_probs - inputs.old, 0.0)
    weights = (products.sum(dim=-1, keepdim=True) - products).exp()
    torch.testing.assert_close(theirs, weights * gradient, rtol=1e-11, atol=1e-14)


def test_k3_differs_in_its_bound(inputs):
    """A token that is exp(5) times likelier to the reference is 142 nats to TRL, with a slope of
    -147 that outweighs all else; to us it is 10, and has none."""
    ref = inputs.ref.clone()
    ref[2, 3] = inputs.log_probs[2, 3] + 5
    apart = replace(inputs, ref=ref)
    loss, gradient = ours(VARIANTS["dapo"], apart, 0.1)
    their_loss, theirs, _ = trl_loss(apart, loss_type="dapo", epsilon_high=0.28, beta=0.1)
    per_token = 0.1 / inputs.totals.tokens
    assert their_loss - loss == pytest.approx(per_token * (math.expm1(5) - 5 - 10))
    difference = theirs - gradient
    assert difference[2, 3].item() == pytest.approx(per_token * -math.expm1(5))
    assert difference.count_nonzero() == 1


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_the_weighted_k3_is_the_same_where_the_old_policy_is_the_sampler(inputs, name):
    """TRL's weight is policy / old policy, ours policy / sampler; within our bounds."""
    objective = replace(VARIANTS[name], kl_penalty=PENALTIES["k3_weighted"])
    settings = SAME[name][0] | {"args.use_bias_correction_kl": True, "beta": 0.1}
    assert_the_same(ours(objective, inputs, 0.1), trl_loss(inputs, **settings))


def test_the_weighted_k3_differs_with_ratios_of_sequences():
    """TRL weighs each token's k3 by the ratio of the loss: the geometric mean of the sequence in
    GSPO. Ours is always that of the token, without which it is no importance weight."""
    inputs = make_inputs()
    objective = replace(VARIANTS["gspo"], kl_penalty=PENALTIES["k3_weighted"])
    _, plain = ours(objective, inputs)
    _, both = ours(objective, inputs, 0.1)
    settings: dict[str, Any] = SAME["gspo"][0] | {"args.use_bias_correction_kl": True}
    _, their_plain, _ = trl_loss(inputs, **settings)
    _, their_both, _ = trl_loss(inputs, **settings, beta=0.1)
    assert relative_error(their_both - their_plain, both - plain) == pytest.approx(0.193, abs=1e-3)


@pytest.mark.parametrize(("name", "same"), [("dapo", True), ("grpo", False)])
def test_the_entropy_bonus_differs_where_the_loss_is_no_mean_over_tokens(inputs, name, same):
    """TRL's bonus is the mean over tokens whatever the loss is; ours is aggregated as the loss is,
    so that in GRPO a token of a long answer has less of it, too."""
    settings = {"_entropy_bonus_enabled": True, "entropy_coef": 0.3}
    plain, _, _ = trl_loss(inputs, loss_type=name)
    loss, _, slopes = trl_loss(inputs, loss_type=name, **settings)
    entropy = inputs.entropy.clone().requires_grad_()
    bonus = 0.3 * VARIANTS[name].aggregate(entropy, inputs.mask, inputs.totals)
    (-bonus).backward()
    assert entropy.grad is not None
    assert (loss == pytest.approx(plain - bonus.item(), rel=1e-12)) == same
    assert torch.allclose(slopes, entropy.grad, rtol=1e-11) == same
    lengths = inputs.mask.sum(dim=-1, keepdim=True)
    mean_length = lengths.double().mean()
    torch.testing.assert_close(
        slopes * (1 if same else mean_length / lengths), entropy.grad, rtol=1e-11, atol=1e-14
    )


# A correction of ours with bounds of TRL's, and what TRL calls it. The sampler is 0.4 nats off.
CORRECTED = {
    "token_truncated": ({"cap": 1.5}, "token_truncate", None, 1.5),
    "token_masked": ({"low": 0.5, "high": 1.5}, "token_mask", 0.5, 1.5),
    "sequence_truncated": ({"cap": 1.5}, "sequence_truncate", None, 1.5),
    "sequence_masked": ({"low": 0.5, "high": 3.0}, "sequence_mask", 0.5, 3.0),
}


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("row", ["grpo", "dapo"])
@pytest.mark.parametrize("name", CORRECTED)
def test_the_same_correction_gives_the_same_loss_and_gradient(name, row, kl_weight):
    """What is dropped stays in the denominators of both, and the KL penalty is not weighed."""
    bounds, mode, low, high = CORRECTED[name]
    inputs = make_inputs(sampler_spread=0.4)
    weights = trl_weights(inputs, mode, low, high)
    exact = trl_weights(inputs, mode, None, math.inf)
    assert not torch.equal(weights, exact)
    correction = partial(CORRECTIONS[name], **bounds)
    settings, _ = SAME[row]
    assert_the_same(
        ours(replace(VARIANTS[row], correction=correction), inputs, kl_weight),
        trl_loss(inputs, weights=weights, beta=kl_weight, **settings),
    )


def test_off_policy_sequence_masking_is_the_same():
    """The second sequence is worse than others and less likely by now than when it was sampled."""
    inputs = make_inputs(sampler_spread=0.4)
    correction = partial(CORRECTIONS["opsm"], cap=0.65)
    kept = correction(inputs.tokens(inputs.log_probs))[:, 0]
    assert kept.tolist() == [1, 0, 1, 1, 1, 1]
    found = ours(replace(VARIANTS["grpo"], correction=correction), inputs)
    assert_the_same(found, trl_loss(inputs, off_policy_mask_threshold=0.65))


def test_products_over_answers_shrink_with_their_length_and_geometric_means_do_not():
    """TRL's default weighs, or drops, an answer by the product of its weights. Here the sampler is
    0.1 nats off at each of 400 tokens, and the weights of tokens have the mean 1; so have products,
    but nearly all of it lies with answers too rare to be met. That of most is near exp(-2)."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(100, 400, generator=generator, dtype=torch.float64)
    sampler = torch.full_like(noise, -1.5)
    old = sampler + noise - 0.1**2 / 2
    inputs = replace(make_inputs(), old=old, sampler=sampler, mask=sampler < 0)
    products = trl_weights(inputs, "sequence_truncate", None, math.inf)
    assert products.median().item() == pytest.approx(0.097, abs=1e-3)
    assert products.mean().item() == pytest.approx(0.605, abs=1e-3)
    geometric = masked_mean(old - sampler, inputs.mask).exp()
    assert geometric.median().item() == pytest.approx(0.995, abs=1e-3)


# Rewards of three groups of two, by two functions.
SCORES = torch.tensor(
    [[1.0, 0.25], [0.0, 0.5], [0.25, 0.75], [0.5, 0.0], [1.0, 0.5], [-1.0, 0.5]],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"scale_rewards": "group"}),
        ("dr_grpo", {"scale_rewards": "none"}),
        ("lite_ppo", {"scale_rewards": "batch"}),
        ("gdpo", {"multi_objective_aggregation": "normalize_then_sum"}),
    ],
)
@pytest.mark.parametrize("applies_to", [6, 3])
def test_advantages_that_mean_the_same_are_the_same(inputs, name, settings, applies_to):
    """Also where a reward applies to one of a group alone, and to none of another."""
    known = SCORES.clone()
    known[applies_to:, 1] = math.nan
    scores = {"first": known[:, 0], "second": known[:, 1]}
    batch = batch_of(known.nansum(dim=-1).view(3, 2).tolist(), scores)
    batch = replace(batch, weights=dict.fromkeys(scores, 1.0))
    expected = trl_scored(inputs, known, group_size=2, **settings)["advantages"]
    torch.testing.assert_close(VARIANTS[name].advantages(batch), expected)


def test_equal_rewards_differ_in_float32_where_their_mean_is_rounded(inputs):
    """Ours are compared, so that they have exactly 0. TRL's are 0.019 for 17.3 where six are added
    up one after another, which is enough to count as a signal; in what order they are depends on
    the processor, and so for which rewards they differ."""
    largest = 0.0
    for reward in (17.3, 11.1, 13.7, 19.9, 23.3):
        equal = torch.full((6, 1), reward, dtype=torch.float32)
        theirs = trl_scored(inputs, equal, group_size=6, scale_rewards="group")["advantages"]
        largest = max(largest, theirs.abs().max().item())
        assert (VARIANTS["grpo"].advantages(batch_of([equal[:, 0].tolist()])) == 0).all()
    assert largest > 0.005
