"""The models of a run: what is trained, and what it is held near."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import load_policy
from common.models.log_probs import TokenLogProbs, reference_log_probs
from common.models.vocabulary import num_tokens
from common.replay_buffer import LogProbModel
from common.run.checkpoint import Checkpoint

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True)
class Models:
    """Those of a run."""

    policy: TokenLogProbs
    reference: LogProbModel | None
    sampler: TokenLogProbs
    """The policy as it samples: itself, or a whole copy of one of which each rank has a part."""

    def follow(self) -> None:
        """Let what samples have the weights of the policy."""

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        """Bring it to where it was when the checkpoint was written."""
        optimizer.load_state_dict(checkpoint.state["optimizer"])

    def to_be_saved(
        self, optimizer: torch.optim.Optimizer, parts: Path
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        """For a checkpoint: weights, if they are not those of the model that samples, and what
        belongs to the state of its training. What has no place there goes into `parts`."""
        return None, {"optimizer": optimizer.state_dict()}


def load_models(
    config: TrainConfig,
    device: torch.device,
    weights: Path | None,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    with_reference: bool,
) -> Models:
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
    return Models(policy, reference_log_probs(options, policy) if with_reference else None, policy)


def check_head(architecture: transformers.PretrainedConfig, layer: int, head: int) -> None:
    """Raise `UserError` for a layer or a head of it that the architecture has not."""
    layers, heads = architecture.num_hidden_layers, architecture.num_attention_heads
    if not -layers <= layer < layers:
        raise UserError(f"--figures-layer {layer}: must be 0 to {layers - 1}, or -1 for the last")
    if not 0 <= head < heads:
        raise UserError(f"--figures-head {head}: must be 0 to {heads - 1}")
