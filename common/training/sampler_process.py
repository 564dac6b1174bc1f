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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.device import resolve_device
from common.models.log_probs import TokenLogProbs
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
    # Ctrl-C is for the learner, which ends this process.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    return Connection(int(number))


def sample_for_learner(
    connection: Connection,
    config: TrainConfig,
    rewards: Mapping[str, RewardFunction] | None,
    is_correct: RewardFunction,
    tools: Mapping[str, ToolFunction] | None,
) -> None:
    """Do one job after another until the learner is gone."""
    try:
        work = open_tasks(config, lambda text: None, rewards, is_correct, tools)
        seed_everything(config.seed)
        device = resolve_device(config.sampler_device or config.device)
        without_reference = replace(config, kl_weight=0.0, monitor_kl=False)
        policy, _ = load_models(without_reference, device, None, work.chat.tokenizer)
        with open_collector(config, policy, work, lambda: False, ALONE) as collector:
            _serve(connection, collector, policy, work)
    except UserError as error:
        connection.send_bytes(pickle.dumps(Failed(str(error), is_users=True)))


def _serve(connection: Connection, collector: Collector, policy: TokenLogProbs, work: Work) -> None:
    last: Path | None = None
    while True:
        waited_from = time.perf_counter()
        try:
            job: Job = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        started = time.perf_counter()
        try:
            if job.random is not None:
                restore_random_state(job.random)
            if job.weights != last:
                take_weights(policy, job.weights)
                last = job.weights
            collector.load(job.version)
            left_out: list[Group] = []
            if job.kind == "train":
                groups, left_out = collector.train(work.train_tasks, job.step)
            else:
                groups = collector.evaluate(work.held_out)
            answer: Done | Failed = Done(
                job,
                groups,
                left_out,
                time.perf_counter() - started,
                started - waited_from,
                random_state(),
                dict(collector.metrics()),
            )
        except UserError as error:
            answer = Failed(str(error), is_users=True)
        except Exception:  # noqa: BLE001 - the learner raises it
            answer = Failed(traceback.format_exc(), is_users=False)
        connection.send_bytes(pickle.dumps(answer))


@torch.no_grad()
def take_weights(policy: TokenLogProbs, file: Path) -> None:
    """Make those weights of a policy that are trained what `sampling_ahead` has written."""
    held = dict(policy.model.named_parameters())
    for name, values in load_file(file).items():
        held[name].copy_(values)
