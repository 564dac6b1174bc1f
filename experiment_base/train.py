"""GRPO, nothing hidden.

Per step: sample a group of completions for each task, score them, centre and scale the scores
inside each group, then take clipped policy-gradient steps over all of them, held near the model
that the run started from by a KL penalty (DeepSeekMath, arXiv 2402.03300).

    cd experiment_base && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import ClassVar

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from common.algo.kl import kl_divergence_k3
from common.flags.train_config import TrainConfig, by_model, by_objective
from common.replay_buffer import ReplayBuffer, with_advantages
from common.training.command_line import run_script
from common.training.session import open_session


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """GRPO with a KL penalty towards the model that the run started from."""

    experiment: ClassVar[str] = "experiment_base"
    default_wandb_project: ClassVar[str] = "tiny_grpo"

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


def main(config: Config) -> None:
    with open_session(config) as session:
        objective, learner, buffer = session.objective, session.learner, ReplayBuffer()
        for step in session.steps():
            # 1. Collect: a group of completions per task, scored and compared with one another.
            groups = session.rollouts(step)
            experiences = session.score(groups)
            groups, experiences = with_advantages(groups, experiences, objective.advantages)
            buffer.clear()
            buffer.extend(experiences)

            # 2. Learn: clipped policy-gradient steps over the buffer.
            for batch in learner.optimizer_batches(step, buffer):
                for micro in batch.micro_batches():
                    mask, totals = micro.sampled, batch.totals
                    weights, kl, kl_loss = None, None, 0.0
                    log_probs, entropy = learner.policy(
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
                    (policy_loss + kl_loss - bonus).backward()
                    batch.record(
                        micro, log_ratio, policy_loss, kl_loss, entropy, clipped, kl, weights, bonus
                    )
                batch.step(learner.optimizer)

            # 3. Report.
            session.report(step, groups, experiences)


if __name__ == "__main__":
    run_script(main, Config)
