"""The models of a run: what is trained, and what it is held near."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import load_policy
from common.models.log_probs import TokenLogProbs, reference_log_probs
from common.models.vocabulary import num_tokens
from common.replay_buffer import LogProbModel

if TYPE_CHECKING:
    import transformers


def load_models(
    config: TrainConfig,
    device: torch.device,
    weights: Path | None,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    with_reference: bool,
) -> tuple[TokenLogProbs, LogProbModel | None]:
    """The policy, as it starts or as a checkpoint's `weights` hold it, and its reference.

    Raises `UserError` for a layer or head to be drawn that the model has not.
    """
    options = replace(config.model_options(device), num_tokens=num_tokens(tokenizer))
    model = load_policy(options, weights)
    if config.figures_interval:
        check_head(model.config.get_text_config(), config.figures_layer, config.figures_head)
    policy = TokenLogProbs(
        model,
        config.temperature,
        use_bfloat16=options.use_bfloat16,
        learns_entropy=config.entropy_weight > 0,
    )
    return policy, reference_log_probs(options, policy) if with_reference else None


def check_head(architecture: transformers.PretrainedConfig, layer: int, head: int) -> None:
    """Raise `UserError` for a layer or a head of it that the architecture has not."""
    layers, heads = architecture.num_hidden_layers, architecture.num_attention_heads
    if not -layers <= layer < layers:
        raise UserError(f"--figures-layer {layer}: must be 0 to {layers - 1}, or -1 for the last")
    if not 0 <= head < heads:
        raise UserError(f"--figures-head {head}: must be 0 to {heads - 1}")
