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
# Those of a batch that compute, and the share of the time from which on that is what they do.
FEW_THREADS, MOST_COMPUTING = 4, 0.2

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
        self._results: queue.SimpleQueue[tuple[int, Future[Result]]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self._queued)

    def start(self, key: Key, work: Callable[[], Result]) -> None:
        """Run a function, which must not raise, as soon as there is a thread for it."""
        self._queued.append((key, work))
        self._start_queued()

    def _start_queued(self) -> None:
        while self._queued and self._has_room():
            key, work = self._queued.popleft()
            job_id = next(self._job_ids)
            self._jobs[job_id] = _Job(key, time.monotonic())
            _start_daemon(partial(self._work, job_id, work))

    def _has_room(self) -> bool:
        return len(self._jobs) < MOST_THREADS

    def _work(self, job_id: int, work: Callable[[], Result]) -> None:
        future: Future[Result] = Future()
        _fulfil(future, work)
        self._results.put((job_id, future))

    def finished(self, wait: float = 0.0) -> list[tuple[Key, Result | None]]:
        """What has come back since the last time, None for what was given up.

        Waits up to that many seconds for a first one. Raises what a function raised after all.
        """
        finished: list[tuple[Key, Result | None]] = [*self._back(wait)]
        finished += self._given_up()
        self._start_queued()
        return finished

    def _back(self, wait: float) -> list[tuple[Key, Result]]:
        back: list[tuple[Key, Result]] = []
        while self._jobs:
            try:
                job_id, outcome = self._results.get(block=wait > 0, timeout=wait)
            except queue.Empty:
                break
            wait = 0.0
            if job := self._jobs.pop(job_id, None):
                back.append((job.key, outcome.result()))
        return back

    def _given_up(self) -> list[tuple[Key, None]]:
        now = time.monotonic()
        late = [job_id for job_id, job in self._jobs.items() if now - job.started > self._timeout]
        return [(job.key, None) for job in map(self._jobs.pop, late)]


class BackgroundBatch(Background[Key, Result]):
    """Does so for pieces of one batch, which compete with one another for Python.

    Python computes in one thread at a time, so that among many that compute each takes as long as
    all: few are at work, unless what they do is to wait. And a piece is given up only if for
    `timeout` seconds no other has come back either; then more are at work, so that many that hang
    are soon known.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self._threads = FEW_THREADS
        self._began, self._computed_before = time.monotonic(), time.process_time()
        self._last_back = self._began

    def _has_room(self) -> bool:
        return len(self._jobs) < (MOST_THREADS if self._wait_for_others() else self._threads)

    def _wait_for_others(self) -> bool:
        """Whether this process, which does nothing else, has computed for little of the time."""
        computed = time.process_time() - self._computed_before
        return computed < MOST_COMPUTING * (time.monotonic() - self._began)

    def _back(self, wait: float) -> list[tuple[Key, Result]]:
        if back := super()._back(wait):
            self._last_back = time.monotonic()
        return back

    def _given_up(self) -> list[tuple[Key, None]]:
        if time.monotonic() - self._last_back <= self._timeout:
            return []
        given_up = super()._given_up()
        if given_up:
            self._threads = min(4 * self._threads, MOST_THREADS)
        return given_up


def stops_the_run(error: BaseException) -> bool:
    """Whether it is Ctrl-C, which Python raises in the main thread alone."""
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


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
        _start_daemon(partial(_fulfil, future, partial(fn, *args, **kwargs)))
        return future


def _fulfil(future: Future[Result], work: Callable[[], Result]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 (handed on to whoever waits for it)
        future.set_exception(error)


def _start_daemon(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="background", daemon=True).start()
