"""GRPO over conversations in which the policy calls a calculator and reads what it says.

Per step: hold a group of conversations about each task, each turn sampled by the policy and each
reply given by a tool, then learn as in experiment_base. The replies are context: only what the
policy sampled has a gradient.

    cd experiment_multiturn_tool_calling && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from tool_calling import ANSWER_FROM_TOOLS, TOOL_REWARDS, TOOLS

from common.algo.kl import kl_divergence_k3
from common.flags.train_config import by_model, by_objective
from common.replay_buffer import ReplayBuffer, with_advantages
from common.tasks.calculator_tasks import DATA_FILE
from common.training.command_line import run_script
from common.training.conversations import MultiTurnConfig
from common.training.session import open_session


@dataclass(frozen=True, kw_only=True)
class Config(MultiTurnConfig):
    """GRPO over conversations with a calculator."""

    experiment: ClassVar[str] = "experiment_multiturn_tool_calling"
    default_wandb_project: ClassVar[str] = "tiny_grpo_multiturn_tool_calling"
    data_file: ClassVar[Path] = DATA_FILE

    model_name: str = "tiny-calculator"
    """Bundled name (tiny-calculator), directory, or Hub id of the policy."""
    system_prompt: str | None = by_model(bundled=None, other=ANSWER_FROM_TOOLS)
    reward_weights: str = "answer_correct=1,answer_format=0.1,tool_execution=0.1"

    objective: str = "grpo"
    max_steps: int = by_model(bundled=25, other=100)
    rollouts_per_step: int = 32
    group_size: int = 8
    max_completion_tokens: int = by_model(bundled=96, other=512)
    max_turns: int = 4
    max_tool_tokens: int = by_model(bundled=48, other=512)
    max_length: int = by_model(bundled=256, other=1024)
    train_batch_size: int = 128
    epochs_per_step: int = 1
    lr: float = by_model(bundled=4e-4, other=1e-6, lora=by_model(bundled=2e-3, other=1e-5))
    clip_eps: float = by_objective(0.2)
    kl_weight: float = 0.01


def main(config: Config) -> None:
    with open_session(config, tools=TOOLS, rewards=TOOL_REWARDS) as session:
        objective, learner, buffer = session.objective, session.learner, ReplayBuffer()
        for step in session.steps():
            # 1. Collect: a group of conversations per task, scored and compared with one another.
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
