"""Tools at work beside the decode loop, each call with a limit of time."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial

from common.background import Background, awaited, stops_the_run
from common.printable import error_as_line, storable
from common.tools.calls import Call, CallRecord
from common.tools.toolbox import Tool


class ToolRunner:
    """Runs calls and hands back what came of them, each with the number it was started with.

    Instant tools run at once, in the caller's thread and in the order in which they are started, so
    that runs repeat exactly. Any other runs in the background, and is given up after `timeout`
    seconds.
    """

    def __init__(self, toolbox: Mapping[str, Tool], timeout: float) -> None:
        self._toolbox = toolbox
        self._timeout = timeout
        self._ready: list[tuple[int, CallRecord]] = []
        self._calls: dict[int, Call] = {}
        self._background: Background[int, CallRecord] = Background(timeout)

    @property
    def busy(self) -> bool:
        return bool(self._ready) or self._background.busy

    def start(self, number: int, call: Call, own: Mapping[str, Tool] | None = None) -> None:
        """Run a call; one that cannot be run is answered with what is wrong with it.

        `own` are tools of the conversation's, in place of those of the same names.
        """
        if call.status != "ok":
            self._ready.append((number, call.record("answered", f"error: {call.complaint}")))
            return
        tool = {**self._toolbox, **(own or {})}[call.name]
        if tool.instant:
            self._ready.append((number, _run(tool, call)))
        else:
            self._calls[number] = call
            self._background.start(number, partial(_run, tool, call))

    def instantly(self) -> list[tuple[int, CallRecord]]:
        """What instant tools have said since the last time, and what needed none."""
        ready, self._ready = self._ready, []
        return ready

    def finished(self, wait: float = 0.0) -> list[tuple[int, CallRecord]]:
        """What has come back since the last time; waits up to that many seconds for a first one."""
        finished = self.instantly()
        why = f"no reply within {self._timeout:g} s"
        for number, record in self._background.finished(0.0 if finished else wait):
            late = self._calls.pop(number).record("timeout", why, self._timeout)
            finished.append((number, record or late))
        return finished


def _run(tool: Tool, call: Call) -> CallRecord:
    """Whatever a tool raises ends its conversation alone, and is counted and shown."""
    started = time.monotonic()
    try:
        # A copy: what a tool does to its arguments is not what the model wrote.
        reply = awaited(tool.function(**copy.deepcopy(dict(call.arguments))))
        if not isinstance(reply, str):
            raise TypeError(f"it returned {type(reply).__name__}; a tool returns text")
    # It may raise what ends a thread or a task, such as CancelledError: handed on as data.
    except BaseException as error:
        if stops_the_run(error):
            raise
        return call.record("error", error_as_line(error)[:300], time.monotonic() - started)
    return call.record("answered", storable(reply), time.monotonic() - started)
