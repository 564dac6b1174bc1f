"""GRPO in several processes, on one machine or many, with the gradient of one.

Differs from `experiment_accelerate/train.py` in that ranks exchange gradients once per optimizer
batch, in the backward pass of the last micro-batch; before it they add up where they are. As in
every experiment, ranks split the tasks of a step, tell one another what came of them, and split
every optimizer batch, whose denominators cover all of them.

    cd experiment_accelerate_ddp && accelerate launch --multi_gpu --num_processes 2 train.py
    cd experiment_accelerate_ddp && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from common.algo.kl import kl_divergence_k3
from common.flags.train_config import TrainConfig, by_model, by_objective
from common.replay_buffer import ExperienceBatch, ReplayBuffer, with_advantages
from common.training.command_line import run_script
from common.training.distributed import ddp_metrics, make_accelerator, prepared
from common.training.learner import OptimizerBatch
from common.training.session import open_session

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """GRPO with a KL penalty towards the model that the run started from."""

    experiment: ClassVar[str] = "experiment_accelerate_ddp"
    default_wandb_project: ClassVar[str] = "grpo_accelerate_ddp"

    objective: str = "grpo"
    max_steps: int = by_model(bundled=25, other=100)
    rollouts_per_step: int = 32
    group_size: int = 8
    max_completion_tokens: int = by_model(bundled=64, other=512)
    max_length: int = by_model(bundled=160, other=1024)
    train_batch_size: int = 128
    epochs_per_step: int = 1
    lr: float = by_model(bundled=4e-4, other=1e-6, lora=by_model(bundled=2e-3, other=1e-5))
    clip_eps: float = by_objective(0.2)
    kl_weight: float = 0.01


def reduced_at_the_last(
    accelerator: Accelerator, policy: torch.nn.Module, batch: OptimizerBatch
) -> Iterator[ExperienceBatch]:
    """Micro-batches whose gradients add up on each rank until the last, where DDP reduces them."""
    for number, micro in enumerate(batch.micro_batches(), start=1):
        with nullcontext() if number == batch.rounds else accelerator.no_sync(policy):
            yield micro


def main(config: Config) -> None:
    accelerator, config = make_accelerator(config)
    with open_session(config, accelerator=accelerator) as session:
        objective, learner, buffer = session.objective, session.learner, ReplayBuffer()
        policy, optimizer = prepared(accelerator, learner)
        session.note({"accelerate/device": str(accelerator.device)})
        for step in session.steps():
            # 1. Collect: a group of completions per task, scored and compared with one another.
            groups = session.rollouts(step)
            experiences = session.score(groups)
            groups, experiences = with_advantages(groups, experiences, objective.advantages)
            buffer.clear()
            buffer.extend(experiences)

            # 2. Learn: clipped policy-gradient steps over the buffer.
            for batch in learner.optimizer_batches(step, buffer):
                for micro in reduced_at_the_last(accelerator, policy, batch):
                    mask, totals = micro.sampled, batch.totals
                    weights, kl, kl_loss = None, None, 0.0
                    log_probs, entropy = policy(
                        micro.token_ids, micro.attention_mask, mask, micro.kept
                    )
                    tokens = micro.tokens(log_probs, totals)
                    log_ratio = objective.log_ratio(log_probs, tokens.log_probs_old, mask)
                    surrogate, clipped = objective.surrogate(log_ratio, tokens)
                    if objective.correction is not None:
                        weights = objective.correction(tokens)
                        surrogate = weights * surrogate
                    policy_loss = objective.aggregate(surrogate, mask, totals)
                    if tokens.log_probs_ref is not None:
                        kl = kl_divergence_k3(log_probs, tokens.log_probs_ref, mask)
                        penalty = objective.aggregate(objective.kl_penalty(tokens), mask, totals)
                        kl_loss = config.kl_weight * penalty
                    bonus = config.entropy_weight * objective.aggregate(entropy, mask, totals)
                    # DDP takes the mean over ranks where one process has the sum.
                    accelerator.backward(session.ranks.count * (policy_loss + kl_loss - bonus))
                    batch.record(
                        micro, log_ratio, policy_loss, kl_loss, entropy, clipped, kl, weights, bonus
                    )
                batch.step(optimizer, accelerator.clip_grad_norm_, reduced=True)

            # 3. Report.
            session.report(step, groups, experiences)
            session.log(step, ddp_metrics(accelerator))


if __name__ == "__main__":
    run_script(main, Config)
