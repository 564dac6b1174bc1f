"""What a run has besides its algorithm: a train script opens a session and calls its verbs.

Nothing here calls a script back. Each verb does one thing, and a script may leave any of them out
and do it by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from common.algo.objective import Objective
from common.errors import UserError
from common.flags.objective_flag import load_objective
from common.flags.train_config import TrainConfig
from common.logger.experience_sums import ExperienceSums, mismatches
from common.logger.logger import Logger, is_due
from common.logger.media import finite
from common.logger.metrics import (
    Metrics,
    RunStatistics,
    batch_metrics,
    kept_metrics,
    share_correct,
)
from common.logger.recorder import Recorder
from common.logger.timer import Timer
from common.logger.tool_metrics import conversation_metrics, tool_evaluation_metrics
from common.models.device import resolve_device
from common.models.vocabulary import num_tokens
from common.replay_buffer import Experience, LogProbModel, experiences_from, totals_of
from common.rewards.answers import is_correct as is_right_answer
from common.rewards.judge import Judge
from common.rewards.outcome import RewardFunction
from common.rollout.generator import Interrupted
from common.rollout.tool_chat import ToolChat
from common.rollout.trajectory import Group
from common.run.checkpoint import Checkpoints, read_checkpoint
from common.run.directory import Run, RunDirectory, choose_run, create_run
from common.tasks.task import Task
from common.tools.toolbox import ToolFunction
from common.training.collector import Collector
from common.training.conversations import MultiTurnConfig
from common.training.exchange import merged_histogram, tell_scores, whole_where_logged
from common.training.interruption import Interruption, was_launched
from common.training.learner import Learner
from common.training.memory_plan import memory_plan
from common.training.model_checks import check_model
from common.training.open_chat import open_chat
from common.training.open_collector import open_collector
from common.training.open_logger import open_logger
from common.training.open_tasks import open_tasks
from common.training.policy_and_reference import Models, load_models
from common.training.ranks import ALONE, Ranks
from common.training.remarks import remarks
from common.training.sampler_process import connection_to_learner, sample_for_learner
from common.training.sampling_ahead import SamplingAhead, sampling_ahead
from common.training.seeding import seed_everything
from common.training.state import TrainingState
from common.training.talk import talk_with_run
from common.training.task_order import is_evaluation_step
from common.views.summary import before_and_after

if TYPE_CHECKING:
    import transformers
    from accelerate import Accelerator


@contextmanager
def open_session(
    config: TrainConfig,
    *,
    rewards: Mapping[str, RewardFunction] | None = None,
    is_correct: RewardFunction = is_right_answer,
    tools: Mapping[str, ToolFunction] | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[Session]:
    """Load all that the flags name, start or resume the run, and close it when the script is done.

    `rewards` are the experiment's reward functions by name (without them those of text),
    `is_correct` is its notion of a right answer, and `tools` are those that the policy may call,
    for a config with the flags of conversations. Under `accelerate launch` the run is one of
    several processes; `accelerator` is the script's own, if it has one. With `--chat` there is a
    talk with a run's policy in place of the block.

    A signal ends the block early: what has been done is saved, and the process exits with 128 and
    the signal's number. Raises `UserError` for whatever a user can correct, most of it before
    anything is written.
    """
    config, ranks, device = _place(config, accelerator)
    if config.chat is not None:
        talk_with_run(config, open_chat(config, tools), device)
        sys.exit()
    if (learners := connection_to_learner()) is not None:
        sample_for_learner(learners, rewards, is_correct, tools)
        sys.exit()
    if config.policy_lag and ranks.count > 1:
        raise UserError(
            f"--policy-lag {config.policy_lag}: a run of {ranks.count} processes samples and "
            "learns in turns; leave it out, or start the script without accelerate launch"
        )
    console = Console(quiet=ranks.index > 0)
    use_bfloat16 = config.model_options(device).use_bfloat16
    objective = load_objective(config, use_bfloat16=use_bfloat16)
    run = _choose_run_together(config, console, ranks)
    say = partial(console.out, highlight=False)
    work = open_tasks(config, say, rewards, is_correct, tools)
    tokenizer = work.chat.tokenizer
    seed_everything(config.seed)
    num_threads = torch.get_num_threads()
    models = _load(config, device, run.weights, tokenizer, ranks)
    policy = models.policy
    check_model(config, models.sampler, work.chat, [*work.train_tasks, *work.held_out], say)
    statistics, timer = RunStatistics(), Timer(device)
    learner = Learner(
        config,
        policy,
        objective.extras,
        statistics,
        timer,
        ranks,
        learns_at_zero=objective.learns_at_zero,
    )
    interruption = Interruption(console.out, config.max_minutes)
    if config.policy_lag:
        collecting = sampling_ahead(config, policy, interruption.signalled)
    else:
        collecting = open_collector(config, models, work, interruption.signalled, ranks)
    with collecting as collector:
        state = TrainingState(
            run, models, learner, collector, tokenizer, statistics, ranks, num_threads
        )
        state.restore()
        collector.load(learner.global_step)
        functions = objective.describe()
        say(f"{config.objective}: {', '.join(functions.values())}")
        if (sampling := config.sampling(config.temperature)).restricts:
            say(sampling.describe())
        record, recorder = create_run(run, config, policy, ranks.count, functions), None
        state.mark(run.step)
        if config.figures_interval:
            layer, head = config.figures_layer, config.figures_head
            recorder = Recorder(run.directory.snapshots_file, policy.model, tokenizer, layer, head)
        with interruption, open_logger(config, run, record, console, recorder) as logger:
            learner.logger = logger
            session = Session(
                config,
                objective,
                learner,
                work.train_tasks,
                work.held_out,
                ranks=ranks,
                reference=models.reference,
                judge=work.judge,
                has_tools=isinstance(work.chat, ToolChat) and bool(work.chat.toolbox),
                collector=collector,
                run=run,
                state=state,
                statistics=statistics,
                logger=logger,
                timer=timer,
                interruption=interruption,
                steps_done=run.step,
            )
            session.note(objective.extras.notes)
            with suppress(Interrupted), timer.explain_lack_of_memory():
                yield session
                session.end_step()
                if config.dry_run and session.finished:
                    for line in memory_plan(config, models, learner, num_tokens(tokenizer)):
                        say(line)
            session.close()


@dataclass
class Session:
    """A run in progress. `open_session` makes one."""

    config: TrainConfig
    objective: Objective
    learner: Learner
    train_tasks: Sequence[Task]
    held_out: Sequence[Task]
    ranks: Ranks
    """The processes of the run; one that runs alone has one."""
    reference: LogProbModel | None
    judge: Judge
    has_tools: bool
    """Whether the policy has any to call."""
    collector: Collector | SamplingAhead
    run: Run
    state: TrainingState
    statistics: RunStatistics
    logger: Logger
    timer: Timer
    interruption: Interruption
    steps_done: int
    finished: bool = False
    left_out: Sequence[Group] = ()
    """Drawn in the step in hand, beside the groups that are learned from."""

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are to be done, from 1, or from where the run stopped.

        Between them the run evaluates, saves, and ends where it is asked to. A script may break
        off: what it has learned by then counts as a step.
        """
        config = self.config
        for done in range(self.run.step, config.max_steps + 1):
            self.steps_done = done
            self.state.mark(done)
            if self.ranks.agree(self.interruption.requested):
                return
            if self.held_out and is_evaluation_step(config, done):
                self.evaluate(done)
            if done == config.max_steps:
                self.finished = True
                return
            self.ranks.received = 0
            yield done + 1
            self.state.stop_if_diverged(done + 1)
            if config.saves_checkpoint(done + 1):
                self._save(done + 1)

    def rollouts(self, step: int) -> list[Group]:
        """The groups of scored completions that a step learns from, those of all ranks."""
        self.collector.load(self.learner.global_step)
        with self.timer("rollout"):
            groups, self.left_out = self.collector.train(self.train_tasks, step)
        if step == 1:
            drawn = [*groups, *self.left_out]
            for remark in remarks(drawn, self.judge.looking_for_tags, self.has_tools):
                self.logger.say(f"warning: {remark}")
        return groups

    def score(self, groups: Sequence[Group]) -> list[Experience]:
        """What there is to learn from, with the log-probs of the reference, which batches that
        were sampled ahead have already.

        Those of the policy that sampled are computed by `Learner.optimizer_batches`, as far as no
        pass of an optimizer step gives them, or here if the advantages are made of them. With
        `--old-log-probs sampler` the sampler's stand for them.
        """
        experiences = experiences_from(groups, mask_truncated=self.config.overlong == "mask")
        if self.config.old_log_probs == "learner":
            done = self.learner.global_step
            experiences = [replace(e, log_probs_old=None, scored_at=done) for e in experiences]
        with self.timer("log_probs"):
            if self.objective.advantages_see_policy:
                self.learner.score(experiences)
            if self.reference is not None:
                for experience, (log_probs, _) in self.learner.scored(self.reference, experiences):
                    experience.log_probs_ref = log_probs
            if self.objective.advantages_see_policy:
                tell_scores(self.ranks, experiences)
        return experiences

    def report(self, step: int, groups: Sequence[Group], experiences: Sequence[Experience]) -> None:
        """Log a step: its rollouts, its rewards, what it cost, and samples of it."""
        if self.objective.extras.of_advantages:
            advantages = [advantage for group in groups for advantage in group.advantages]
            self.logger.log_batch(step, self.objective.extras.of_advantages(advantages))
        drawn = [*groups, *self.left_out]
        own = [one for one in experiences if (one.holder or 0) == self.ranks.index]
        totals = totals_of(experiences)
        share = ExperienceSums.of(own, totals, self.config.kl_weight, self.objective)
        sums = reduce(ExperienceSums.plus, self.ranks.merge(share))
        metrics = batch_metrics(
            drawn,
            sums,
            len(experiences),
            self.learner.steps,
            {**self.timer.seconds, **self.collector.seconds()},
        )
        metrics |= self.statistics.add_batch(drawn)
        if self.config.dynamic_sampling > 1:
            metrics |= kept_metrics(groups)
        if isinstance(self.config, MultiTurnConfig):
            metrics |= conversation_metrics(drawn)
        metrics |= self.collector.metrics()
        mismatch = None
        if is_due(self.logger.intervals.histograms, step) and sums.mismatch.count:
            mismatch = merged_histogram(self.ranks, finite(mismatches(own)))
        drawn = whole_where_logged(self.ranks, drawn, self.logger.shown(step, drawn))
        if self.ranks.count > 1:
            metrics["ddp/received_bytes"] = float(self.ranks.received)
        self.logger.log_batch(step, {**metrics, **self.timer.lap()})
        self.logger.log_rollouts(step, drawn, mismatch)

    def evaluate(self, step: int) -> None:
        """Answer the held-out tasks, with the same random numbers each time, and log how."""
        self.collector.load(self.learner.global_step)
        with self.timer("evaluation"):
            groups = self.collector.evaluate(self.held_out)
        column = self.config.evaluated_apart
        is_apart = [bool(column and group.task.columns.get(column)) for group in groups]
        kept = [group for group, other in zip(groups, is_apart, strict=True) if not other]
        apart = [group for group, other in zip(groups, is_apart, strict=True) if other]
        metrics: Metrics = {}
        if any(group.rollouts for group in kept):
            metrics |= self.statistics.add_evaluation(kept, tags=self.judge.right_in_tags)
            if isinstance(self.config, MultiTurnConfig):
                metrics |= tool_evaluation_metrics(kept)
        if any(group.rollouts for group in apart):
            metrics[f"eval/accuracy_{column}"] = share_correct(apart)
        self.logger.log_batch(step, metrics)
        groups = whole_where_logged(self.ranks, groups, groups[:3])
        self.logger.log_samples(step, groups[:3], "held out")
        self.logger.log_errored(step, groups)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers of the script's own over rollout batches."""
        self.logger.log_batch(step, metrics)

    def note(self, texts: Mapping[str, str]) -> None:
        """Log what is said once, when a run starts."""
        if not self.run.resumed:
            self.logger.log_media(0, texts)

    def end_step(self) -> None:
        """Count as done the step of which a script has broken off its loop over `steps`."""
        if self.state.has_moved:
            self.steps_done += 1
            self.state.mark(self.steps_done)

    def close(self) -> None:
        """Save, and say what was achieved; a run that has steps left exits by its reason to."""
        step = self.steps_done
        if not self.config.dry_run:
            self.state.save()
            if not self.finished:
                self.logger.say(
                    f"stopped after step {step} (--resume continues): {self.run.directory.path}"
                )
        if not self.finished:
            sys.exit(self.interruption.exit_code)
        final = {
            **self.statistics.final(self.learner.global_step),
            "checkpoint/final_saved": 1.0,
        }
        self.logger.log_batch(step, final)
        self.logger.log_media(step, self.statistics.criteria_summary())
        self.logger.say(before_and_after(self.run))

    def _save(self, step: int) -> None:
        with self.timer("checkpoint"):
            # Before the save: what it cuts a resumed run's rows to includes this one.
            saved = {"checkpoint/saved": 1.0, "checkpoint/step": step}
            self.logger.log_batch(step, saved)
            self.state.mark(step)
            self.state.save()


