"""What each objective ascends on average, by enumeration of every batch of a small language.

On policy the expected gradient of a row is that of a stated objective, with the factor of a finite
group, or it is that of none, and then its length along grad E[R] and the cosine to it are numbers.
They are those of one small language: they prove that there is a bias, not how large it is
elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals, constant_length_mean
from common.algo.objective import Objective
from common.algo.tokens import TokenBatch
from tests.algo.enumeration import (
    World,
    expected_gradient,
    expected_reward,
    gradient_of,
    token_losses,
)
from tests.helpers import REPOSITORY
from tests.variants import MAX_TOKENS, VARIANTS

# A group of two answers of up to three tokens from a vocabulary of five: 7,225 batches.
WORLD = World()
LARGER_GROUPS = World(vocabulary=2, group_size=4)
TWO_PROMPTS = World(vocabulary=2, prompts=2)
RIGHT_OR_WRONG = World(vocabulary=2, group_size=4, binary=True)

Stated = Callable[[World, Tensor], Tensor]


@dataclass(frozen=True)
class Claim:
    """A row that ascends an objective, as the page names it."""

    says: str
    stated: Stated


@dataclass(frozen=True)
class Biased:
    """A row that ascends none: why, and in a batch of one group and of two prompts how far along
    grad E[R] it goes, and the cosine to it."""

    says: str
    one_group: tuple[float, float]
    two_prompts: tuple[float, float]


@dataclass(frozen=True)
class Same:
    """A row that differs from another off policy alone."""

    row: str


def reward_times(factor: Callable[[int], float]) -> Stated:
    """E[R] times a factor that the size of the group makes."""
    return lambda world, log_probs: factor(world.group_size) * expected_reward(world, log_probs)


def expected_best(world: World, log_probs: Tensor) -> Tensor:
    """The mean over prompts of E[the highest reward of a group], from how likely answers are to
    have at most each reward."""
    of_prompts = []
    for prompt in range(world.prompts):
        rewards, chosen = world.rewards(prompt), log_probs[prompt].exp()
        values = rewards.unique()
        at_most = torch.stack([chosen[rewards <= value].sum() for value in values])
        all_at_most = at_most**world.group_size
        exactly = all_at_most.diff(prepend=torch.zeros(1, dtype=torch.float64))
        of_prompts.append((values * exactly).sum())
    return torch.stack(of_prompts).mean()


CLAIMS: dict[str, Claim | Biased | Same] = {
    "grpo": Biased(
        "divides by the length and by the group's deviation", (0.4310, 0.9330), (0.4294, 0.9489)
    ),
    "dr_grpo": Claim(
        "(G - 1) / (G L_max) E[R]", reward_times(lambda size: (size - 1) / size / MAX_TOKENS)
    ),
    "dapo": Biased(
        "divides by the tokens of the batch and by the group's deviation",
        (0.4018, 0.9347),
        (0.5624, 0.9473),
    ),
    "gspo": Same("grpo"),
    "cispo": Same("dapo"),
    "rloo": Claim("E[R]", reward_times(lambda size: 1.0)),
    "grpo_dual_clip": Same("grpo"),
    "sapo": Same("grpo"),
    "gspo_token": Same("grpo"),
    "gmpo": Same("grpo"),
    "luspo": Biased("divides by the group's deviation", (1.0054, 0.9439), (0.8888, 0.9028)),
    "dppo_tv": Same("dr_grpo"),
    "ipo": Biased("divides by the tokens of the batch", (0.1995, 0.9980), (0.3155, 0.9940)),
    "vespo": Same("dapo"),
    "lite_ppo": Biased(
        "divides by the tokens of the batch and by its deviation",
        (0.4018, 0.9347),
        (0.6381, 0.9800),
    ),
    "max_rl": Biased(
        "divides by the group's mean; of 0 and 1 it ascends the likelihood of right answers, up to "
        "the power G - 1",
        (0.1257, 0.9159),
        (0.0805, 0.8389),
    ),
    "gdpo": Biased(
        "divides by the length and by a deviation for each reward",
        (0.4271, 0.9242),
        (0.4436, 0.7721),
    ),
    "pass_at_k": Claim(
        "E[best of G] / (G L_max)",
        lambda world, log_probs: expected_best(world, log_probs) / (world.group_size * MAX_TOKENS),
    ),
    "reinforce_pp": Biased(
        "divides by the tokens of the batch and by their deviation, and has the sample in the "
        "baseline, once for each of its tokens",
        (0.5350, 0.9350),
        (0.9624, 0.8211),
    ),
    "reinforce_pp_baseline": Biased(
        "divides by the tokens of the batch and by their deviation",
        (0.5350, 0.9350),
        (0.8058, 0.9824),
    ),
    "opo": Biased(
        "has the sample in the baseline, once for each of its tokens",
        (0.5084, 0.9978),
        (0.4672, 0.9827),
    ),
}


@cache
def on_policy(name: str, world: World) -> Tensor:
    return expected_gradient(VARIANTS[name], world, world.logits())


def cosine(found: Tensor, true: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.flatten(), true.flatten(), dim=0))


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def test_every_row_has_a_claim():
    assert list(CLAIMS) == list(VARIANTS)


@pytest.mark.parametrize("name", [name for name, c in CLAIMS.items() if isinstance(c, Claim)])
@pytest.mark.parametrize("world", [WORLD, LARGER_GROUPS, TWO_PROMPTS], ids=str)
def test_a_row_ascends_what_is_stated(name, world):
    claim = CLAIMS[name]
    assert isinstance(claim, Claim)
    true = gradient_of(claim.stated, world, world.logits())
    assert true.norm() > 1e-3
    assert error(on_policy(name, world), true) < 1e-12


@pytest.mark.parametrize("name", [name for name, c in CLAIMS.items() if isinstance(c, Biased)])
def test_the_bias_of_a_row_is_what_is_stated(name):
    claim = CLAIMS[name]
    assert isinstance(claim, Biased)
    for world, stated in ((WORLD, claim.one_group), (TWO_PROMPTS, claim.two_prompts)):
        true, found = gradient_of(expected_reward, world, world.logits()), on_policy(name, world)
        factor = float((found * true).sum() / true.square().sum())
        assert (factor, cosine(found, true)) == pytest.approx(stated, abs=6e-5)


@pytest.mark.parametrize("name", [name for name, c in CLAIMS.items() if isinstance(c, Same)])
def test_a_row_is_on_policy_the_same_as_another(name):
    claim = CLAIMS[name]
    assert isinstance(claim, Same)
    assert error(on_policy(name, WORLD), on_policy(claim.row, WORLD)) < 1e-12


def test_the_page_states_the_same():
    table = re.findall(r"^\| `\w+` \|.*\|$", page_section("On policy"), re.M)
    assert table == [line_of(name, claim) for name, claim in CLAIMS.items()]


def line_of(name: str, claim: Claim | Biased | Same) -> str:
    """The row of the page's table."""
    match claim:
        case Claim(says):
            cells = [f"exactly that of {says}", "", ""]
        case Same(row):
            cells = [f"as `{row}`", "", ""]
        case Biased(says):
            stated = (claim.one_group, claim.two_prompts)
            cells = [says, *(f"{factor:.3f}, {cosine:.3f}" for factor, cosine in stated)]
    return f"| `{name}` | {' | '.join(cells)} |"


