"""TRL's trainers without a model, a data set or a trainer.

Their methods run unbound on a namespace that hands them log-probs, entropies and rewards of ours.
They are private code, so the version is pinned by the extra `[oracle]`: `make oracle`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.tokens import TokenBatch
from tests.variants import MAX_TOKENS

grpo_trainer = pytest.importorskip(
    "trl.trainer.grpo_trainer", reason="TRL is not installed; make oracle installs it and runs this"
)
GRPOTrainer = grpo_trainer.GRPOTrainer


@dataclass(frozen=True)
class Inputs:
    """A whole optimizer batch in float64, sequences x time; TRL has one advantage per sequence."""

    log_probs: Tensor
    old: Tensor
    sampler: Tensor
    ref: Tensor
    entropy: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def totals(self) -> BatchTotals:
        return BatchTotals(len(self.mask), int(self.mask.sum()))

    def tokens(self, log_probs: Tensor) -> TokenBatch:
        advantages = self.advantages.view(len(self.mask), -1).expand(self.mask.shape)
        return TokenBatch(
            log_probs, self.old, self.sampler, self.ref, advantages, self.mask, self.totals
        )


def make_inputs(spread: float = 0.3, sampler_spread: float = 0.0) -> Inputs:
    """`spread` is that of log(pi / pi_old), `sampler_spread` of log(pi_old / mu)."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(6, 9, generator=generator, dtype=torch.float64)

    log_probs = -noise(2.0).abs()
    old = log_probs + noise(spread)
    ref = log_probs + noise(0.3)
    lengths = torch.tensor([9, 3, 7, 1, 5, 2])
    return Inputs(
        log_probs,
        old,
        old + noise(sampler_spread),
        ref,
        noise(1.0).abs(),
        torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0], dtype=torch.float64),
        torch.arange(9) < lengths[:, None],
    )


# What TRL's trainers look at, as their defaults are where it does not matter here.
DEFAULTS: dict[str, Any] = {
    "args.delta": None,
    "args.gradient_accumulation_steps": 1,
    "args.gradient_checkpointing_kwargs": None,
    "args.per_device_train_batch_size": 6,
    "args.sapo_temperature_neg": 1.05,
    "args.sapo_temperature_pos": 1.0,
    "args.steps_per_generation": 1,
    "args.use_bias_correction_kl": False,
    "args.vespo_k_neg": 3.0,
    "args.vespo_k_pos": 2.0,
    "args.vespo_lambda_neg": 2.0,
    "args.vespo_lambda_pos": 3.0,
    "_entropy_bonus_enabled": False,
    "aux_loss_enabled": False,
    "beta": 0.0,
    "chat_template_kwargs": {},
    "current_gradient_accumulation_steps": 1,
    "entropy_coef": 0.0,
    "environment_factories": None,
    "environments": None,
    "epsilon_high": 0.2,
    "epsilon_low": 0.2,
    "importance_sampling_level": "token",
    "loss_type": "grpo",
    "mask_truncated_completions": False,
    "max_completion_length": MAX_TOKENS,
    "multi_objective_aggregation": "sum_then_normalize",
    "num_iterations": 1,
    "off_policy_mask_threshold": None,
    "pad_to_multiple_of": None,
    "ref_model": None,
    "scale_rewards": "group",
    "tools": None,
    "top_entropy_quantile": 1.0,
    "use_adaptive_entropy": False,
    "use_vllm": False,
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "sequence_mask",
}


def namespace(settings: dict[str, Any]) -> Any:
    unknown = settings.keys() - DEFAULTS.keys()
    assert not unknown, unknown
    values = DEFAULTS | settings
    own = {name: value for name, value in values.items() if not name.startswith("args.")}
    args = {name.removeprefix("args."): v for name, v in values.items() if name not in own}
    trainer = SimpleNamespace(
        **own,
        args=SimpleNamespace(**args),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            gather=lambda value: value,
            num_processes=1,
            pad_across_processes=lambda value, dim, pad_index: value,
            process_index=0,
            reduce=lambda value, reduction: value,
            sync_gradients=True,
        ),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _metrics={"train": defaultdict(list)},
    )
    trainer.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, trainer)
    return trainer


def trl_loss(
    inputs: Inputs,
    trainer_class: Any = GRPOTrainer,
    *,
    weights: Tensor | None = None,
    generated_tokens: int | None = None,
    **settings: Any,
) -> tuple[float, Tensor, Tensor]:
    """The loss of the batch, and its gradients with respect to the log-probs and the entropies.

    `weights` are those of its correction, and `generated_tokens` those of its whole generation.
    """
    log_probs = inputs.log_probs.clone().requires_grad_()
    entropy = inputs.entropy.clone().requires_grad_()
    trainer = namespace(settings)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, entropy, None)
    prompts = torch.zeros(len(inputs.mask), 1, dtype=torch.long)
    tokens = float(generated_tokens or inputs.totals.tokens)
    given = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.zeros_like(inputs.mask, dtype=torch.long),
        "completion_mask": inputs.mask.long(),
        "advantages": inputs.advantages,
        "old_per_token_logps": inputs.old,
        "old_logps": torch.where(inputs.mask, inputs.old, 0.0).sum(dim=-1),
        "sampling_per_token_logps": inputs.sampler,
        "ref_per_token_logps": inputs.ref,
        "num_items_in_batch": torch.tensor(tokens, dtype=torch.float64),
    }
    if weights is not None:
        given["importance_sampling_ratio"] = weights
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    with in_float64():
        loss = trainer_class._compute_loss(trainer, None, given)
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad, torch.zeros(()) if entropy.grad is None else entropy.grad


def trl_scored(inputs: Inputs, scores: Tensor, group_size: int, **settings: Any) -> dict[str, Any]:
    """What TRL knows of completions when it has scored them, rewards in the columns of `scores`:
    their advantages, and the weights of its correction, which only a sampler of vLLM's gets."""
    trainer = namespace({"use_vllm": True, "vllm_importance_sampling_correction": True} | settings)
    lengths = inputs.mask.sum(dim=-1).tolist()
    trainer._generate = lambda prompts: (
        [[0]] * len(prompts),
        [[0] * length for length in lengths],
        None,
        [""] * len(prompts),
        [row[:length].tolist() for row, length in zip(inputs.sampler, lengths, strict=True)],
        {},
        None,
        None,
    )
    trainer._tokenizer = SimpleNamespace(pad_token_id=0)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (inputs.old, None, None)
    trainer._calculate_rewards = lambda *_: scores
    trainer.num_generations = group_size
    trainer.reward_func_names = [str(column) for column in range(scores.shape[1])]
    trainer.reward_funcs = trainer.reward_func_names
    trainer.reward_weights = torch.ones_like(scores[0])
    trainer._logs = defaultdict(list) | {"rewards": defaultdict(list)}
    trainer._pending_extra_logs, trainer._pending_metrics = {}, {}
    rows = [{"prompt": ""} for _ in lengths]
    with in_float64():
        return GRPOTrainer._generate_and_score_completions(trainer, rows)


@contextmanager
def in_float64() -> Iterator[None]:
    """What is made of Python's numbers has their precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
