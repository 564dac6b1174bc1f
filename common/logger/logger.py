"""One call per row, any number of sinks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from common.logger.health import Health
from common.logger.media import Histogram, Media
from common.logger.recorder import Recorder
from common.logger.rollout_media import as_text, generations, histograms, reward_breakdown
from common.logger.sinks import BATCH_AXIS, STEP_AXIS, Sink
from common.plain_number import plain_number
from common.printable import error_as_line, printable
from common.replay_buffer import Experience
from common.rollout.trajectory import Group, Rollout
from common.run.files import as_line


@dataclass(frozen=True)
class Intervals:
    """Every how many batches what is logged of them; 0 for never."""

    completions: int
    histograms: int
    figures: int


# Groups of which a batch logs whole conversations.
MOST_SHOWN = 4

NEVER = Intervals(completions=0, histograms=0, figures=0)


def is_due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


class Logger:
    """Sends rows of `{name: number}` to every sink, each row with the axes its metrics need.

    Numbers may be numpy's or torch's. What is not finite is said once, what is no number left out.
    A logger without sinks is silent, which is what ranks other than the first have.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        console: Console,
        samples_file: Path,
        intervals: Intervals = NEVER,
        health: Health | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._sinks = sinks
        self._console = console
        self._samples_file = samples_file
        self.intervals = intervals
        self._health = health or Health()
        self._recorder = recorder
        self._reported: set[str] = set()

    @classmethod
    def silent(cls) -> Logger:
        """One that logs nothing."""
        return cls([], Console(quiet=True), Path(os.devnull))

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
        """Log what is plotted over optimizer steps."""
        self._log({STEP_AXIS: global_step, **metrics})

    def snapshot_gradients(self, global_step: int) -> None:
        """Record the gradients that the optimizer is about to use, if there are to be figures."""

        def take(recorder: Recorder) -> None:
            if global_step == 0:
                recorder.embeddings(0)
            recorder.gradients(global_step + 1)

        self._record(take)

    def log_media(self, batch_step: int, media: Mapping[str, Media]) -> None:
        """Log what is no number: text, histograms, tables, bars."""
        for sink in self._sinks:
            for name, value in media.items():
                sink.log_media(name, value, batch_step)

    def shown(self, batch_step: int, groups: Sequence[Group]) -> list[Group]:
        """Those of which whole conversations are due, a few of those that are learned from."""
        intervals = self.intervals.completions, self.intervals.figures
        if not any(is_due(interval, batch_step) for interval in intervals):
            return []
        return [group for group in groups if group.rollouts and group.advantages][:MOST_SHOWN]

    def log_rollouts(
        self, batch_step: int, groups: Sequence[Group], mismatch: Histogram | None = None
    ) -> None:
        """Log what is due of a batch: completions, distributions, what went wrong.

        `mismatch` is that of sampler and learner, where histograms are due. It is the last that is
        logged of a batch: the rules of `health` look at its numbers.
        """
        self.log_errored(batch_step, groups)
        for alarm in self._health.end_batch():
            self.say(f"warning: {alarm}")
            self.log_media(batch_step, {f"health/{alarm.rule}": str(alarm)})
        kept = [group for group in groups if group.rollouts]
        if not self._sinks or not kept:
            return
        shown = self.shown(batch_step, groups)
        if shown and is_due(self.intervals.completions, batch_step):
            self.log_samples(batch_step, shown, "train")
            table = generations(batch_step, shown)
            example = {"examples/completion": as_text(shown[0]), "generations": table}
            self.log_media(batch_step, example)
        if is_due(self.intervals.histograms, batch_step):
            self.log_media(batch_step, histograms(kept))
            if mismatch is not None:
                self.log_media(batch_step, {"rollouts/logprob_mismatch_hist": mismatch})
            self.log_media(batch_step, {"rewards/breakdown": reward_breakdown(kept)})

        def take(recorder: Recorder) -> None:
            recorder.task_rewards(batch_step, kept)
            if shown and is_due(self.intervals.figures, batch_step):
                one = shown[0].rollouts[0].trajectory
                first_sampled = int(one.sampled_mask.int().argmax())
                recorder.attention(batch_step, one.token_ids, first_sampled)
                recorder.embeddings(batch_step)

        self._record(take)

    def log_samples(self, batch_step: int, groups: Sequence[Group], split: str) -> None:
        """Append the groups, whole, to `samples.jsonl`."""
        if not self._sinks:
            return
        rows = [row for group in groups for row in sample_rows(batch_step, group, split)]
        self._append_samples(rows)

    def log_errored(self, batch_step: int, groups: Sequence[Group]) -> None:
        """Record what a tool broke off or a reward failed on; say so the first time of each.

        What only a reward of weight 0 failed on is said as well, and is no errored sample.
        """
        if not self._sinks:
            return
        broken = [replace(group, rollouts=group.errored, advantages=[]) for group in groups]
        self._append_samples(
            [r for group in broken for r in sample_rows(batch_step, group, "errored")]
        )
        for group in groups:
            for rollout in (*group.rollouts, *group.errored):
                if rollout.failure:
                    self._say_once(rollout.failure.source, f"not scored: {rollout.failure.text}")
                elif rollout.trajectory.errored:
                    call = rollout.completion.calls[-1]
                    broken_off = f"tool {call.tool} broke off a conversation"
                    self._say_once(call.tool, f"{broken_off}: {call.reply}")

    def log_invalid_step(self, global_step: int, batch: Sequence[Experience]) -> None:
        """Record the tasks of an optimizer batch whose gradient was not finite."""
        task_ids = sorted({experience.task_id for experience in batch})
        self._append_samples([{"invalid_step": global_step, "task_ids": task_ids}])

    def _append_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._sinks:
            with self._samples_file.open("a", encoding="utf-8") as file:
                file.writelines(map(as_line, rows))

    def _record(self, take: Callable[[Recorder], None]) -> None:
        """Take snapshots, if there are to be figures; after the first that fails there are none."""
        if self._recorder is None:
            return
        # Whatever is wrong with a snapshot, the training is worth more.
        try:
            take(self._recorder)
        except Exception as error:  # noqa: BLE001
            self._recorder = None
            self.say(f"no more snapshots for figures ({error_as_line(error)})")

    def _say_once(self, thing: str, text: str) -> None:
        if thing not in self._reported:
            self._reported.add(thing)
            self.say(text)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._sinks:
            self._console.out(printable(text), highlight=False)

    def _log(self, row: Mapping[str, Any]) -> None:
        numbers = {name: plain_number(value) for name, value in row.items()}
        self._report([name for name, value in numbers.items() if value is None], "not a number")
        numbers = {name: value for name, value in numbers.items() if value is not None}
        self._report(
            [name for name, value in numbers.items() if not math.isfinite(value)], "not finite"
        )
        self._health.add(numbers)
        for sink in self._sinks:
            sink.log(numbers)

    def _report(self, names: Sequence[str], problem: str) -> None:
        """Say what is wrong with a metric the first time that it is."""
        new = [name for name in names if name not in self._reported]
        self._reported.update(new)
        if new:
            self.say(f"{problem}: {', '.join(new)}")


# Of a row of samples, beside the scores.
SAMPLE_COLUMNS = (
    *("step", "split", "question", "completion", "conversation", "calls", "failure"),
    *("ground_truth", "reward", "correct", "advantage", "stop_reason", "completion_tokens"),
)


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
            **({"failure": rollout.failure.text} if rollout.failure else {}),
            "ground_truth": group.task.answer,
            "reward": rollout.reward,
            "correct": rollout.correct,
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
