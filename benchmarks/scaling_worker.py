"""A few steps of `experiment_base` at one size, in a process of their own (see `scaling.py`).

Prints a `Measured` as JSON: the fastest step after the first, and the peak of memory.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch

from benchmarks.machine import Machine
from benchmarks.step_profile import LEARNING, SAMPLING, SCORING, Step, Stopwatch, watched
from common.flags.train_config import resolve_defaults
from common.rewards.transcript import Transcript
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calls import Call
from common.tools.toolbox import instant
from common.training.conversations import MultiTurnConfig
from common.training.session import Session, open_session
from experiment_base import train

STEPS = 4
REPLY_TOKENS = 16


@dataclass(frozen=True)
class Size:
    """Of a step and of its model."""

    tasks: int = 4
    group: int = 8
    prompt: int = 32
    completion: int = 64
    """Of a turn; every completion is as long as it may be."""
    turns: int = 1
    vocabulary: int = 512
    width: int = 128
    layers: int = 4
    micro_batch: int = 16


@dataclass(frozen=True)
class Measured:
    parameters: int
    sampled_tokens: int
    seconds: float
    sampling_seconds: float
    scoring_seconds: float
    learning_seconds: float
    flops: float
    least_seconds: float
    """What the counted work takes at the rates of the machine."""
    peak_bytes: int
    """Of the process, above what it had before the model was loaded."""


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    experiment: ClassVar[str] = "scaling"


@dataclass(frozen=True, kw_only=True)
class TurnsConfig(MultiTurnConfig, train.Config):
    experiment: ClassVar[str] = "scaling"


@instant
def note(text: str) -> str:
    """Take a note.

    Args:
        text: Anything.
    """
    return " ".join(["go"] * REPLY_TOKENS)


def coin(completion: Transcript, task: Task) -> float:
    """A reward that tells the members of a group apart."""
    return float(zlib.crc32(f"{completion}{completion.messages}".encode()) % 2)


def main(size: Size, model: Path, machine: Machine) -> Measured:
    stopwatch, parameters = Stopwatch(), []

    @contextmanager
    def open_watched_session(config: train.Config) -> Iterator[Session]:
        tools = {"note": note} if size.turns > 1 else None
        with (
            open_session(config, rewards={"coin": coin}, tools=tools) as session,
            watched(session, stopwatch),
        ):
            parameters.append(sum(p.numel() for p in session.learner.policy.parameters()))
            yield session

    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.object(train, "open_session", open_watched_session),
        every_turn_calls(size),
    ):
        config = flags(size, model, Path(root))
        started = forget_peak()
        train.main(config)
        peak = memory("VmHWM") - started
    fastest = min(stopwatch.steps[1:], key=lambda step: step.all_seconds)
    return Measured(
        parameters=parameters[0],
        sampled_tokens=fastest.sampled_tokens,
        seconds=fastest.all_seconds,
        sampling_seconds=seconds_of(fastest, SAMPLING),
        scoring_seconds=seconds_of(fastest, SCORING),
        learning_seconds=seconds_of(fastest, LEARNING),
        flops=fastest.all_work.all_flops,
        least_seconds=sum(work.least_seconds(machine) for work in fastest.work.values()),
        peak_bytes=peak,
    )


def seconds_of(step: Step, phases: Sequence[str]) -> float:
    return sum(step.seconds.get(phase, 0.0) for phase in phases)


def flags(size: Size, model: Path, root: Path) -> train.Config:
    """Of a run whose conversations are all of one length."""
    tasks = root / "tasks.jsonl"
    # The template adds a token to the words of a question.
    rows = [
        {
            "question": " ".join(f"w{2 + (7 * n + k) % 100}" for k in range(size.prompt - 1)),
            "answer": "w2",
            "held_out": False,
        }
        for n in range(size.tasks)
    ]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        **{"model_name": str(model), "device": "cpu", "data_path": tasks, "log_dir": root},
        **{"system_prompt": None, "reward_weights": "coin=1", "lr": 1e-6, "max_steps": STEPS},
        **{"rollouts_per_step": size.tasks, "group_size": size.group},
        **{"train_batch_size": size.tasks * size.group, "micro_batch_size": size.micro_batch},
        "micro_batch_tokens": 10**9,
        **{"eval_samples": 0, "checkpoint_interval": 0, "wandb": False, "tensorboard": False},
        "max_completion_tokens": size.turns * size.completion,
        "max_length": size.prompt + size.turns * (size.completion + REPLY_TOKENS + 2),
    }
    if size.turns == 1:
        return resolve_defaults(Config(**given), bundled=False)
    of_turns = {"max_turns": size.turns, "tool_format": "tags", "max_tool_tokens": 2 * REPLY_TOKENS}
    return resolve_defaults(TurnsConfig(**given, **of_turns), bundled=False)


@contextmanager
def every_turn_calls(size: Size) -> Iterator[None]:
    """A policy with random weights calls no tool: its turns end at a length, and are calls."""
    call = Call("ok", "note", {"text": "w2"})
    with (
        mock.patch.object(ToolChat, "ends_turn", lambda chat, ids: len(ids) == size.completion),
        mock.patch.object(ToolChat, "turn_ending_ids", None),
        mock.patch.object(ToolChat, "call_in", return_value=call),
    ):
        yield


def forget_peak() -> int:
    """Let the kernel's record of the peak begin anew; returns the bytes that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes that Linux has on record of this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found, f"no {name} in /proc/self/status"
    return 1024 * int(found[1])


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    given = json.loads(sys.argv[1])
    result = main(Size(**given["size"]), Path(given["model"]), Machine(**given["machine"]))
    sys.stdout.write("\n" + json.dumps(asdict(result)) + "\n")
