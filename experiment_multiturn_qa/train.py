"""GRPO over conversations in which the policy searches documents and answers from what it reads.

Per step: hold a group of conversations about each question, in which the policy writes queries and
reads the passages that a retriever finds, then learn as in experiment_base. A search is a tool like
any other, so all else is as in experiment_multiturn_tool_calling.

    cd experiment_multiturn_qa && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from question_answering import (
    ANSWER_FROM_DOCUMENTS,
    SearchConfig,
    load_retriever,
    make_rewards,
    make_tools,
)

from common.algo.kl import kl_divergence_k3
from common.flags.train_config import by_model, by_objective
from common.replay_buffer import ReplayBuffer, with_advantages
from common.rewards.question_answering import is_exact_match
from common.tasks.search_tasks import QUESTIONS
from common.training.command_line import run_script
from common.training.session import open_session


@dataclass(frozen=True, kw_only=True)
class Config(SearchConfig):
    """GRPO over conversations with a search tool."""

    experiment: ClassVar[str] = "experiment_multiturn_qa"
    default_wandb_project: ClassVar[str] = "tiny_grpo_multiturn_qa"
    data_file: ClassVar[Path] = QUESTIONS
    evaluated_apart: ClassVar[str | None] = "new_wording"

    model_name: str = "tiny-search"
    """Bundled name (tiny-search), directory, or Hub id of the policy."""
    system_prompt: str | None = by_model(bundled=None, other=ANSWER_FROM_DOCUMENTS)
    reward_weights: str = "answer_correct=1,answer_format=0.1"

    objective: str = "grpo"
    max_steps: int = by_model(bundled=25, other=100)
    rollouts_per_step: int = 16
    group_size: int = 8
    max_completion_tokens: int = by_model(bundled=128, other=512)
    max_turns: int = 4
    max_tool_tokens: int = by_model(bundled=320, other=768)
    max_length: int = by_model(bundled=512, other=2048)
    train_batch_size: int = 64
    epochs_per_step: int = 1
    lr: float = by_model(bundled=4e-4, other=1e-6, lora=by_model(bundled=2e-3, other=1e-5))
    clip_eps: float = by_objective(0.2)
    kl_weight: float = 0.01
    eval_interval: int = 10
    eval_samples: int = 640


def main(config: Config) -> None:
    retriever = load_retriever(config)
    tools, rewards = make_tools(config, retriever), make_rewards(retriever)
    with open_session(config, tools=tools, rewards=rewards, is_correct=is_exact_match) as session:
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
