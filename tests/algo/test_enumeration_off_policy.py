"""What a correction leaves of the bias of another sampler, by enumeration.

The policy pi is fixed, samples come from mu, and nothing has been learned from the batch yet. The
true gradient is that of E[R] under pi. RLOO has it exactly where mu is pi, so that what is missing
here is due to the sampler and its correction alone. Errors are relative to the true gradient, those
of one small language: they compare corrections, and say nothing of the errors in a larger one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from common.algo.correction import (
    CORRECTIONS,
    opsm,
    sequence_geometric,
    sequence_truncated,
    token_truncated,
)
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch
from tests.algo.enumeration import World, expected_gradient, expected_reward, gradient_of
from tests.algo.test_enumeration import cosine, error, page_section
from tests.variants import VARIANTS

WORLD = World()


def hotter(policy: Tensor) -> Tensor:
    return policy / 1.2


def noisy(policy: Tensor) -> Tensor:
    """Normal noise of half a nat on every logit."""
    generator = torch.Generator().manual_seed(7)
    return policy + 0.5 * torch.randn(policy.shape, generator=generator, dtype=torch.float64)


def two_steps_before(policy: Tensor) -> Tensor:
    """Two steps down the gradient of E[R], so that the policy is two steps of learning ahead."""
    for _ in range(2):
        policy = policy - 4 * gradient_of(expected_reward, WORLD, policy)
    return policy


def rounded(policy: Tensor) -> Tensor:
    return policy.bfloat16().double()


SAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "temperature 1.2": hotter,
    "noise of 0.5": noisy,
    "two steps old": two_steps_before,
    "logits in bfloat16": rounded,
}

# Corrections that with their default bounds keep next to nothing of so short answers, or all.
OTHER_BOUNDS = {
    "sequence_geometric within 0.8, 1.25": partial(sequence_geometric, low=0.8, high=1.25),
    "opsm at 0.1": partial(opsm, cap=0.1),
}

# Relative error and cosine under each of the samplers.
BIAS: dict[str, list[tuple[float, float]]] = {
    "none": [(0.1668, 0.9888), (0.3748, 0.9272), (0.2795, 0.9619), (0.0013, 1.0000)],
    "token_truncated": [(0.1251, 0.9958), (0.3312, 0.9509), (0.3065, 0.9594), (0.0013, 1.0000)],
    "token_masked": [(0.1251, 0.9958), (0.3376, 0.9489), (0.3065, 0.9597), (0.0013, 1.0000)],
    "sequence_truncated": [(0.0, 1.0), (0.0285, 0.9996), (0.0206, 0.9998), (0.0, 1.0)],
    "sequence_masked": [(0.0063, 1.0000), (0.2218, 0.9788), (0.4538, 0.8918), (0.0, 1.0)],
    "sequence_geometric": [(0.9662, 0.2910), (0.9939, 0.1739), (1.0, 0.0), (0.0013, 1.0000)],
    "opsm": [(0.1668, 0.9888), (0.3748, 0.9272), (0.2795, 0.9619), (0.0013, 1.0000)],
    "sequence_geometric within 0.8, 1.25": [
        *((0.1560, 0.9926), (0.3651, 0.9375), (0.6665, 0.7708), (0.0013, 1.0000))
    ],
    "opsm at 0.1": [(0.2325, 0.9726), (0.3354, 0.9591), (0.6253, 0.9660), (0.0013, 1.0000)],
    "dppo_tv": [(0.1251, 0.9958), (0.3590, 0.9669), (0.4226, 0.9089), (0.0013, 1.0000)],
    "ipo": [(0.1251, 0.9958), (0.3325, 0.9507), (0.3065, 0.9597), (0.0013, 1.0000)],
    # Near a product of 1, phi falls with it where A > 0, and rises where A < 0.
    "vespo": [(0.3435, 0.9481), (0.3925, 0.9561), (0.6957, 0.8873), (0.0026, 1.0000)],
}


def objectives() -> dict[str, Objective]:
    """RLOO under every correction, and with the surrogates of rows that use the sampler."""
    plain, choices = VARIANTS["rloo"], {**CORRECTIONS, **OTHER_BOUNDS}
    corrected = {name: corrected_by(correction) for name, correction in choices.items()}
    by_sampler = {
        name: replace(plain, log_ratio=row.log_ratio, surrogate=row.surrogate)
        for name, row in VARIANTS.items()
        if row.uses_sampler
    }
    return {"none": plain} | corrected | by_sampler


def corrected_by(correction: Callable[[TokenBatch], Tensor]) -> Objective:
    return replace(VARIANTS["rloo"], correction=correction)


@cache
def policy_and_truth() -> tuple[Tensor, Tensor]:
    policy = WORLD.logits()
    return policy, gradient_of(expected_reward, WORLD, policy)


def test_every_correction_has_its_bias_stated():
    assert list(BIAS) == list(objectives())


@pytest.mark.parametrize("name", BIAS)
def test_the_bias_under_a_correction_is_what_is_stated(name):
    policy, true = policy_and_truth()
    found = []
    for sampler in SAMPLERS.values():
        gradient = expected_gradient(objectives()[name], WORLD, policy, sampler(policy))
        found.append((error(gradient, true), cosine(gradient, true)))
    assert found == [pytest.approx(expected, abs=6e-5) for expected in BIAS[name]]


def test_the_page_states_the_same():
    table = re.findall(r"^\| `\w+`.* \| \d.*\|$", page_section("Off policy"), re.M)
    assert table == [line_of(name, bias) for name, bias in BIAS.items()]


def line_of(name: str, bias: list[tuple[float, float]]) -> str:
    """The row of the page's table; bounds that are not the default stand behind the name."""
    word, _, bounds = name.partition(" ")
    cells = [f"`{word}` {bounds}".rstrip(), *(f"{error:.3f}, {cos:.3f}" for error, cos in bias)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_product_of_a_sequence_is_exact_if_nothing_caps_it(sampler):
    policy, true = policy_and_truth()
    objective = corrected_by(partial(sequence_truncated, cap=math.inf))
    assert (
        error(expected_gradient(objective, WORLD, policy, SAMPLERS[sampler](policy)), true) < 1e-12
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weights_of_tokens_ascend_one_token_of_the_policy_between_those_of_the_sampler(sampler):
    """Even without a cap. That is the surrogate of PPO and of conservative policy iteration: a sum
    over positions of E[R] where the token there is the policy's, and those before and after it are
    the sampler's. It agrees with E[R] of the policy to the first order of what sets them apart."""
    policy, _ = policy_and_truth()
    given = SAMPLERS[sampler](policy)
    of_sampler = WORLD.log_probs(given)

    objective = corrected_by(partial(token_truncated, cap=math.inf))
    found = expected_gradient(objective, WORLD, policy, given)

    logits = policy.clone().requires_grad_()
    swapped = of_sampler.sum(dim=-1, keepdim=True) - of_sampler + WORLD.log_probs(logits)
    of_answers = torch.where(WORLD.mask, swapped.exp(), 0.0).sum(dim=-1)
    (true,) = torch.autograd.grad((of_answers * WORLD.rewards(0)).sum(), logits)
    assert error(found, true) < 1e-12


@pytest.mark.parametrize("name", [name for name in BIAS if name != "none"])
def test_where_the_sampler_is_the_policy_a_correction_changes_nothing(name):
    policy, true = policy_and_truth()
    assert error(expected_gradient(objectives()[name], WORLD, policy), true) < 1e-12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_to_take_the_sampler_for_the_old_policy_is_to_weigh_tokens(sampler):
    """`--old-log-probs sampler`, of an objective without bounds."""
    policy, _ = policy_and_truth()
    given = SAMPLERS[sampler](policy)
    two = expected_gradient(
        VARIANTS["rloo"], WORLD, policy, given, log_probs_old=WORLD.log_probs(given)
    )
    weighed = corrected_by(partial(token_truncated, cap=math.inf))
    assert error(two, expected_gradient(weighed, WORLD, policy, given)) < 1e-12
