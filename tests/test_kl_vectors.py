"""The training code reproduces the published vectors of the KL, and no wrong estimate does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.kl import (
    MAX_K3,
    MAX_LOG_RATIO,
    MAX_WEIGHT,
    PENALTIES,
    k2_penalty,
    k3_penalty,
    k3_weighted_penalty,
    kl_divergence_k1,
)
from common.algo.tokens import TokenBatch
from tests.test_vectors import agrees, read, tensor
from tests.vectors.make import KL_BOUNDS

Estimate = Callable[[TokenBatch], Tensor]


def k1_in_the_reward(tokens: TokenBatch) -> Tensor:
    assert tokens.log_probs_ref is not None
    return kl_divergence_k1(tokens.log_probs.detach(), tokens.log_probs_ref, tokens.mask)


OURS: Mapping[str, Estimate] = {
    "kl_k1": k1_in_the_reward,
    **{f"kl_{name}": penalty for name, penalty in PENALTIES.items()},
}


def kl_agrees(name: str, estimate: Estimate, tolerance: Mapping[str, float]) -> bool:
    (case,) = read(name)["cases"]
    log_probs = tensor(case["log_probs"]).requires_grad_()
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    tokens = TokenBatch(
        log_probs,
        tensor(case.get("log_probs_old", case["log_probs"])),
        tensor(case.get("log_probs_sampler", case["log_probs"])),
        tensor(case["log_probs_ref"]),
        torch.zeros_like(log_probs),
        mask,
        BatchTotals(len(mask), int(mask.sum())),
    )
    kl = torch.where(mask, estimate(tokens), 0.0)
    if not agrees(kl, case["kl"], tolerance):
        return False
    (kl.sum() + 0 * torch.where(mask, log_probs, 0.0).sum()).backward()
    assert log_probs.grad is not None
    return agrees(log_probs.grad, case["gradient"], tolerance)


def test_there_is_a_file_for_each_estimator_with_our_bounds():
    assert KL_BOUNDS == {
        "kl_k1": {"largest_log_ratio": MAX_LOG_RATIO},
        "kl_k2": {"largest_log_ratio": MAX_LOG_RATIO},
        "kl_k3": {"bound": MAX_K3},
        "kl_k3_weighted": {
            "bound": MAX_K3,
            "largest_log_ratio": MAX_LOG_RATIO,
            "largest_weight": MAX_WEIGHT,
        },
    }
    assert OURS.keys() == KL_BOUNDS.keys()


@pytest.mark.parametrize("name", KL_BOUNDS)
def test_the_training_code_reproduces_the_file(name):
    assert kl_agrees(name, OURS[name], {"relative": 1e-9, "absolute": 1e-16})


def test_tokens_beyond_the_bound_of_k3_have_no_gradient():
    (case,) = read("kl_k3")["cases"]
    slopes = [s for value, s in zip(case["kl"][0], case["gradient"][0], strict=True) if value == 10]
    assert slopes == [0.0] * 4


def difference(tokens: TokenBatch) -> Tensor:
    assert tokens.log_probs_ref is not None
    return torch.where(tokens.mask, tokens.log_probs_ref - tokens.log_probs, 0.0)


def k3(d: Tensor) -> Tensor:
    return torch.expm1(d) - d


def weight(tokens: TokenBatch) -> Tensor:
    log_weight = torch.where(tokens.mask, tokens.log_probs - tokens.log_probs_sampler, 0.0)
    return log_weight.exp()


def reversed_k3(tokens: TokenBatch) -> Tensor:
    return k3(-difference(tokens)).clamp(max=10)


def mask_multiplies(tokens: TokenBatch) -> Tensor:
    assert tokens.log_probs_ref is not None
    return k3(tokens.log_probs_ref - tokens.log_probs).clamp(max=10) * tokens.mask


def with_gradient_of(value: Estimate, gradient: Estimate) -> Estimate:
    def straight_through(tokens: TokenBatch) -> Tensor:
        descended = gradient(tokens)
        return value(tokens).detach() + descended - descended.detach()

    return straight_through


def old_for_the_sampler(tokens: TokenBatch) -> Tensor:
    return k3_weighted_penalty(replace(tokens, log_probs_sampler=tokens.log_probs_old))


WRONG: dict[str, tuple[str, Estimate]] = {
    "k1 as a loss": ("kl_k1", lambda tokens: -difference(tokens)),
    "k1 of the other sign": ("kl_k1", lambda tokens: difference(tokens).detach().clamp(-40, 40)),
    "k1 without its sign": (
        "kl_k1",
        lambda tokens: difference(tokens).detach().abs().clamp(max=40),
    ),
    "k1 unbounded": ("kl_k1", lambda tokens: -difference(tokens).detach()),
    "k1 at 10": ("kl_k1", lambda tokens: -difference(tokens).detach().clamp(-10, 10)),
    "k2 unbounded": ("kl_k2", lambda tokens: difference(tokens).square() / 2),
    "k2 at 10": ("kl_k2", lambda tokens: (difference(tokens).square() / 2).clamp(max=10)),
    "k2 without its half": ("kl_k2", lambda tokens: 2 * k2_penalty(tokens)),
    "k2 with the gradient of k3": ("kl_k2", with_gradient_of(k2_penalty, k3_penalty)),
    "k3 for k2": ("kl_k2", k3_penalty),
    "k1 for k3": ("kl_k3", lambda tokens: -difference(tokens)),
    "k2 for k3": ("kl_k3", k2_penalty),
    "k3 with the gradient of k2": ("kl_k3", with_gradient_of(k3_penalty, k2_penalty)),
    "k3 unbounded": ("kl_k3", lambda tokens: k3(difference(tokens))),
    "k3 reversed": ("kl_k3", reversed_k3),
    "k3 with bounded d": ("kl_k3", lambda tokens: k3(difference(tokens).clamp(-10, 10))),
    "k3 at 20": ("kl_k3", lambda tokens: k3(difference(tokens)).clamp(max=20)),
    "k3 with a mask that multiplies": ("kl_k3", mask_multiplies),
    "k3 whose bound keeps its gradient": (
        "kl_k3",
        with_gradient_of(k3_penalty, lambda tokens: k3(difference(tokens))),
    ),
    "no weight": ("kl_k3_weighted", k3_penalty),
    "a weight without gradient": (
        "kl_k3_weighted",
        lambda tokens: weight(tokens).detach().clamp(max=10) * k3_penalty(tokens),
    ),
    "a weight over the old policy": ("kl_k3_weighted", old_for_the_sampler),
    "a weight without bound": (
        "kl_k3_weighted",
        with_gradient_of(
            k3_weighted_penalty, lambda tokens: weight(tokens).detach() * k2_penalty(tokens)
        ),
    ),
    "a bound within the weight": (
        "kl_k3_weighted",
        lambda tokens: weight(tokens).clamp(max=10) * k3_penalty(tokens),
    ),
    "a bound of the product": (
        "kl_k3_weighted",
        lambda tokens: (weight(tokens) * k3(difference(tokens))).clamp(max=10),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_estimate_fails(wrong):
    name, estimate = WRONG[wrong]
    assert not kl_agrees(name, estimate, read(name)["tolerance"])
