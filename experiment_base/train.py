"""GRPO on one device, nothing hidden.

Per step: sample a group of completions for each task, score them, centre and scale the scores
inside each group, then take clipped policy-gradient steps over all of them, held near the model
that the run started from by a KL penalty (DeepSeekMath, arXiv 2402.03300).

    cd experiment_base && python train.py
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import partial

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

import torch

from common.algo.advantages import group_advantages
from common.algo.kl import kl_divergence_k3
from common.algo.loss import clipped_loss, clipped_tokens, sequence_mean, token_log_ratio
from common.logger.metrics import (
    RunStatistics,
    StepSums,
    batch_metrics,
    epoch_metrics,
    evaluation_metrics,
)
from common.logger.open import open_logger
from common.logger.summary import before_and_after
from common.logger.timer import Timer
from common.models.load import (
    is_bundled,
    load_policy,
    load_reference,
    load_tokenizer,
    stop_token_ids,
)
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    ExperienceBatch,
    ReplayBuffer,
    experiences_from,
    micro_batches,
    with_log_probs,
)
from common.rewards.answers import is_correct
from common.rewards.reward import build_rewards, text_rewards
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.rollout import rollout, with_advantages
from common.rollout.sampling import EVALUATION_STEP, Sampling
from common.run.command_line import run_script
from common.run.config import TrainConfig, resolve_defaults
from common.run.device import resolve_device
from common.run.directory import create_run_directory, write_run_config
from common.run.optimizer import learning_rate, optimizer_step, optimizer_steps
from common.run.seeding import seed_everything, stream
from common.run.tasks import is_evaluation_step, load_task_split, tasks_of_step

EXPERIMENT = "experiment_base"


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """GRPO with a KL penalty towards the model that the run started from."""

    kl_weight: float = 0.01
    """Weight of the KL penalty; 0 loads no reference model."""
    clip_eps: float = 0.2
    """The probability ratio is clipped to [1 - clip_eps, 1 + clip_eps_high]."""
    clip_eps_high: float | None = None
    """Upper clip range. Default: the same as clip_eps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("kl_weight", lambda value: 0 <= value < float("inf"), "0 or more")
        self.check("clip_eps", lambda value: 0 < value < 1, "above 0 and below 1")
        self.check("clip_eps_high", lambda value: 0 < value < float("inf"), "above 0")


def micro_batch_loss(
    policy: TokenLogProbs,
    batch: ExperienceBatch,
    config: Config,
    num_sequences: int,
    sums: StepSums,
) -> torch.Tensor:
    """The share of a micro-batch in the loss of an optimizer batch of `num_sequences`."""
    mask = batch.sampled
    eps, eps_high = config.clip_eps, config.clip_eps_high or config.clip_eps
    log_probs, entropy = policy(batch.token_ids, batch.attention_mask, mask)
    log_ratio = token_log_ratio(log_probs, batch.log_probs_old, mask)
    per_token = clipped_loss(log_ratio, batch.advantages, eps, eps_high)
    watched = {
        "entropy": entropy,
        "clip_fraction": clipped_tokens(log_ratio, batch.advantages, eps, eps_high),
    }
    if batch.log_probs_ref is not None:
        watched["kl"] = kl_divergence_k3(log_probs, batch.log_probs_ref, mask)
        per_token = per_token + config.kl_weight * watched["kl"]
    loss = sequence_mean(per_token, mask, num_sequences)
    sums.add(loss, batch, log_ratio.exp(), **watched)
    return loss


def main(config: Config) -> None:
    config = resolve_defaults(config, bundled=is_bundled(config.model_name))
    seed_everything(config.seed)
    device = resolve_device(config.device)
    train_tasks, held_out = load_task_split(config)
    tokenizer = load_tokenizer(config.model_name)
    model = load_policy(config.model_name, device)
    policy = TokenLogProbs(model, config.temperature)
    reference = None
    if config.kl_weight > 0:
        reference = TokenLogProbs(load_reference(config.model_name, device), config.temperature)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )
    rewards = build_rewards(
        text_rewards(config.reasoning_tag), config.reward, config.reward_weights
    )
    collect = partial(
        rollout,
        seed=config.seed,
        generator=LocalGenerator(model, stop_token_ids(model, tokenizer), config.max_length),
        chat=ChatFormat(tokenizer, config.system_prompt),
        sampling=Sampling(config.temperature, config.top_p, config.max_completion_tokens),
        rewards=rewards,
        is_correct=is_correct,
    )
    buffer = ReplayBuffer()
    statistics = RunStatistics(rewards)
    global_step, total_steps = 0, optimizer_steps(config, config.max_steps)
    directory = create_run_directory(config, EXPERIMENT)
    write_run_config(directory, config, EXPERIMENT, model)

    with open_logger(config, directory) as logger:
        for step in range(config.max_steps + 1):
            if held_out and is_evaluation_step(config, step):
                evaluated = collect(
                    held_out, step=EVALUATION_STEP, group_size=config.eval_group_size
                )
                logger.log_batch(step, evaluation_metrics(evaluated))
                logger.log_samples(step, evaluated[:3], "held out")
            if step == config.max_steps:
                break
            timer = Timer()

            # 1. Collect: a group of completions per task, scored and compared with one another.
            with timer("rollout"):
                tasks = tasks_of_step(train_tasks, step, config)
                groups = collect(tasks, step=step, group_size=config.group_size)
                groups = with_advantages(groups, group_advantages)
            with timer("log_probs"):
                buffer.clear()
                buffer.extend(
                    with_log_probs(
                        experiences_from(groups),
                        policy,
                        reference,
                        config.micro_batch_size,
                        device,
                    )
                )

            # 2. Learn: clipped policy-gradient steps over the buffer.
            steps: list[StepSums] = []
            with timer("train"):
                for epoch in range(config.epochs_per_step):
                    steps_before = len(steps)
                    shuffle = stream(config.seed, "shuffle", step, epoch)
                    for batch in buffer.batches(config.train_batch_size, shuffle):
                        sums = StepSums()
                        for micro in micro_batches(batch, config.micro_batch_size, device):
                            loss = micro_batch_loss(policy, micro, config, len(batch), sums)
                            loss.backward()
                        rate = learning_rate(config, global_step, total_steps)
                        norm = optimizer_step(optimizer, rate, config.max_grad_norm)
                        global_step += 1
                        sums.finish(norm, rate)
                        steps.append(sums)
                        logger.log_training_step(global_step, sums.metrics())
                        if not statistics.count_step(norm):
                            logger.log_invalid_step(global_step, [e.task_id for e in batch])
                    logger.log_batch(step + 1, epoch_metrics(steps[steps_before:]))

            # 3. Report.
            if config.logs_completions(step + 1):
                with timer("log"):
                    logger.log_samples(step + 1, groups[:4], "train")
            metrics = batch_metrics(statistics, groups, list(buffer), steps, timer)
            logger.log_batch(step + 1, metrics)

        logger.log_batch(
            config.max_steps, {**statistics.final(global_step), "training/completed": 1.0}
        )
        logger.say(before_and_after(directory))


if __name__ == "__main__":
    run_script(main, Config)
