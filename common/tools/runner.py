"""Tools at work beside the decode loop, each call with a limit of time."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

from common.tools.calls import Call, CallRecord
from common.tools.toolbox import Tool


@dataclass(frozen=True)
class _Job:
    number: int
    tool: Tool
    started: float
    future: Future[None] | None


class ToolRunner:
    """Runs calls and hands back what came of them, each with the number it was started with.

    Instant tools run at once, in the caller's thread and in the order in which they are started, so
    that runs repeat exactly. Any other runs in a thread of its own, or on one event loop if it is
    async, and is given up after `timeout` seconds. The threads are daemons: one that never returns
    keeps neither its conversation nor the process from ending.
    """

    def __init__(self, toolbox: Mapping[str, Tool], timeout: float) -> None:
        self._toolbox = toolbox
        self._timeout = timeout
        self._ready: list[tuple[int, CallRecord]] = []
        self._jobs: dict[int, _Job] = {}
        # A job that was given up may still come back, when its conversation's number has another.
        self._job_ids = itertools.count()
        self._results: queue.SimpleQueue[tuple[int, CallRecord]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        return bool(self._ready or self._jobs)

    def start(self, number: int, call: Call) -> None:
        """Run a call; one that cannot be run is answered with what is wrong with it."""
        if call.status != "ok":
            complaint = f"error: {call.complaint}"
            self._ready.append((number, CallRecord(call.name, call.status, "answered", complaint)))
            return
        tool = self._toolbox[call.name]
        if tool.instant:
            self._ready.append((number, _run(tool, call)))
            return
        job_id, started, future = next(self._job_ids), time.monotonic(), None
        if tool.is_async:
            coroutine = self._run_on_loop(job_id, tool, call)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        else:
            work = threading.Thread(
                target=lambda: self._results.put((job_id, _run(tool, call))),
                name=f"tool {tool.name}",
                daemon=True,
            )
            work.start()
        self._jobs[job_id] = _Job(number, tool, started, future)

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
        return finished + self._given_up()

    def _given_up(self) -> list[tuple[int, CallRecord]]:
        now = time.monotonic()
        late = [job_id for job_id, job in self._jobs.items() if now - job.started > self._timeout]
        records: list[tuple[int, CallRecord]] = []
        for job in map(self._jobs.pop, late):
            if job.future is not None:
                job.future.cancel()
            why = f"no reply within {self._timeout:g} s"
            records.append(
                (job.number, CallRecord(job.tool.name, "ok", "timeout", why, self._timeout))
            )
        return records

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """One for the whole run: what async tools hold open belongs to it."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="async tools", daemon=True).start()
        return loop

    async def _run_on_loop(self, job_id: int, tool: Tool, call: Call) -> None:
        started = time.monotonic()
        try:
            record = _record(tool, await tool.function(**call.arguments), started)  # pyright: ignore[reportGeneralTypeIssues]
        except Exception as error:  # noqa: BLE001 (code of the user)
            record = _failure(tool, error, started)
        self._results.put((job_id, record))


def _run(tool: Tool, call: Call) -> CallRecord:
    started = time.monotonic()
    try:
        return _record(tool, tool.function(**call.arguments), started)
    except Exception as error:  # noqa: BLE001 (code of the user)
        return _failure(tool, error, started)


def _record(tool: Tool, reply: object, started: float) -> CallRecord:
    if not isinstance(reply, str):
        raise TypeError(f"it returned {type(reply).__name__}; a tool returns text")
    return CallRecord(tool.name, "ok", "answered", reply, time.monotonic() - started)


def _failure(tool: Tool, error: Exception, started: float) -> CallRecord:
    """Whatever a tool raises ends its conversation alone, and is counted and shown."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CallRecord(tool.name, "ok", "error", what, time.monotonic() - started)
