"""The models of a run: what is trained, and what it is held near."""

from __future__ import annotations

from pathlib import Path

import torch

from common.models.load import load_policy
from common.models.log_probs import TokenLogProbs, reference_log_probs
from common.replay_buffer import LogProbModel
from common.run.config import TrainConfig


def load_models(
    config: TrainConfig, device: torch.device, weights: Path | None
) -> tuple[TokenLogProbs, LogProbModel | None]:
    """The policy, as it starts or as a checkpoint's `weights` hold it, and its reference.

    The reference is None for a run that neither weighs nor watches its KL.
    """
    options = config.model_options(device)
    model = load_policy(options, weights)
    policy = TokenLogProbs(model, config.temperature, use_bfloat16=options.use_bfloat16)
    return policy, reference_log_probs(options, policy) if config.watches_kl else None
