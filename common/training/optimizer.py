"""The learning rate of a step, and the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from common.flags.train_config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` of `total_steps`: linear warm-up, then the schedule."""
    warmup_steps = math.ceil(config.warmup_fraction * total_steps)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    progress = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_schedule]
    return config.lr * warmup * decay


def optimizer_steps(config: TrainConfig, batches: int) -> int:
    """Optimizer steps in that many rollout batches."""
    sequences = config.rollouts_per_step * config.group_size
    return batches * config.epochs_per_step * math.ceil(sequences / config.train_batch_size)


def make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    rate: float,
    max_grad_norm: float,
    clip: Callable[..., Any] = torch.nn.utils.clip_grad_norm_,
) -> float:
    """Clip, step and clear the gradients; returns the norm before clipping.

    Gradients that are not finite are dropped and change nothing; the norm tells. `clip` is torch's
    function or Accelerate's.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(clip(parameters, max_grad_norm or math.inf))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
