"""A second process of a run, which samples while the first one learns.

It is the train script once more, with the flags of the first, and opens what sampling needs and no
more. Which weights sample which batch is for the first process to say (`sampling_ahead`).
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.logger.timer import Timer
from common.models.device import resolve_device
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    LogProbModel,
    MicroBatchLimits,
    experiences_from,
    score_tokens,
)
from common.rewards.outcome import RewardFunction
from common.rollout.trajectory import Group
from common.run.checkpoint import random_state, restore_random_state
from common.tools.toolbox import ToolFunction
from common.training.collector import Collector
from common.training.open_collector import open_collector
from common.training.open_tasks import Work, open_tasks
from common.training.policy_and_reference import load_models
from common.training.ranks import ALONE
from common.training.seeding import seed_everything

# In the environment of such a process: the number of its socket.
SOCKET_VARIABLE = "RE_GRPO_SAMPLER_SOCKET"

# Of Linux's prctl: the signal that a process gets when its parent ends, however that ends.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """What is to be sampled."""

    kind: Literal["train", "evaluate"]
    step: int
    """Rollout batch, from 1."""
    weights: Path
    """File of the weights to sample with."""
    version: int
    """Optimizer steps after which they were these."""
    random: dict[str, Any] | None = None
    """State of the global generators to begin with; None for that in which they are."""


@dataclass(frozen=True)
class Done:
    """What came of a job."""

    job: Job
    groups: list[Group]
    left_out: list[Group]
    seconds: float
    """That it took."""
    idle_seconds: float
    """That the process had nothing to do before it."""
    random: dict[str, Any]
    """State of the global generators afterwards, for rewards that draw from them."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """All is open that is needed to sample."""


@dataclass(frozen=True)
class Failed:
    """Why nothing came of a job."""

    text: str
    is_users: bool
    """Whether it is one line for the user, or a traceback."""


def connection_to_learner() -> Connection | None:
    """The other end of it in a process that only samples; None in any other."""
    number = os.environ.pop(SOCKET_VARIABLE, None)
    if number is None:
        return None
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C is for the learner, which ends this process. What tools start hears it: a signal that
    # is ignored would be so there, too.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, frame: None)
    return Connection(int(number))


def sample_for_learner(
    connection: Connection,
    rewards: Mapping[str, RewardFunction] | None,
    is_correct: RewardFunction,
    tools: Mapping[str, ToolFunction] | None,
) -> None:
    """Do one job after another until the learner is gone, which first says by which flags."""
    try:
        config: TrainConfig = pickle.loads(connection.recv_bytes())
        work = open_tasks(config, lambda text: None, rewards, is_correct, tools)
        seed_everything(config.seed)
        device = resolve_device(config.sampler_device or config.device)
        models = load_models(
            config, device, None, work.chat.tokenizer, with_reference=config.watches_kl
        )
        with open_collector(config, models, work, lambda: False, ALONE) as collector:
            _serve(connection, _Sampler(config, models.policy, models.reference, work, collector))
    except UserError as error:
        connection.send_bytes(pickle.dumps(Failed(str(error), is_users=True)))


def _serve(connection: Connection, sampler: _Sampler) -> None:
    connection.send_bytes(pickle.dumps(Ready()))
    while True:
        waited_from = time.perf_counter()
        try:
            job: Job = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        try:
            answer: Done | Failed = sampler.do(job, time.perf_counter() - waited_from)
        except UserError as error:
            answer = Failed(str(error), is_users=True)
        except Exception:  # noqa: BLE001 - the learner raises it
            answer = Failed(traceback.format_exc(), is_users=False)
        connection.send_bytes(pickle.dumps(answer))


class _Sampler:
    """What does the jobs."""

    def __init__(
        self,
        config: TrainConfig,
        policy: TokenLogProbs,
        reference: LogProbModel | None,
        work: Work,
        collector: Collector,
    ) -> None:
        self._config = config
        self._policy = policy
        self._reference = reference
        self._work = work
        self._collector = collector
        self._weights: Path | None = None

    def do(self, job: Job, idle_seconds: float) -> Done:
        started = time.perf_counter()
        timer = Timer(self._policy.model.device)
        if job.random is not None:
            restore_random_state(job.random)
        if job.weights != self._weights:
            take_weights(self._policy, job.weights)
            self._weights = job.weights
        left_out: list[Group] = []
        with timer.explain_lack_of_memory():
            self._collector.load(job.version)
            if job.kind == "train":
                with timer("rollout"):
                    groups, left_out = self._collector.train(self._work.train_tasks, job.step)
                with timer("log_probs"):
                    groups = self._with_reference(groups)
            else:
                with timer("evaluation"):
                    groups = self._collector.evaluate(self._work.held_out)
        return Done(
            job,
            groups,
            left_out,
            time.perf_counter() - started,
            idle_seconds,
            random_state(),
            # Of an evaluation they are those of the next batch.
            dict(self._collector.metrics()) if job.kind == "train" else {},
        )

    def _with_reference(self, groups: Sequence[Group]) -> list[Group]:
        """With the log-probs of the reference, which never changes, so that the learner is spared
        them."""
        if self._reference is None:
            return list(groups)
        config = self._config
        limits = MicroBatchLimits(config.micro_batch_tokens, config.micro_batch_size)
        experiences = experiences_from(groups, mask_truncated=config.overlong == "mask")
        scored = iter(score_tokens(self._reference, experiences, limits))
        return [
            replace(
                group,
                rollouts=[replace(one, log_probs_ref=next(scored)[0]) for one in group.rollouts],
            )
            for group in groups
        ]


@torch.no_grad()
def take_weights(policy: TokenLogProbs, file: Path) -> None:
    """Make those weights of a policy that are trained what `sampling_ahead` has written."""
    held = dict(policy.model.named_parameters())
    for name, values in load_file(file).items():
        held[name].copy_(values)