def page_section(title: str) -> str:
    """Of docs/expected_gradients.md."""
    text = (REPOSITORY / "docs" / "expected_gradients.md").read_text(encoding="utf-8")
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def without_lengths(name: str) -> Objective:
    """The row with the sum over tokens, so that what its advantages do stands alone."""
    return replace(VARIANTS[name], aggregate=partial(constant_length_mean, max_tokens=1))


def test_the_deviation_of_a_pair_makes_beating_oneself_the_objective():
    """Two rewards that differ by d have advantages +-d / 2 / (|d| / sqrt(2) + epsilon), the sign of
    d but for a scale: how often an answer beats another of the same policy, not by how much."""

    def beating_oneself(world: World, log_probs: Tensor) -> Tensor:
        rewards, chosen = world.rewards(0), log_probs[0].exp()
        gap = rewards[:, None] - rewards
        return chosen @ (gap / 2 / (gap.abs() / math.sqrt(2) + 1e-4)) @ chosen.detach()

    logits = WORLD.logits()
    true = gradient_of(beating_oneself, WORLD, logits)
    found = expected_gradient(without_lengths("grpo"), WORLD, logits)
    assert error(found, true) < 1e-12
    assert cosine(found, gradient_of(expected_reward, WORLD, logits)) == pytest.approx(
        0.9439, abs=1e-4
    )


