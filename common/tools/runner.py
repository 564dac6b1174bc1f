"""Tools at work beside the decode loop, each call with a limit of time."""

from __future__ import annotations

import asyncio
import copy
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from common.printable import error_as_line, storable
from common.tools.calls import Call, CallRecord
from common.tools.toolbox import Tool

# Calls at work at the same time; others wait for their turn.
MOST_THREADS = 256


@dataclass(frozen=True)
class _Job:
    number: int
    call: Call
    started: float


class ToolRunner:
    """Runs calls and hands back what came of them, each with the number it was started with.

    Instant tools run at once, in the caller's thread and in the order in which they are started, so
    that runs repeat exactly. Any other runs in a thread of its own, an async one on an event loop
    of its own, and is given up after `timeout` seconds. The threads are daemons: one that never
    returns keeps neither another conversation nor the process from ending.
    """

    def __init__(self, toolbox: Mapping[str, Tool], timeout: float) -> None:
        self._toolbox = toolbox
        self._timeout = timeout
        self._ready: list[tuple[int, CallRecord]] = []
        self._queued: deque[tuple[int, Tool, Call]] = deque()
        self._jobs: dict[int, _Job] = {}
        # A job that was given up may still come back, when its conversation's number has another.
        self._job_ids = itertools.count()
        self._results: queue.SimpleQueue[tuple[int, CallRecord]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        return bool(self._ready or self._jobs or self._queued)

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
            self._queued.append((number, tool, call))
            self._start_queued()

    def _start_queued(self) -> None:
        while self._queued and len(self._jobs) < MOST_THREADS:
            number, tool, call = self._queued.popleft()
            job_id = next(self._job_ids)
            self._jobs[job_id] = _Job(number, call, time.monotonic())
            _start_daemon(partial(self._work, job_id, tool, call))

    def _work(self, job_id: int, tool: Tool, call: Call) -> None:
        self._results.put((job_id, _run(tool, call)))

    def finished(self, wait: float = 0.0) -> list[tuple[int, CallRecord]]:
        """What has come back since the last time; waits up to that many seconds for a first one."""
        finished, self._ready = self._ready, []
        if finished or not self._jobs:
            wait = 0.0
        while self._jobs:
            try:
                job_id, record = self._results.get(block=wait > 0, timeout=wait)
            except queue.Empty:
                break
            wait = 0.0
            if job := self._jobs.pop(job_id, None):
                finished.append((job.number, record))
        finished += self._given_up()
        self._start_queued()
        return finished

    def _given_up(self) -> list[tuple[int, CallRecord]]:
        now = time.monotonic()
        late = [job_id for job_id, job in self._jobs.items() if now - job.started > self._timeout]
        why = f"no reply within {self._timeout:g} s"
        return [
            (job.number, job.call.record("timeout", why, self._timeout))
            for job in map(self._jobs.pop, late)
        ]


class _DaemonThreads(ThreadPoolExecutor):
    """What `asyncio.to_thread` runs on; the interpreter waits for the threads of any other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 (handed on to whoever awaits it)
                future.set_exception(error)

        _start_daemon(work)
        return future


def _start_daemon(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="tool", daemon=True).start()


def _run(tool: Tool, call: Call) -> CallRecord:
    """Whatever a tool raises ends its conversation alone, and is counted and shown."""
    started = time.monotonic()
    try:
        # A copy: what a tool does to its arguments is not what the model wrote.
        reply = tool.function(**copy.deepcopy(dict(call.arguments)))
        if tool.is_async:
            reply = _awaited(cast(Coroutine[Any, Any, str], reply))
        if not isinstance(reply, str):
            raise TypeError(f"it returned {type(reply).__name__}; a tool returns text")
    except (Exception, SystemExit) as error:  # noqa: BLE001 (code of the user)
        return call.record("error", error_as_line(error)[:300], time.monotonic() - started)
    return call.record("answered", storable(reply), time.monotonic() - started)


def _awaited(reply: Coroutine[Any, Any, str]) -> str:
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_DaemonThreads())
        return runner.run(reply)