def _load(
    config: TrainConfig,
    device: torch.device,
    weights: Path | None,
    tokenizer: transformers.PreTrainedTokenizerBase,
    ranks: Ranks,
) -> Models:
    if config.shard:
        from common.training.sharding import ShardedRanks, load_sharded_models

        assert isinstance(ranks, ShardedRanks)
        return load_sharded_models(config, device, weights, tokenizer, ranks)
    # The process that samples ahead has the reference, if there is one.
    with_reference = config.watches_kl and not config.policy_lag
    return load_models(config, device, weights, tokenizer, with_reference=with_reference)


def _place(
    config: TrainConfig, accelerator: Accelerator | None
) -> tuple[TrainConfig, Ranks, torch.device]:
    """The config with the precision of its processes, the ranks among them, and their device."""
    if accelerator is None and not was_launched() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if config.shard:
            raise _alone_with_shard()
        return config, ALONE, resolve_device(config.device)
    from common.training.distributed import AcceleratedRanks, make_accelerator

    if accelerator is None:
        accelerator, config = make_accelerator(config)
    if accelerator.num_processes == 1:
        if config.shard:
            raise _alone_with_shard()
        return config, ALONE, accelerator.device
    if config.shard:
        from common.training.sharding import ShardedRanks

        return config, ShardedRanks(accelerator), accelerator.device
    return config, AcceleratedRanks(accelerator), accelerator.device


def _alone_with_shard() -> UserError:
    return UserError(
        "--shard: a run of one process has none to share its weights with; use: "
        "accelerate launch --multi_gpu --num_processes 2 train.py --shard"
    )


def _choose_run_together(config: TrainConfig, console: Console, ranks: Ranks) -> Run:
    """The run as the first rank has opened it; the others read its checkpoint and write nothing.

    They need the same file system for that, but only to resume.
    """
    opened: list[Run] = []

    def open_here() -> tuple[RunDirectory, Path | None, bool]:
        run = choose_run(config, console.out, ranks.count)
        opened.append(run)
        return run.directory, run.weights, run.resumed

    directory, weights, resumed = ranks.first(open_here)
    if opened:
        return opened[0]
    checkpoints = Checkpoints(directory.checkpoints, config.keep_checkpoints)
    checkpoint = read_checkpoint(weights) if weights else None
    return Run(directory, checkpoints, checkpoint, resumed, writes=False)
