"""Ctrl-C and SIGTERM as requests: finish, save, then stop."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType


class Interruption:
    """Notes the first SIGINT or SIGTERM; a second one acts as if nothing had been installed.

    With `max_minutes`, the time that has passed is a request to stop as well.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: int | None = None
        self._previous = {}

    @property
    def requested(self) -> bool:
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return out_of_time or self.signalled()

    def signalled(self) -> bool:
        """Whether a signal came, for which even decoding is cut short."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 when the time was up."""
        return 0 if self._signal is None else 128 + self._signal

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
