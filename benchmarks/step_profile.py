"""Where the seconds of a step go, and how much work is done in them, seen from outside the script.

The run is watched through hooks of its models and wrappers around a few functions; nothing that
trains knows of it.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.work import Architecture, Work, counting
from common.logger.timer import Timer
from common.models.log_probs import AdaptersOff
from common.replay_buffer import Experience
from common.rewards.judge import Judge
from common.rollout import generate
from common.rollout.trajectory import Group
from common.training import learner
from common.training.session import Session

PROMPTS, DECODING = "sampling: reading prompts", "sampling: decoding"
CHOOSING, BOOKKEEPING = "sampling: choosing tokens", "sampling: bookkeeping"
REWARDS = "rewards"
OLD, REFERENCE = "scoring: old", "scoring: reference"
BATCHING = "scoring: batching"
FORWARD, BACKWARD = "learning: forward", "learning: backward"
OPTIMIZER, LOSSES = "learning: optimizer", "learning: losses, batches"
REPORT, REST = "report", "rest"
PHASES = (
    *(PROMPTS, DECODING, CHOOSING, BOOKKEEPING, REWARDS, OLD, REFERENCE, BATCHING),
    *(FORWARD, BACKWARD, OPTIMIZER, LOSSES, REPORT, REST),
)
SAMPLING, SCORING, LEARNING = PHASES[:4], PHASES[5:8], PHASES[8:12]

# What is left of the phases that the run's own timer knows, by its names for them.
_OF_TIMER = {"rollout": BOOKKEEPING, "log_probs": BATCHING, "train": LOSSES}

# Numbers read or written per trained weight: the norm reads its gradient, clipping reads and writes
# it; AdamW reads the weight, the gradient and both averages, and writes all but the gradient.
_NUMBERS_OF_OPTIMIZER = 10


@dataclass(frozen=True)
class Step:
    """Seconds and work by phase, and what was sampled and learned from."""

    seconds: Mapping[str, float]
    work: Mapping[str, Work]
    held_tokens: int
    """In all sequences, prompts included."""
    sampled_tokens: int
    distinct_tokens: int
    """Held ones, the prompt of a group once."""

    @property
    def all_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def all_work(self) -> Work:
        return sum(self.work.values(), Work())


class Stopwatch:
    """Charges every second to one phase, the innermost of those that are going on."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._phases = [REST]
        self._since = time.perf_counter()
        self._forget()

    def _forget(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._work: defaultdict[str, Work] = defaultdict(Work)
        self._not_backward = Work()

    @property
    def phase(self) -> str:
        return self._phases[-1]

    def enter(self, phase: str) -> None:
        self._charge()
        self._phases.append(phase)

    def leave(self) -> None:
        self._charge()
        self._phases.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self.phase] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.enter(phase)
        try:
            yield
        finally:
            self.leave()

    def add(self, work: Work) -> None:
        """Charge work to the phase that is going on."""
        self._work[self.phase] += work
        if self.phase == FORWARD:
            self._not_backward += work

    def went_backward(self, architecture: Architecture) -> None:
        """Charge the pass back through all that has gone forward since the last one."""
        self.add(architecture.backward(self._not_backward))
        self._not_backward = Work()

    def finish_step(self, experiences: Sequence[Experience]) -> None:
        self._charge()
        held, sampled = sum(map(len, experiences)), sum(int(e.sampled.sum()) for e in experiences)
        first_of_task = {e.task_id: e for e in reversed(experiences)}.values()
        given = sum(int((~e.sampled).sum()) for e in first_of_task)
        step = Step(dict(self._seconds), dict(self._work), held, sampled, sampled + given)
        self.steps.append(step)
        self._forget()


@contextmanager
def watched(session: Session, stopwatch: Stopwatch) -> Iterator[Architecture]:
    """While this lasts, the stopwatch sees what the session does; a step ends with its report."""
    policy, report = session.learner.policy, session.report

    def charge_timer(call: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def timed(timer: Timer, phase: str) -> Iterator[None]:
            with stopwatch(_OF_TIMER.get(phase, REST)), call(timer, phase):
                yield

        return timed

    def charge(phase: str, then: Callable[..., object] = lambda *given, **named: None) -> Any:
        def around(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def timed(*given: Any, **named: Any) -> Any:
                with stopwatch(phase):
                    result = call(*given, **named)
                    then(*given, **named)
                    return result

            return timed

        return around

    def report_and_finish(step: int, groups: list[Group], experiences: list[Experience]) -> None:
        with stopwatch(REPORT):
            report(step, groups, experiences)
        stopwatch.finish_step(experiences)

    def phase_of_model(inputs: Mapping[str, Any]) -> str:
        if stopwatch.phase != BOOKKEEPING:
            return stopwatch.phase
        return DECODING if inputs["input_ids"].shape[1] == 1 else PROMPTS

    def phase_of_log_probs(inputs: Mapping[str, Any]) -> str:
        if torch.is_grad_enabled():
            return FORWARD
        return REFERENCE if stopwatch.phase == REFERENCE else OLD

    with ExitStack() as watching:
        architecture = watching.enter_context(counting(policy.model, stopwatch.add))
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        stepped = Work(bytes=_NUMBERS_OF_OPTIMIZER * 4.0 * trained)

        def add_logits(logits: torch.Tensor, *_: object) -> None:
            stopwatch.add(Work(bytes=float(logits.nbytes)))

        for owner, name, around in (
            (Timer, "__call__", charge_timer),
            (Judge, "__call__", charge(REWARDS)),
            (generate, "sample_tokens", charge(CHOOSING, add_logits)),
            (
                *(torch.Tensor, "backward"),
                charge(BACKWARD, lambda *_: stopwatch.went_backward(architecture)),
            ),
            (learner, "optimizer_step", charge(OPTIMIZER, lambda *_: stopwatch.add(stepped))),
        ):
            replaced = mock.patch.object(owner, name, around(getattr(owner, name)))
            watching.enter_context(replaced)
        watching.enter_context(mock.patch.object(session, "report", report_and_finish))
        _charge_passes(watching, stopwatch, policy.model, phase_of_model)
        _charge_passes(watching, stopwatch, policy, phase_of_log_probs)
        reference = session.reference
        if reference is not None:
            _charge_passes(watching, stopwatch, reference, lambda inputs: REFERENCE)
        if reference is not None and not isinstance(reference, AdaptersOff):
            watching.enter_context(counting(reference.model, stopwatch.add))
        yield architecture


def _charge_passes(
    watching: ExitStack,
    stopwatch: Stopwatch,
    module: nn.Module,
    phase: Callable[[Mapping[str, Any]], str],
) -> None:
    """Charge what passes forward through the module to a phase that depends on what goes in."""
    before = module.register_forward_pre_hook(
        lambda module, inputs, named: stopwatch.enter(phase(named)), with_kwargs=True
    )
    after = module.register_forward_hook(lambda *_: stopwatch.leave(), always_call=True)
    watching.callback(before.remove)
    watching.callback(after.remove)
