"""Seconds and memory per phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import UserError
from common.logger.peak_memory import peak_memory

_FEWER_ROWS = "--decode-rows (0 is all at once), which changes no number; or else"

# What to change when a phase runs out of memory.
REMEDIES = {
    "evaluation": f"{_FEWER_ROWS} --max-completion-tokens or --max-length",
    "rollout": f"{_FEWER_ROWS} --max-completion-tokens or --max-length",
    "log_probs": "--micro-batch-tokens or --max-length, or add --lora-rank 16",
    "train": "--micro-batch-tokens, or add --gradient-checkpointing or --lora-rank 16",
    "log": "--log-completions-interval",
    "checkpoint": "--micro-batch-tokens, or add --lora-rank 16",
}


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Timer:
    """Measures named phases of work on a device. A lap is what has passed since the lap before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()
        self._phase = "evaluation"
        self._peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """What is raised in a phase leaves it in hand, for `explain_lack_of_memory` to name it."""
        start = time.perf_counter()
        self._phase = phase
        with peak_memory(self._device) as peak:
            try:
                yield
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed
        self._peaks[phase] = max(self._peaks.get(phase, 0), peak.num_bytes)

    @contextmanager
    def explain_lack_of_memory(self) -> Iterator[None]:
        """Raise a `UserError` that says in which phase memory ran out, and what takes less."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            remedy = REMEDIES.get(self._phase, REMEDIES["train"])
            raise UserError(f"out of memory in {self._phase}: lower {remedy}") from None

    def lap(self) -> dict[str, float]:
        """`time/*` of the lap that ends here, `time/step_s` being all of it; `system/peak_*`."""
        now = time.perf_counter()
        seconds, peaks = {**self.seconds, "step": now - self._started}, self._peaks
        self._started, self.seconds, self._peaks = now, {}, {}
        return {f"time/{phase}_s": value for phase, value in seconds.items()} | {
            f"system/peak_{phase}_gb": value / 1e9 for phase, value in peaks.items()
        }
