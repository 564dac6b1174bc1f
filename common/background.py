"""Work of the user's code beside ours: in threads, each with a limit of time."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

# Pieces of work at the same time; others wait for their turn.
MOST_THREADS = 256

Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Job(Generic[Key]):
    key: Key
    started: float


class Background(Generic[Key, Result]):
    """Runs functions and hands back what they return, each with the key it was started with.

    Each runs in a thread of its own, and is given up after `timeout` seconds. The threads are
    daemons: one that never returns keeps neither the others nor the process from ending.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._queued: deque[tuple[Key, Callable[[], Result]]] = deque()
        self._jobs: dict[int, _Job[Key]] = {}
        # A job that was given up may still come back, when its key has another.
        self._job_ids = itertools.count()
        self._results: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self._queued)

    def start(self, key: Key, work: Callable[[], Result]) -> None:
        """Run a function, which must not raise, as soon as there is a thread for it."""
        self._queued.append((key, work))
        self._start_queued()

    def _start_queued(self) -> None:
        while self._queued and len(self._jobs) < MOST_THREADS:
            key, work = self._queued.popleft()
            job_id = next(self._job_ids)
            self._jobs[job_id] = _Job(key, time.monotonic())
            _start_daemon(partial(self._work, job_id, work))

    def _work(self, job_id: int, work: Callable[[], Result]) -> None:
        self._results.put((job_id, work()))

    def finished(self, wait: float = 0.0) -> list[tuple[Key, Result | None]]:
        """What has come back since the last time, None for what was given up.

        Waits up to that many seconds for a first one.
        """
        finished: list[tuple[Key, Result | None]] = []
        while self._jobs:
            try:
                job_id, result = self._results.get(block=wait > 0, timeout=wait)
            except queue.Empty:
                break
            wait = 0.0
            if job := self._jobs.pop(job_id, None):
                finished.append((job.key, result))
        finished += self._given_up()
        self._start_queued()
        return finished

    def _given_up(self) -> list[tuple[Key, None]]:
        now = time.monotonic()
        late = [job_id for job_id, job in self._jobs.items() if now - job.started > self._timeout]
        return [(job.key, None) for job in map(self._jobs.pop, late)]


def awaited(value: Any) -> Any:
    """What an async function comes to, on an event loop of its own; anything else as it is."""
    if not inspect.isawaitable(value):
        return value
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_DaemonThreads())
        return runner.run(_outcome(value))


async def _outcome(value: Awaitable[Any]) -> Any:
    return await value


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
    threading.Thread(target=work, name="background", daemon=True).start()
