"""The published vectors are what the papers say, the training code reproduces them, and none of the
wrong losses in `WRONG` does: each has been seen in a framework, or is a likely slip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from common.algo.advantages import ComparedBatch, best_alone_advantages, within_groups
from common.algo.aggregation import (
    BatchTotals,
    constant_length_mean,
    masked_mean,
    sequence_mean,
    token_mean,
)
from common.algo.batch_advantages import reward_to_go
from common.algo.objective import Objective
from common.algo.sampler_surrogate import gamma_weight
from common.algo.surrogate import (
    by_sign,
    clipped_surrogate,
    clipped_weight,
    dual_clipped_surrogate,
    geometric_mean_surrogate,
    soft_gated_surrogate,
    token_log_ratio,
    unclipped_surrogate,
)
from common.algo.tokens import TokenBatch
from tests.variants import VARIANTS, token_losses
from tests.vectors.make import (
    DIRECTORY,
    KL_BOUNDS,
    all_vectors,
    as_text,
    file_name,
    read_numbers,
)


def text_of(name: str) -> str:
    return (DIRECTORY / file_name(name)).read_text(encoding="utf-8")


@cache
def read(name: str) -> dict[str, Any]:
    return json.loads(text_of(name))


def tensor(rows: Any) -> Tensor:
    return torch.tensor(read_numbers(rows), dtype=torch.float64)


@pytest.mark.parametrize("name", [*VARIANTS, *KL_BOUNDS])
def test_the_file_is_what_the_slow_loop_writes(name):
    assert text_of(name) == as_text(all_vectors()[name])


def agrees(found: Tensor, expected: Any, tolerance: Mapping[str, float]) -> bool:
    wanted = torch.tensor(expected, dtype=torch.float64)
    relative, absolute = tolerance["relative"], tolerance["absolute"]
    return torch.allclose(found.detach(), wanted, rtol=relative, atol=absolute)


def failures(name: str, objective: Objective, tolerance: Mapping[str, float]) -> Iterator[str]:
    """The cases of a file that an objective gives other numbers for."""
    for case in read(name)["cases"]:
        log_probs = tensor(case["log_probs"]).requires_grad_()
        old, mask = tensor(case["log_probs_old"]), torch.tensor(case["mask"], dtype=torch.bool)
        of_tokens = isinstance(case["advantages"][0], list)
        given = read_numbers(case["advantages"]) if of_tokens else case["advantages"]
        advantages = torch.tensor(given, dtype=torch.float64)
        totals = BatchTotals(
            case["sequences_in_optimizer_batch"], case["tokens_in_optimizer_batch"]
        )
        sampler = tensor(case["log_probs_sampler"])
        per_token = token_losses(objective, log_probs, old, advantages, mask, sampler)
        loss = objective.aggregate(per_token, mask, totals)
        loss.backward()
        assert log_probs.grad is not None
        known = agrees(loss, case["loss"], tolerance)
        if not (known and agrees(log_probs.grad, case["gradient"], tolerance)):
            yield case["name"]
    for case in read(name)["advantage_cases"]:
        if case["advantages"] is not None:
            found = objective.advantages(compared(case))
            if not agrees(found, case["advantages"], tolerance):
                yield case["name"]


def compared(case: Mapping[str, Any]) -> ComparedBatch:
    """Without scores there is one reward, and without a mask one token for each."""
    rewards = torch.tensor(case["rewards"], dtype=torch.float64)
    mask = torch.tensor(case.get("mask", [[1]] * len(rewards)), dtype=torch.bool)
    scores = case.get("scores", {"reward": case["rewards"]})
    return ComparedBatch(
        rewards,
        dict(zip(scores, tensor(scores.values()), strict=True)),
        torch.tensor(case["groups"]),
        torch.where(mask, 0, -1),
        None,
        mask,
        penalties=tensor(case["penalties"]) if "penalties" in case else None,
        weights=case.get("weights", {"reward": 1.0}),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_training_code_reproduces_the_file(name):
    assert len(read(name)["cases"]) == 13
    assert len(read(name)["advantage_cases"]) == 10
    assert not list(failures(name, VARIANTS[name], {"relative": 1e-12, "absolute": 1e-16}))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_denominator_with_a_little_added_is_within_the_tolerance(name):
    """As three frameworks have it."""
    objective = VARIANTS[name]

    def aggregate(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
        return objective.aggregate(per_token, mask, totals) / (1 + 1e-8)

    assert not list(
        failures(name, replace(objective, aggregate=aggregate), read(name)["tolerance"])
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "reinforce_pp"])
def test_a_group_of_one_has_no_baseline(name):
    (case,) = (case for case in read(name)["advantage_cases"] if case["name"] == "a group of one")
    assert case["advantages"] is None
    with pytest.raises(ValueError, match="a group needs at least two rewards, got 1"):
        VARIANTS[name].advantages(compared(case))


def clips_every_token(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    return -log_ratio.exp().clamp(0.8, 1.2) * tokens.advantages, None


def clips_negative_on_both_sides(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    loss, _ = clipped_surrogate(log_ratio, tokens, clip_eps=0.2, clip_eps_high=0.2)
    both, _ = clips_every_token(log_ratio, tokens)
    return torch.where(tokens.advantages < 0, both, loss), None


def dual_clip(most: float) -> Callable[..., Any]:
    return partial(dual_clipped_surrogate, clip_eps=0.2, clip_eps_high=0.2, dual_clip=most)


def dual_clip_of_either_sign(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    loss, _ = clipped_surrogate(log_ratio, tokens, clip_eps=0.2, clip_eps_high=0.2)
    return torch.minimum(loss, -3.0 * tokens.advantages), None


def optimistic(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    ratio, advantage = log_ratio.exp(), tokens.advantages
    return -torch.maximum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage), None


def clips_the_logarithm(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    advantage = tokens.advantages
    within = log_ratio.clamp(-0.2, 0.2).exp()
    return -torch.minimum(log_ratio.exp() * advantage, within * advantage), None


def unclipped_on_one_side(
    log_ratio: Tensor, tokens: TokenBatch, *, low: float, high: float
) -> tuple[Tensor, None]:
    ratio, advantage = log_ratio.exp(), tokens.advantages
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage), None


def wrong_sign(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    loss, _ = clipped_surrogate(log_ratio, tokens, clip_eps=0.2, clip_eps_high=0.2)
    return -loss, None


def caps_positive_alone(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    ratio = log_ratio.detach().exp()
    weight = torch.where(tokens.advantages > 0, ratio.clamp(max=1.3), ratio)
    return -weight * tokens.advantages * tokens.log_probs, None


def weight_with_gradient(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    return -log_ratio.exp().clamp(max=1.3) * tokens.advantages * tokens.log_probs, None


def weight_bounded_below(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    weight = log_ratio.detach().exp().clamp(0.7, 1.3)
    return -weight * tokens.advantages * tokens.log_probs, None


def drops_above_the_cap(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    loss, _ = clipped_weight(log_ratio, tokens, clip_eps_high=0.3)
    return torch.where(log_ratio.exp() > 1.3, 0.0, loss), None


def weight_at_the_bound_itself(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    weight = log_ratio.detach().exp().clamp(max=0.3)
    return -weight * tokens.advantages * tokens.log_probs, None


def gate_without_its_scale(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    temperature = by_sign(tokens.advantages, 1.0, 1.05)
    return -torch.sigmoid(temperature * (log_ratio.exp() - 1)) * tokens.advantages, None


def gate_of_the_log_ratio(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    temperature = by_sign(tokens.advantages, 1.0, 1.05)
    return -torch.sigmoid(temperature * log_ratio) * 4 / temperature * tokens.advantages, None


def gates(positive: float, negative: float) -> Callable[..., Any]:
    return partial(
        soft_gated_surrogate, temperature_positive=positive, temperature_negative=negative
    )


def clips_the_mean(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    mean = masked_mean(log_ratio, tokens.mask)[:, None].expand(tokens.mask.shape)
    return geometric_mean_surrogate(mean, tokens, clip_eps=0.4, clip_eps_high=0.4)[0], None


def clips_logarithms_on_both_sides(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    return unclipped_mean(log_ratio.clamp(-0.4, 0.4), tokens), None


def unclipped_mean(log_ratio: Tensor, tokens: TokenBatch) -> Tensor:
    ratio = torch.where(tokens.mask, masked_mean(log_ratio, tokens.mask).exp()[:, None], 0.0)
    return -ratio * tokens.advantages


def product_of_ratios(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    total = log_ratio * tokens.mask.sum(-1, keepdim=True)
    return geometric_mean_surrogate(total, tokens, clip_eps=0.4, clip_eps_high=0.4)[0], None


def log_probs_to_sampler(tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """Of the policy and its sampler, 0 outside the mask."""
    pair = (tokens.log_probs, tokens.log_probs_sampler)
    policy, sampler = (torch.where(tokens.mask, values, 0.0) for values in pair)
    return policy, sampler


def divergence(
    log_ratio: Tensor,
    tokens: TokenBatch,
    *,
    dropped: Callable[[Tensor, Tensor], Tensor],
    most: float = 20.0,
    own_gradient: bool = False,
) -> tuple[Tensor, None]:
    """DPPO and IPO once more, with a rule from pi - mu and A for what is dropped."""
    policy, sampler = log_probs_to_sampler(tokens)
    ratio = (policy - sampler).exp()
    weight = ratio if own_gradient else ratio.detach().clamp(max=most) * policy
    out = dropped(policy.detach().exp() - sampler.exp(), tokens.advantages)
    return torch.where(out, 0.0, -weight * tokens.advantages), None


def by_the_sign(moved: Tensor, advantages: Tensor, *, bound: float) -> Tensor:
    return torch.where(advantages > 0, moved > bound, moved < -bound)


def whatever_the_sign(moved: Tensor, advantages: Tensor, *, bound: float) -> Tensor:
    del advantages
    return moved.abs() > bound


def by_the_other_sign(moved: Tensor, advantages: Tensor, *, bound: float) -> Tensor:
    return by_the_sign(moved, -advantages, bound=bound)


def leaves_the_denominator(surrogate: Callable[..., Any]) -> Callable[..., Any]:
    """The mean over tokens is one over those that the row keeps."""

    def mistaken(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        loss, dropped = surrogate(log_ratio, tokens)
        kept = int((tokens.mask & ~dropped).sum())
        return loss * int(tokens.mask.sum()) / max(1, kept), dropped

    return mistaken


def from_the_old_policy(surrogate: Callable[..., Any]) -> Callable[..., Any]:
    """pi_old in the place of the sampler."""

    def mistaken(log_ratio: Tensor, tokens: TokenBatch) -> Any:
        return surrogate(log_ratio, replace(tokens, log_probs_sampler=tokens.log_probs_old))

    return mistaken


def phi_with_gradient(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    policy, sampler = log_probs_to_sampler(tokens)
    log_weight = (policy - sampler).sum(-1, keepdim=True)
    power, rate = (by_sign(tokens.advantages, *pair) for pair in ((2.0, 3.0), (3.0, 2.0)))
    phi = (power * log_weight - rate * log_weight.expm1()).exp()
    return -phi * tokens.advantages * policy, None


def phi_of_the_mean(log_ratio: Tensor, tokens: TokenBatch) -> tuple[Tensor, None]:
    lengths = tokens.mask.sum(-1, keepdim=True).clamp(min=1)
    policy, sampler = log_probs_to_sampler(tokens)
    log_weight = (policy - sampler).detach().sum(-1, keepdim=True) / lengths
    power, rate = (by_sign(tokens.advantages, *pair) for pair in ((2.0, 3.0), (3.0, 2.0)))
    return -(
        power * log_weight - rate * log_weight.expm1()
    ).exp() * tokens.advantages * policy, None


def gammas(powers: tuple[float, float], rates: tuple[float, float]) -> Callable[..., Any]:
    return partial(
        gamma_weight,
        power_positive=powers[0],
        power_negative=powers[1],
        rate_positive=rates[0],
        rate_negative=rates[1],
    )


def sequence_value_from_a_sum(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, summed_ratio(new, old, mask).detach() + (new - new.detach()), 0.0)


def ratio_times_mask(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return (new - old) * mask


def summed_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    total = torch.where(mask, new - old, 0.0).sum(-1, keepdim=True)
    return torch.where(mask, total, 0.0)


def arithmetic_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    mean = masked_mean(torch.where(mask, new - old, 0.0).exp(), mask).clamp(min=1e-30)
    return torch.where(mask, mean.log()[:, None], 0.0)


def ratio_over_the_width(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    mean = torch.where(mask, new - old, 0.0).mean(-1, keepdim=True)
    return torch.where(mask, mean, 0.0)


def times_mask(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    return (per_token * mask).sum() / totals.tokens


def mean_of_sequences_with_tokens(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    empty = int((~mask.any(-1)).sum())
    return masked_mean(per_token, mask).sum() / max(1, totals.sequences - empty)


def micro_batch_mean(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    return sequence_mean(per_token, mask, BatchTotals(len(mask), 0))


def micro_batch_token_mean(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    return token_mean(per_token, mask, BatchTotals(0, int(mask.sum())))


def mean_over_the_width(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    return torch.where(mask, per_token, 0.0).mean(-1).sum() / totals.sequences


def length_to_the_last_token(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1)
    lengths = (mask * positions).amax(-1).clamp(min=1)
    return (torch.where(mask, per_token, 0.0).sum(-1) / lengths).sum() / totals.sequences


def starts_one_late(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    shifted = mask & torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    return sequence_mean(per_token, shifted, totals)


def prefix_alone(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    lengths = mask.sum(-1, keepdim=True)
    return sequence_mean(per_token, torch.arange(mask.shape[1]) < lengths, totals)


def divides_by_the_width(per_token: Tensor, mask: Tensor, totals: BatchTotals) -> Tensor:
    return constant_length_mean(per_token, mask, totals, max_tokens=mask.shape[1])


def standardised(rewards: Tensor, *, ddof: int = 1, epsilon: float = 1e-4) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std(correction=ddof) + epsilon)


def epsilon_in_the_root(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.var() + 1e-4).sqrt()


def over_the_batch(batch: ComparedBatch) -> Tensor:
    centred = within_groups(batch, advantages=lambda rewards: rewards - rewards.mean())
    return centred / (batch.rewards.std() + 1e-4)


def deviations_of_centred(batch: ComparedBatch) -> Tensor:
    centred = within_groups(batch, advantages=lambda rewards: rewards - rewards.mean())
    return centred / (centred.std() + 1e-4)


def normalised_after_the_sum(batch: ComparedBatch) -> Tensor:
    return standardised(VARIANTS["grpo"].advantages(batch))


def with_other_weights(batch: ComparedBatch, weights: Mapping[str, float]) -> Tensor:
    return VARIANTS["gdpo"].advantages(replace(batch, weights=weights))


def without_weights(batch: ComparedBatch) -> Tensor:
    return with_other_weights(batch, dict.fromkeys(batch.weights, 1.0))


def with_what_is_logged(batch: ComparedBatch) -> Tensor:
    return with_other_weights(batch, {**dict.fromkeys(batch.scores, 1.0), **batch.weights})


def zero_where_none_applies(batch: ComparedBatch) -> Tensor:
    scores = {name: values.nan_to_num(0.0) for name, values in batch.scores.items()}
    return VARIANTS["gdpo"].advantages(replace(batch, scores=scores))


def without_a_second_deviation(batch: ComparedBatch) -> Tensor:
    zeros = torch.zeros_like(batch.rewards)
    for name, weight in batch.weights.items():
        own = replace(batch, rewards=batch.scores[name].nan_to_num(0.0))
        zeros = zeros + weight * VARIANTS["grpo"].advantages(own)
    return zeros


def mean_with_an_epsilon(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.mean() + 1e-6)


def lead_over_the_mean(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()).clamp(min=0)


def lead_of_all_that_are_best(rewards: Tensor) -> Tensor:
    lower = rewards[rewards < rewards.max()]
    lead = rewards.max() - (lower.max() if len(lower) else rewards.max())
    return torch.where(rewards == rewards.max(), lead, 0.0)


def lead_in_deviations(rewards: Tensor) -> Tensor:
    return best_alone_advantages(rewards) / (rewards.std() + 1e-6)


def over_tokens(batch: ComparedBatch, to_go: Tensor, *, ddof: int = 1) -> Tensor:
    tokens = to_go[batch.mask]
    normalised = (to_go - tokens.mean()) / (tokens.std(correction=ddof) + 1e-4)
    return torch.where(batch.mask, normalised, 0.0)


def to_go_one_late(batch: ComparedBatch) -> Tensor:
    to_go = reward_to_go(batch)
    if batch.penalties is None:
        return over_tokens(batch, to_go)
    return over_tokens(batch, to_go + batch.penalties)


def whole_return_at_each_token(batch: ComparedBatch) -> Tensor:
    return over_tokens(batch, batch.returns[:, None].expand(batch.mask.shape))


def penalty_of_the_token_alone(batch: ComparedBatch) -> Tensor:
    rewards = batch.rewards[:, None].expand(batch.mask.shape)
    return over_tokens(batch, rewards if batch.penalties is None else rewards - batch.penalties)


def to_go_in_groups(batch: ComparedBatch) -> Tensor:
    made = torch.zeros(batch.mask.shape, dtype=batch.rewards.dtype)
    for number in batch.groups.unique():
        rows = batch.groups == number
        own = replace(batch, mask=batch.mask & rows[:, None])
        if bool(own.mask.any()):
            made = made + VARIANTS["reinforce_pp"].advantages(own).nan_to_num(0.0)
    return made


def over_rollouts(batch: ComparedBatch) -> Tensor:
    found = standardised(VARIANTS["dr_grpo"].advantages(batch))
    return torch.where(batch.mask, found[:, None], 0.0)


def biased_over_tokens(batch: ComparedBatch) -> Tensor:
    return over_tokens(batch, reward_to_go(batch), ddof=0)


def over_the_padded_width(batch: ComparedBatch) -> Tensor:
    return standardised(reward_to_go(batch)) * batch.mask


def weighted_by_the_width(batch: ComparedBatch) -> Tensor:
    positions = torch.arange(1, batch.mask.shape[1] + 1)
    ends = (batch.mask * positions).amax(-1, keepdim=True)
    return VARIANTS["opo"].advantages(replace(batch, mask=positions <= ends))


def weighted_by_squares(batch: ComparedBatch) -> Tensor:
    lengths = batch.mask.sum(-1)
    squares = torch.arange(int(lengths.max()) ** 2) < (lengths**2)[:, None]
    turns = torch.where(squares, 0, -1)
    return VARIANTS["opo"].advantages(
        replace(batch, mask=squares, turns=turns, penalties=None, rewards=batch.returns)
    )


def groups_of(advantages: Callable[[Tensor], Tensor]) -> Callable[[ComparedBatch], Tensor]:
    return partial(within_groups, advantages=advantages)


WRONG: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "clips where A < 0 on both sides": ("grpo", {"surrogate": clips_negative_on_both_sides}),
    "clips every token on both sides": ("grpo", {"surrogate": clips_every_token}),
    "dual clip at 1.3": ("grpo", {"surrogate": dual_clip(1.3)}),
    "dual clip at 3": ("grpo", {"surrogate": dual_clip(3.0)}),
    "dual clip at 10": ("grpo_dual_clip", {"surrogate": dual_clip(10.0)}),
    "dual clip for A > 0 as well": ("grpo_dual_clip", {"surrogate": dual_clip_of_either_sign}),
    "no dual clip": ("grpo_dual_clip", {"surrogate": VARIANTS["grpo"].surrogate}),
    "SAPO with one temperature": ("sapo", {"surrogate": gates(1.0, 1.0)}),
    "SAPO with its temperatures exchanged": ("sapo", {"surrogate": gates(1.05, 1.0)}),
    "SAPO without 4 / temperature": ("sapo", {"surrogate": gate_without_its_scale}),
    "SAPO with the logarithm in its gate": ("sapo", {"surrogate": gate_of_the_log_ratio}),
    "SAPO with sequence ratios": ("sapo", {"log_ratio": VARIANTS["gspo"].log_ratio}),
    "GSPO for GSPO-token": ("gspo_token", {"log_ratio": VARIANTS["gspo"].log_ratio}),
    "GSPO-token for GSPO": ("gspo", {"log_ratio": VARIANTS["gspo_token"].log_ratio}),
    "GSPO-token with a sum over the sequence": (
        "gspo_token",
        {"log_ratio": sequence_value_from_a_sum},
    ),
    "GMPO with a product": ("gmpo", {"surrogate": product_of_ratios}),
    "GMPO that clips the mean": ("gmpo", {"surrogate": clips_the_mean}),
    "GMPO that clips on both sides": ("gmpo", {"surrogate": clips_logarithms_on_both_sides}),
    "GMPO with GRPO's bounds": (
        "gmpo",
        {"surrogate": partial(geometric_mean_surrogate, clip_eps=0.2, clip_eps_high=0.2)},
    ),
    "LUSPO divided by the length": ("luspo", {"aggregate": sequence_mean}),
    "LUSPO divided by all tokens": ("luspo", {"aggregate": token_mean}),
    "LUSPO with GSPO's bounds": ("luspo", {"surrogate": VARIANTS["gspo"].surrogate}),
    "DPPO without the sign of A": (
        "dppo_tv",
        {"surrogate": partial(divergence, dropped=partial(whatever_the_sign, bound=0.15))},
    ),
    "DPPO with the other sign of A": (
        "dppo_tv",
        {"surrogate": partial(divergence, dropped=partial(by_the_other_sign, bound=0.15))},
    ),
    "DPPO at 0.25": (
        "dppo_tv",
        {"surrogate": partial(divergence, dropped=partial(by_the_sign, bound=0.25))},
    ),
    "DPPO with weights without bound": (
        "dppo_tv",
        {
            "surrogate": partial(
                divergence, dropped=partial(by_the_sign, bound=0.15), most=torch.inf
            )
        },
    ),
    "DPPO that clips ratios": ("dppo_tv", {"surrogate": VARIANTS["grpo"].surrogate}),
    "DPPO from the old policy": (
        "dppo_tv",
        {"surrogate": from_the_old_policy(VARIANTS["dppo_tv"].surrogate)},
    ),
    "IPO with the sign of A": (
        "ipo",
        {
            "surrogate": partial(
                divergence, dropped=partial(by_the_sign, bound=0.3), own_gradient=True
            )
        },
    ),
    "IPO at 0.1": (
        "ipo",
        {
            "surrogate": partial(
                divergence, dropped=partial(whatever_the_sign, bound=0.1), own_gradient=True
            )
        },
    ),
    "IPO whose dropped tokens leave the denominator": (
        "ipo",
        {"surrogate": leaves_the_denominator(VARIANTS["ipo"].surrogate)},
    ),
    "IPO from the old policy": (
        "ipo",
        {"surrogate": from_the_old_policy(VARIANTS["ipo"].surrogate)},
    ),
    "IPO with a deviation": ("ipo", {"advantages": VARIANTS["grpo"].advantages}),
    "VESPO with a gradient through phi": ("vespo", {"surrogate": phi_with_gradient}),
    "VESPO with a mean of log-ratios": ("vespo", {"surrogate": phi_of_the_mean}),
    "VESPO with its signs exchanged": (
        "vespo",
        {"surrogate": gammas(powers=(3.0, 2.0), rates=(2.0, 3.0))},
    ),
    "VESPO from the old policy": (
        "vespo",
        {"surrogate": from_the_old_policy(VARIANTS["vespo"].surrogate)},
    ),
    "VESPO with the weight itself": ("vespo", {"surrogate": unclipped_surrogate}),
    "the larger of the two": ("grpo", {"surrogate": optimistic}),
    "clips the logarithm": ("grpo", {"surrogate": clips_the_logarithm}),
    "wrong sign": ("grpo", {"surrogate": wrong_sign}),
    "0.2 above as well": ("dapo", {"surrogate": VARIANTS["grpo"].surrogate}),
    "0.28 above": ("grpo", {"surrogate": VARIANTS["dapo"].surrogate}),
    "GSPO without an upper bound": (
        "gspo",
        {"surrogate": partial(unclipped_on_one_side, low=1 - 3e-4, high=torch.inf)},
    ),
    "GSPO without a lower bound": (
        "gspo",
        {"surrogate": partial(unclipped_on_one_side, low=0.0, high=1 + 4e-4)},
    ),
    "GSPO with 3e-4 on both sides": (
        "gspo",
        {"surrogate": partial(unclipped_on_one_side, low=1 - 3e-4, high=1 + 3e-4)},
    ),
    "GSPO with GRPO's bounds": ("gspo", {"surrogate": VARIANTS["grpo"].surrogate}),
    "CISPO with TRL's bound": ("cispo", {"surrogate": weight_at_the_bound_itself}),
    "CISPO that caps A > 0 alone": ("cispo", {"surrogate": caps_positive_alone}),
    "CISPO with a gradient through the weight": ("cispo", {"surrogate": weight_with_gradient}),
    "CISPO with a lower bound": ("cispo", {"surrogate": weight_bounded_below}),
    "CISPO that drops what it caps": ("cispo", {"surrogate": drops_above_the_cap}),
    "a mask that multiplies the loss": ("cispo", {"aggregate": times_mask}),
    "a mask that multiplies the log-ratio": ("rloo", {"log_ratio": ratio_times_mask}),
    "a sum over the sequence": ("gspo", {"log_ratio": summed_ratio}),
    "an arithmetic mean over the sequence": ("gspo", {"log_ratio": arithmetic_ratio}),
    "a mean over the width": ("gspo", {"log_ratio": ratio_over_the_width}),
    "ratios of tokens": ("gspo", {"log_ratio": token_log_ratio}),
    "denominators without empty rows": ("grpo", {"aggregate": mean_of_sequences_with_tokens}),
    "a mean per micro-batch": ("grpo", {"aggregate": micro_batch_mean}),
    "a token mean per micro-batch": ("dapo", {"aggregate": micro_batch_token_mean}),
    "a token mean for a mean over sequences": ("grpo", {"aggregate": token_mean}),
    "a mean over sequences for a token mean": ("cispo", {"aggregate": sequence_mean}),
    "a mean over the padded width": ("grpo", {"aggregate": mean_over_the_width}),
    "lengths to the last token": ("grpo", {"aggregate": length_to_the_last_token}),
    "without the first token": ("grpo", {"aggregate": starts_one_late}),
    "a mask for a prefix": ("grpo", {"aggregate": prefix_alone}),
    "the width for the constant length": ("dr_grpo", {"aggregate": divides_by_the_width}),
    "a biased deviation": ("grpo", {"advantages": groups_of(partial(standardised, ddof=0))}),
    "no epsilon": ("grpo", {"advantages": groups_of(partial(standardised, epsilon=0.0))}),
    "an epsilon of 1e-8": ("gspo", {"advantages": groups_of(partial(standardised, epsilon=1e-8))}),
    "an epsilon of 1e-6": ("dapo", {"advantages": groups_of(partial(standardised, epsilon=1e-6))}),
    "an epsilon below the root": ("grpo", {"advantages": groups_of(epsilon_in_the_root)}),
    "a deviation of the batch": ("grpo", {"advantages": over_the_batch}),
    "a deviation for Dr. GRPO": ("dr_grpo", {"advantages": VARIANTS["grpo"].advantages}),
    "no deviation for GRPO": ("grpo", {"advantages": VARIANTS["dr_grpo"].advantages}),
    "the group's mean for RLOO": ("rloo", {"advantages": VARIANTS["dr_grpo"].advantages}),
    "the group's deviation for Lite PPO": (
        "lite_ppo",
        {"advantages": VARIANTS["grpo"].advantages},
    ),
    "the deviation of what is centred": ("lite_ppo", {"advantages": deviations_of_centred}),
    "MaxRL with a deviation": ("max_rl", {"advantages": VARIANTS["grpo"].advantages}),
    "MaxRL with an epsilon": ("max_rl", {"advantages": groups_of(mean_with_an_epsilon)}),
    "GDPO normalised after the sum": ("gdpo", {"advantages": normalised_after_the_sum}),
    "GDPO without weights": ("gdpo", {"advantages": without_weights}),
    "GDPO with what is only logged": ("gdpo", {"advantages": with_what_is_logged}),
    "GDPO with 0 for what does not apply": ("gdpo", {"advantages": zero_where_none_applies}),
    "GDPO without the batch's deviation": ("gdpo", {"advantages": without_a_second_deviation}),
    "a lead over the mean": ("pass_at_k", {"advantages": groups_of(lead_over_the_mean)}),
    "a lead that is shared": ("pass_at_k", {"advantages": groups_of(lead_of_all_that_are_best)}),
    "a lead in deviations": ("pass_at_k", {"advantages": groups_of(lead_in_deviations)}),
    "a reward to go that starts one late": ("reinforce_pp", {"advantages": to_go_one_late}),
    "the whole return at each token": (
        "reinforce_pp",
        {"advantages": whole_return_at_each_token},
    ),
    "the penalty of the token alone": (
        "reinforce_pp",
        {"advantages": penalty_of_the_token_alone},
    ),
    "REINFORCE++ in groups": ("reinforce_pp", {"advantages": to_go_in_groups}),
    "REINFORCE++ over padding": ("reinforce_pp", {"advantages": over_the_padded_width}),
    "a biased deviation of tokens": ("reinforce_pp", {"advantages": biased_over_tokens}),
    "REINFORCE++ over rollouts": ("reinforce_pp_baseline", {"advantages": over_rollouts}),
    "REINFORCE++ without its baseline": (
        "reinforce_pp_baseline",
        {"advantages": VARIANTS["reinforce_pp"].advantages},
    ),
    "OPO without lengths": ("opo", {"advantages": VARIANTS["dr_grpo"].advantages}),
    "OPO with the mean of the others": ("opo", {"advantages": VARIANTS["rloo"].advantages}),
    "OPO with ends for lengths": ("opo", {"advantages": weighted_by_the_width}),
    "OPO with squares of lengths": ("opo", {"advantages": weighted_by_squares}),
}


@pytest.mark.parametrize(
    ("name", "rule", "own_gradient"),
    [
        ("dppo_tv", partial(by_the_sign, bound=0.15), False),
        ("ipo", partial(whatever_the_sign, bound=0.3), True),
    ],
)
def test_what_wrong_losses_are_made_of_is_right_with_the_right_rule(name, rule, own_gradient):
    surrogate = partial(divergence, dropped=rule, own_gradient=own_gradient)
    right = replace(VARIANTS[name], surrogate=surrogate)
    assert not list(failures(name, right, read(name)["tolerance"]))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_loss_fails_a_case(wrong):
    name, choices = WRONG[wrong]
    assert list(failures(name, replace(VARIANTS[name], **choices), read(name)["tolerance"]))
