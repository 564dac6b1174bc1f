"""GRPO over conversations in which the policy calls a calculator and reads what it says.

Per step: hold a group of conversations about each task, each turn sampled by the policy and each
reply given by a tool, then learn as in experiment_base. The replies are context: only what the
policy sampled has a gradient.

    cd experiment_multiturn_tool_calling && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from rich.console import Console
from tool_calling import BUNDLED_DEFAULTS, MODEL_DEFAULTS, TOOL_REWARDS, TOOLS

from common.algo.grpo import grpo
from common.algo.kl import kl_divergence_k3
from common.algo.objective import Objective
from common.flags.train_config import resolve_defaults
from common.logger.metrics import RunStatistics, StepSums, batch_metrics, epoch_metrics
from common.logger.timer import Timer
from common.logger.tool_metrics import conversation_metrics, tool_evaluation_metrics
from common.models.device import resolve_device
from common.models.load import is_bundled, load_tokenizer
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    Experience,
    ReplayBuffer,
    experiences_from,
    micro_batches,
    totals_of,
    with_log_probs,
)
from common.rewards.answers import is_correct
from common.rollout.generate import Interrupted
from common.rollout.rollout import with_advantages
from common.run.directory import open_run, start_run
from common.tasks.calculator_tasks import DATA_FILE
from common.training.collector import Collector, check_lengths
from common.training.command_line import run_script
from common.training.conversations import MultiTurnConfig, converse_with_tools, load_tool_chat
from common.training.interruption import Interruption
from common.training.models_of_a_run import load_models
from common.training.open_logger import open_logger
from common.training.optimizer import learning_rate, make_optimizer, optimizer_step, optimizer_steps
from common.training.scoring import load_rewards
from common.training.seeding import seed_everything, stream
from common.training.state import TrainingState
from common.training.task_order import is_evaluation_step, load_task_split
from common.views.summary import before_and_after


@dataclass(frozen=True, kw_only=True)
class Config(MultiTurnConfig):
    """GRPO over conversations with a calculator."""

    experiment: ClassVar[str] = "experiment_multiturn_tool_calling"
    default_wandb_project: ClassVar[str] = "tiny_grpo_multiturn_tool_calling"
    data_file: ClassVar[Path] = DATA_FILE
    bundled_defaults: ClassVar[Mapping[str, object]] = BUNDLED_DEFAULTS
    model_defaults: ClassVar[Mapping[str, object]] = MODEL_DEFAULTS

    model_name: str = "tiny-calculator"
    """Bundled name (tiny-calculator), directory, or Hub id of the policy."""
    reward_weights: str = "answer_correct=1,answer_format=0.1,tool_execution=0.1"
    """Weights of the rewards as name=w,...; a function that is not named is only logged."""


def accumulate_gradients(
    objective: Objective, policy: TokenLogProbs, batch: list[Experience], config: Config
) -> StepSums:
    """The gradient of an optimizer batch, micro-batch by micro-batch."""
    sums, totals = StepSums(), totals_of(batch)
    for micro in micro_batches(batch, config.micro_batch_size, policy.model.device):
        mask = micro.sampled
        log_probs, entropy = policy(micro.token_ids, micro.attention_mask, mask)
        per_token, ratio, clipped = objective.per_token(
            log_probs, micro.log_probs_old, micro.advantages, mask
        )
        loss = objective.aggregate(per_token, mask, totals)
        watched = {"entropy": entropy, "clip_fraction": clipped}
        if micro.log_probs_ref is not None:
            watched["kl"] = kl_divergence_k3(log_probs, micro.log_probs_ref, mask)
            loss = loss + config.kl_weight * objective.aggregate(watched["kl"], mask, totals)
        loss.backward()
        sums.add(loss, micro, ratio, **watched)
    return sums


def main(config: Config, choose: Callable[[Config], Objective] = grpo) -> None:
    console = Console()
    config = resolve_defaults(config, bundled=is_bundled(config.model_name))
    run = open_run(config, console.out)
    objective = choose(config)
    device = resolve_device(config.device)
    train_tasks, held_out = load_task_split(config)
    tokenizer = load_tokenizer(config.model_name)
    chat = load_tool_chat(config, tokenizer, TOOLS)
    rewards = load_rewards(config, train_tasks[0], console.out, TOOL_REWARDS, chat.environments)
    check_lengths(config, chat, train_tasks + held_out)
    seed_everything(config.seed)
    policy, reference = load_models(config, device, run.weights)
    statistics = RunStatistics()
    optimizer = make_optimizer(config, policy)
    state = TrainingState(run, policy.model, tokenizer, optimizer, statistics)
    total_steps = optimizer_steps(config, config.max_steps)
    interruption = Interruption(console.out, config.max_minutes)
    collector = Collector(
        config,
        policy.model,
        chat,
        rewards,
        is_correct,
        interruption.signalled,
        converse=converse_with_tools(config, chat),
    )
    buffer, timer = ReplayBuffer(), Timer()

    record = start_run(run, config, policy)
    with interruption, open_logger(config, run, record, console, state) as logger:
        step, finished = run.step, False
        with suppress(Interrupted):
            for step in range(run.step, config.max_steps + 1):
                state.begin(step)
                if interruption.requested:
                    break
                if held_out and is_evaluation_step(config, step):
                    with timer("evaluation"):
                        evaluated = collector.evaluate(held_out)
                    metrics = tool_evaluation_metrics(evaluated)
                    logger.log_batch(step, metrics | statistics.add_evaluation(evaluated))
                    logger.log_samples(step, evaluated[:3], "held out")
                    logger.log_errored(step, evaluated)
                if finished := step == config.max_steps:
                    break

                # 1. Collect: a group of completions per task, scored and compared with one another.
                with timer("rollout"):
                    groups = collector.train(train_tasks, step)
                    groups = with_advantages(groups, objective.advantages)
                with timer("log_probs"):
                    size = config.micro_batch_size
                    experiences = experiences_from(groups, mask_truncated=config.overlong == "mask")
                    buffer.clear()
                    buffer.extend(with_log_probs(experiences, policy, reference, size))

                # 2. Learn: clipped policy-gradient steps over the buffer.
                steps: list[StepSums] = []
                with timer("train"):
                    for epoch in range(config.epochs_per_step):
                        passed = len(steps)
                        shuffle = stream(config.seed, "shuffle", step, epoch)
                        for batch in buffer.batches(config.train_batch_size, shuffle):
                            sums = accumulate_gradients(objective, policy, batch, config)
                            rate = learning_rate(config, state.global_step, total_steps)
                            logger.log_gradients(state.global_step)
                            norm = optimizer_step(optimizer, rate, config.max_grad_norm)
                            state.global_step += 1
                            sums.finish(norm, rate)
                            steps.append(sums)
                            logger.log_training_step(state.global_step, sums.metrics())
                            if not statistics.count_step(norm):
                                logger.log_invalid_step(state.global_step, batch)
                        logger.log_batch(step + 1, epoch_metrics(steps[passed:]))

                # 3. Report and save.
                metrics = batch_metrics(statistics, groups, list(buffer), steps, timer)
                logger.log_batch(step + 1, metrics | conversation_metrics(groups))
                logger.log_rollouts(step + 1, groups, list(buffer))
                state.stop_if_diverged(step + 1)
                if config.saves_checkpoint(step + 1):
                    with timer("checkpoint"):
                        saved = {"checkpoint/saved": 1.0, "checkpoint/step": step + 1}
                        logger.log_batch(step + 1, saved)
                        state.begin(step + 1)
                        state.save()

        state.save()
        if not finished:
            logger.say(f"stopped after step {step} (--resume continues): {run.directory.path}")
            sys.exit(interruption.exit_code)
        final = {**statistics.final(state.global_step), "checkpoint/final_saved": 1.0}
        logger.log_batch(step, final)
        logger.log_media(step, statistics.criteria_summary())
        logger.say(before_and_after(run))


if __name__ == "__main__":
    run_script(main, Config)