def test_the_deviation_of_right_and_wrong_weighs_prompts_by_their_difficulty():
    """K of G answers are right with probability p: the expected gradient is grad p times
    E[sqrt(K (G - K) (G - 1) / G)] / (G p (1 - p)), which grows where p is near 0 or 1, as
    1 / sqrt(p (1 - p)) does, its limit for large groups."""
    world, logits = RIGHT_OR_WRONG, RIGHT_OR_WRONG.logits()
    size = world.group_size
    true = gradient_of(expected_reward, world, logits)
    p = float(expected_reward(world, world.log_probs(logits).sum(dim=-1)))
    mean = 0.0
    for k in range(1, size):
        share = k * (size - k)
        deviation = math.sqrt(share / (size * (size - 1))) + 1e-4
        mean += math.comb(size, k) * p**k * (1 - p) ** (size - k) * share / size**2 / deviation
    found = expected_gradient(without_lengths("grpo"), world, logits)
    assert error(found, mean / (p * (1 - p)) * true) < 1e-12


def test_the_mean_of_right_and_wrong_makes_the_likelihood_of_right_the_objective():
    """Of log p = -sum over k of (1 - p)^k / k a group of G has the terms up to k = G - 1, as its
    mean is that of the sample, too."""

    def likelihood(world: World, log_probs: Tensor) -> Tensor:
        wrong = 1 - expected_reward(world, log_probs)
        terms = [wrong**k / k for k in range(1, world.group_size)]
        return -torch.stack(terms).sum() / MAX_TOKENS

    world, logits = RIGHT_OR_WRONG, RIGHT_OR_WRONG.logits()
    true = gradient_of(likelihood, world, logits)
    assert error(expected_gradient(VARIANTS["max_rl"], world, logits), true) < 1e-12


@pytest.mark.parametrize(("aggregation_of", "expected"), [("grpo", 0.9899), ("dapo", 0.9980)])
def test_dividing_by_random_lengths_alone_turns_the_gradient(aggregation_of, expected):
    """Of RLOO, which is exact with its own aggregation: by the length of each answer, and by how
    many tokens the batch happens to have."""
    objective = replace(VARIANTS["rloo"], aggregate=VARIANTS[aggregation_of].aggregate)
    found = expected_gradient(objective, WORLD, WORLD.logits())
    true = gradient_of(expected_reward, WORLD, WORLD.logits())
    assert cosine(found, true) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_batches_side_by_side_are_batches_one_at_a_time(name):
    """The enumeration scores batches with equally many tokens together: here each alone, as a run
    sees it."""
    world, objective = World(vocabulary=3, longest=2), VARIANTS[name]
    logits = world.logits().requires_grad_()
    log_probs = world.log_probs(logits)
    loss = torch.zeros((), dtype=torch.float64)
    for answers in world.batches:
        mask, chosen = world.mask[answers], log_probs[0, answers]
        totals = BatchTotals(len(answers), int(mask.sum()))
        advantages = objective.advantages(world.compared(answers))
        tokens = TokenBatch(
            chosen,
            chosen.detach(),
            chosen.detach(),
            None,
            advantages if advantages.ndim == 2 else advantages[:, None].expand(mask.shape),
            mask,
            totals,
        )
        share = objective.aggregate(token_losses(objective, tokens), mask, totals)
        loss = loss + chosen.detach().sum().exp() * share
    (gradient,) = torch.autograd.grad(-loss, logits)
    assert error(on_policy(name, world), gradient) < 1e-12
