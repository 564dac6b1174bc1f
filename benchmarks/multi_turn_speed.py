"""How long conversations with a tool take: all together, in lock step, and one at a time.

python -m benchmarks.multi_turn_speed

The same conversations are held three times, with the same random numbers: by the engine; with all
of them in lock step, where every turn waits for the longest completion and every reply for the
slowest tool; and one after another.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from rich.console import Console

from common.models.load import ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Completion, Generator, Request, generate
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.rollout import Conversation
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.tool_chat import ToolChat
from common.tasks.calculator_tasks import DATA_FILE
from common.tasks.task import Task
from common.tasks.task_file import load_tasks
from common.tools.calculator import calculate
from common.tools.calls import CallRecord
from common.tools.runner import ToolRunner
from common.tools.toolbox import make_tool, make_toolbox

LIMITS = Limits(max_turns=4, max_length=256, max_tool_tokens=48, max_invalid_calls=3)
MAX_COMPLETION_TOKENS = 96
LONGEST_LATENCY = 0.2


@dataclass(frozen=True)
class SpeedConfig:
    """Time the multi-turn engine against two simpler ways."""

    tasks: int = 32
    """Tasks; each has --group-size conversations."""
    group_size: int = 8
    """Conversations per task."""
    repeats: int = 5
    """Rounds; the table has medians. One at a time is timed once."""
    one_at_a_time: int = 64
    """Conversations that are held one at a time; their time is scaled to all."""
    threads: int = 2
    """Threads of torch."""


class LockStepGenerator:
    """Every turn is one batch of whole prompts, handed out when all completions are there."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def load(self, version: int) -> None:
        self._generator.load(version)

    def metrics(self) -> Mapping[str, float]:
        return self._generator.metrics()

    @contextmanager
    def decoding(self, sampling: Sampling) -> Iterator[LockStepDecoding]:
        yield LockStepDecoding(self._generator, sampling)


class LockStepDecoding:
    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        self._generator = generator
        self._sampling = sampling
        self._waiting: list[tuple[int, Request]] = []

    def add(self, number: int, request: Request) -> None:
        self._waiting.append((number, request))

    def forget(self, number: int) -> None:
        pass

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def advance(self) -> list[tuple[int, Completion]]:
        numbers, requests = zip(*self._waiting, strict=True) if self._waiting else ((), ())
        self._waiting = []
        completions = generate(self._generator, requests, self._sampling)
        return list(zip(numbers, completions, strict=True))


class LockStepRunner(ToolRunner):
    """Hands replies out when all of them are there."""

    def finished(self, wait: float = 0.0) -> list[tuple[int, CallRecord]]:
        records: list[tuple[int, CallRecord]] = []
        while self.busy:
            records += super().finished(wait=0.01)
        return records


def slow_calculate(expression: str) -> str:
    """Calculate an arithmetic expression, after a while.

    Args:
        expression: Numbers and signs.
    """
    time.sleep(LONGEST_LATENCY * zlib.crc32(expression.encode()) / 2**32)
    return calculate(expression)


Openings = Sequence[tuple[Task, StreamKey]]


def timed(hold: Callable[[Openings], list[Conversation]], openings: Openings) -> tuple[float, int]:
    """Seconds, and sampled tokens."""
    started = time.perf_counter()
    done = hold(openings)
    seconds = time.perf_counter() - started
    return seconds, sum(trajectory.num_sampled for trajectory, _ in done)


def main(config: SpeedConfig) -> None:
    torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer("tiny-calculator")
    model = load_policy(ModelOptions("tiny-calculator", torch.device("cpu")))
    tasks = load_tasks(DATA_FILE)[: config.tasks]
    openings = [
        (task, StreamKey(1, 0, task.task_id, member))
        for task in tasks
        for member in range(config.group_size)
    ]
    console = Console()
    console.print(
        "| tool | way | seconds | sampled tokens | times the engine's |\n|---|---|---|---|---|"
    )
    for latency, function in (("none", calculate), ("0 to 200 ms", slow_calculate)):
        toolbox = make_toolbox([make_tool(function, "calc")])
        chat = ToolChat(tokenizer, "", toolbox, "tags")
        stop_ids = stop_token_ids(model, tokenizer) | chat.turn_end_ids
        local = LocalGenerator(
            model,
            stop_ids,
            LIMITS.max_length,
            ends_turn=chat.ends_turn,
            turn_ending_ids=chat.turn_ending_ids,
        )

        hold = partial(
            multi_turn,
            chat=chat,
            sampling=Sampling(1.0, 1.0),
            max_completion_tokens=MAX_COMPLETION_TOKENS,
            limits=LIMITS,
        )
        engine = partial(hold, generator=local, runner=ToolRunner(toolbox, 10.0))
        lock_step = partial(
            hold, generator=LockStepGenerator(local), runner=LockStepRunner(toolbox, 10.0)
        )
        ways = {"engine": engine, "lock step": lock_step}
        times: dict[str, list[float]] = {way: [] for way in ways}
        tokens: dict[str, int] = {}
        for _ in range(config.repeats + 1):
            for way, work in ways.items():
                seconds, tokens[way] = timed(work, openings)
                times[way].append(seconds)
        medians = {way: statistics.median(values[1:]) for way, values in times.items()}
        some = openings[:: len(openings) // config.one_at_a_time][: config.one_at_a_time]
        scale = len(openings) / len(some)
        alone = [timed(engine, [opening]) for opening in some]
        medians["one at a time"] = scale * sum(seconds for seconds, _ in alone)
        tokens["one at a time"] = round(scale * sum(count for _, count in alone))
        for way, seconds in medians.items():
            console.print(
                f"| {latency} | {way} | {seconds:.2f} | {tokens[way]:,} | "
                f"{seconds / medians['engine']:.2f} |"
            )


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))
