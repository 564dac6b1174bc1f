"""Ctrl-C and SIGTERM as requests: finish, save, then stop. A second one stops at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds in which signals to a rank are one request: a terminal sends Ctrl-C to the launcher and to
# all ranks, and torch's launcher hands it on to them.
_ONE_REQUEST = 1.0


def was_launched() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


class Interruption:
    """Notes the first SIGINT or SIGTERM; a second one ends the process then and there, on a rank of
    several unless it comes right after the first.

    Python runs a signal's handler between two steps of its main thread, which may be many seconds
    apart when a tensor operation is large. So a thread of its own waits for signals, and need not
    wait for the main thread. With `max_minutes`, the time that has passed is a request as well, and
    under `accelerate launch` so is the end of the launcher, which leaves its child running.
    """

    def __init__(self, say: Callable[[str], None], max_minutes: float | None = None) -> None:
        self._say = say
        self._parent = os.getppid() if was_launched() else None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: int | None = None
        self._previous = {}

    @property
    def requested(self) -> bool:
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        return out_of_time or self.signalled()

    def signalled(self) -> bool:
        """Whether a signal came, for which even decoding is cut short, or the launcher is gone."""
        if self._parent not in (None, os.getppid()):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 when the time was up."""
        return 0 if self._signal is None else 128 + self._signal

    def __enter__(self) -> Interruption:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        self._writer.close()
        self._watcher.join()
        self._reader.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _watch(self) -> None:
        """Read the number of each signal as it comes, until the other end is closed."""
        together = _ONE_REQUEST if "LOCAL_RANK" in os.environ else 0.0
        asked = None
        while byte := self._reader.recv(1):
            if byte[0] not in SIGNALS:
                continue
            if asked is not None:
                if time.monotonic() - asked < together:
                    continue
                os._exit(128 + byte[0])
            asked = time.monotonic()
            self._say("stopping as soon as the step can be saved; once more stops at once")
