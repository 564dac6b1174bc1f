"""Our losses against TRL's own, where the definitions are the same, and by how much where not.

`GRPOTrainer._compute_loss` runs unbound on a namespace that hands it our log-probs: no model, no
trainer. It is private code, so the version is pinned by the extra `[oracle]`: `make oracle`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from common.algo.advantages import group_advantages
from common.algo.aggregation import BatchTotals
from common.algo.kl import kl_divergence_k3
from common.algo.objective import Objective
from tests.variants import MAX_TOKENS, VARIANTS, token_losses

grpo_trainer = pytest.importorskip(
    "trl.trainer.grpo_trainer", reason="TRL is not installed; make oracle installs it and runs this"
)


@dataclass(frozen=True)
class Inputs:
    """A whole optimizer batch, float64."""

    log_probs: Tensor
    old: Tensor
    ref: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def totals(self) -> BatchTotals:
        return BatchTotals(len(self.mask), int(self.mask.sum()))


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs(spread=0.3)


def make_inputs(spread: float) -> Inputs:
    """`spread` is that of the log-ratio."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(6, 9, generator=generator, dtype=torch.float64)

    log_probs = -noise(2.0).abs()
    lengths = torch.tensor([9, 3, 7, 1, 5, 2])
    return Inputs(
        log_probs,
        log_probs + noise(spread),
        log_probs + noise(0.3),
        torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0], dtype=torch.float64),
        torch.arange(9) < lengths[:, None],
    )


def with_gradient(loss: Tensor, log_probs: Tensor) -> tuple[float, Tensor]:
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad


def ours(objective: Objective, inputs: Inputs, kl_weight: float = 0.0) -> tuple[float, Tensor]:
    log_probs = inputs.log_probs.clone().requires_grad_()
    per_token = token_losses(objective, log_probs, inputs.old, inputs.advantages, inputs.mask)
    kl = kl_divergence_k3(log_probs, inputs.ref, inputs.mask)
    loss = objective.aggregate(per_token + kl_weight * kl, inputs.mask, inputs.totals)
    return with_gradient(loss, log_probs)


def theirs(
    inputs: Inputs,
    loss_type: str,
    eps: float,
    eps_high: float,
    *,
    kl_weight: float = 0.0,
    level: str = "token",
    generated_tokens: int | None = None,
    steps_per_generation: int = 1,
) -> tuple[float, Tensor]:
    """TRL's loss of the batch; `generated_tokens` are those of its whole generation."""
    log_probs = inputs.log_probs.clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            log_probs,
            torch.zeros_like(log_probs),
            None,
        ),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda value: value,
            reduce=lambda value, reduction: value,
        ),
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=steps_per_generation
        ),
        aux_loss_enabled=False,
        beta=kl_weight,
        current_gradient_accumulation_steps=1,
        epsilon_high=eps_high,
        epsilon_low=eps,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=MAX_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )
    prompts = torch.zeros(len(inputs.mask), 1, dtype=torch.long)
    loss = grpo_trainer.GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": torch.zeros_like(inputs.mask, dtype=torch.long),
            "completion_mask": inputs.mask.long(),
            "advantages": inputs.advantages,
            "old_per_token_logps": inputs.old,
            "ref_per_token_logps": inputs.ref,
            "num_items_in_batch": torch.tensor(
                float(generated_tokens or inputs.totals.tokens), dtype=torch.float64
            ),
        },
    )
    return with_gradient(loss, log_probs)


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "loss_type", "eps", "eps_high", "level", "spread"),
    [
        ("grpo", "grpo", 0.2, 0.2, "token", 0.3),
        ("dr_grpo", "dr_grpo", 0.2, 0.2, "token", 0.3),
        ("dapo", "dapo", 0.2, 0.28, "token", 0.3),
        ("gspo", "grpo", 3e-4, 4e-4, "sequence", 1e-3),
    ],
)
def test_the_same_definition_gives_the_same_loss_and_gradient(
    name, loss_type, eps, eps_high, level, spread, kl_weight
):
    inputs = make_inputs(spread)
    loss, gradient = ours(VARIANTS[name], inputs, kl_weight)
    expected_loss, expected = theirs(
        inputs, loss_type, eps, eps_high, kl_weight=kl_weight, level=level
    )
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)
    assert gradient.abs().max() > 1e-3


def test_cispo_differs_in_what_its_upper_bound_is_counted_from(inputs):
    """Ours is 1 + eps_high, as in the paper; TRL's is `epsilon_high` itself. Its default of 0.2
    therefore cuts every on-policy weight of 1 down to a fifth."""
    loss, gradient = ours(VARIANTS["cispo"], inputs)
    expected_loss, expected = theirs(inputs, "cispo", 0.2, 1 + 0.3)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)

    on_policy = replace(inputs, old=inputs.log_probs)
    _, gradient = ours(VARIANTS["cispo"], on_policy)
    _, shrunk = theirs(on_policy, "cispo", 0.2, 0.2)
    torch.testing.assert_close(shrunk, 0.2 * gradient, rtol=1e-11, atol=1e-14)


def test_dapo_differs_in_the_tokens_it_divides_by_with_several_steps_per_generation(inputs):
    """Ours counts the tokens of the optimizer batch. TRL divides by the mean number of tokens per
    optimizer step of the generation, which is another number where the steps are uneven."""
    tokens = inputs.totals.tokens
    other_step = 3 * tokens
    loss, gradient = ours(VARIANTS["dapo"], inputs)
    their_loss, their_gradient = theirs(
        inputs,
        "dapo",
        0.2,
        0.28,
        generated_tokens=tokens + other_step,
        steps_per_generation=2,
    )
    assert their_loss == pytest.approx(loss * tokens / ((tokens + other_step) / 2), rel=1e-12)
    torch.testing.assert_close(their_gradient, gradient / 2, rtol=1e-11, atol=1e-14)


def test_advantages_of_trl_are_those_of_grpo():
    """TRL computes them inside a long method, from `nanstd`, which has Bessel's correction."""
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.5], dtype=torch.float64)
    expected = (rewards - rewards.mean()) / (nanstd(rewards) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), expected)
