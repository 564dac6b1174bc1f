"""One call per row, any number of sinks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.console import Console

from common.logger.printable import printable
from common.logger.sinks import BATCH_AXIS, STEP_AXIS, Sink
from common.replay_buffer import Experience
from common.rollout.trajectory import Group, Rollout


class Logger:
    """Sends rows of `{name: number}` to every sink, each row with the axes its metrics need.

    Numbers may be numpy's or torch's. What is not finite is said once, what is no number left out.
    A logger without sinks is silent, which is what ranks other than the first have.
    """

    def __init__(self, sinks: Sequence[Sink], console: Console, samples_file: Path) -> None:
        self._sinks = sinks
        self._console = console
        self._samples_file = samples_file
        self._reported: set[str] = set()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        exit_code = error.code if isinstance(error, SystemExit) else error is not None
        with ExitStack() as every_sink_even_if_one_fails:
            for sink in reversed(self._sinks):
                every_sink_even_if_one_fails.callback(sink.close, int(exit_code or 0))

    def log_batch(self, batch_step: int, metrics: Mapping[str, Any]) -> None:
        """Log what is plotted over rollout batches."""
        self._log({BATCH_AXIS: batch_step, **metrics})

    def log_training_step(self, global_step: int, metrics: Mapping[str, Any]) -> None:
        """Log the `training_step/*` of one optimizer step."""
        self._log({STEP_AXIS: global_step, **metrics})

    def log_text(self, name: str, text: str, batch_step: int) -> None:
        for sink in self._sinks:
            sink.log_text(name, text, batch_step)

    def log_samples(self, batch_step: int, groups: Sequence[Group], split: str) -> None:
        """Append the groups, whole, to `samples.jsonl`."""
        rows = [row for group in groups for row in sample_rows(batch_step, group, split)]
        self._append_samples(rows)

    def log_errored(self, batch_step: int, groups: Sequence[Group]) -> None:
        """Record the conversations that a tool broke off; say so the first time of each kind."""
        broken = [replace(group, rollouts=group.errored, advantages=[]) for group in groups]
        self._append_samples(
            [r for group in broken for r in sample_rows(batch_step, group, "errored")]
        )
        for group in broken:
            for rollout in group.rollouts:
                call = rollout.completion.calls[-1]
                if call.tool not in self._reported:
                    self._reported.add(call.tool)
                    self.say(f"tool {call.tool} broke off a conversation: {printable(call.reply)}")

    def log_example(self, batch_step: int, group: Group) -> None:
        """Show the first completion of a group as text beside the metrics."""
        for rollout in group.rollouts[:1]:
            turns = [
                f"{message.role}: {message.content}" for message in rollout.completion.messages
            ]
            text = "\n\n".join([group.task.question, *turns])
            self.log_text("examples/completion", text, batch_step)

    def log_invalid_step(self, global_step: int, batch: Sequence[Experience]) -> None:
        """Record the tasks of an optimizer batch whose gradient was not finite."""
        task_ids = sorted({experience.task_id for experience in batch})
        self._append_samples([{"invalid_step": global_step, "task_ids": task_ids}])

    def _append_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._sinks:
            with self._samples_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._sinks:
            self._console.out(text, highlight=False)

    def _log(self, row: Mapping[str, Any]) -> None:
        numbers = {name: _plain(value) for name, value in row.items()}
        self._report([name for name, value in numbers.items() if value is None], "not a number")
        numbers = {name: value for name, value in numbers.items() if value is not None}
        self._report(
            [name for name, value in numbers.items() if not math.isfinite(value)], "not finite"
        )
        for sink in self._sinks:
            sink.log(numbers)

    def _report(self, names: Sequence[str], problem: str) -> None:
        """Say what is wrong with a metric the first time that it is."""
        new = [name for name in names if name not in self._reported]
        self._reported.update(new)
        if new:
            self.say(f"{problem}: {', '.join(new)}")


def _plain(value: Any) -> int | float | None:
    """A number of Python's from one of numpy's or torch's; None for anything else."""
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        value = value.item()
    return value if isinstance(value, int | float) else None


def sample_rows(batch_step: int, group: Group, split: str) -> list[dict[str, Any]]:
    """One flat row per rollout of a group."""
    advantages = group.advantages or [None] * len(group.rollouts)
    return [
        {
            "step": batch_step,
            "split": split,
            "question": group.task.question,
            "completion": rollout.completion,
            **_conversation(rollout),
            "ground_truth": group.task.answer,
            "reward": rollout.reward,
            **rollout.scores,
            "advantage": advantage,
            "stop_reason": rollout.trajectory.stop_reason,
            "completion_tokens": rollout.trajectory.num_sampled,
        }
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
    ]


def _conversation(rollout: Rollout) -> dict[str, Any]:
    """Turns and calls, where there is more to a conversation than one completion."""
    transcript = rollout.completion
    if len(transcript.messages) < 2 and not transcript.calls:
        return {}
    return {
        "conversation": [asdict(message) for message in transcript.messages],
        "calls": [asdict(call) for call in transcript.calls],
    }
