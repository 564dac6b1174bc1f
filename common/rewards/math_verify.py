"""Is an answer mathematically the oracle? As the library math-verify compares them.

Fractions, roots, sets, intervals, matrices and expressions, in LaTeX or plain. The library limits
its time by a signal, which works in the main thread alone and not while Python computes in C; so it
runs without that limit in processes of its own, which are killed when they take too long.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import re
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.rewards.answers import is_same_answer
from common.rewards.markup import bare, last_boxed
from common.rewards.numbers import read_number
from common.rewards.tags import ANSWER_TAG, after_thought, extract_tag
from common.rewards.transcript import Transcript
from common.tasks.task import Task

# A comparison takes milliseconds; one that takes this long scores 0.
SECONDS = 5.0
_SECONDS_TO_START = 60.0
MOST_WORKERS = 4
_LONGEST = 500
_PROGRAM = Path(__file__).with_name("math_worker.py")

# The library takes words for products of letters, so that act is cat, and 1 1/2 for 1.
_NO_FORMULA = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|exp|sqrt|frac|pmod|mod)\b)[A-Za-z]{3,}"
    r"|\d\s+\d|\n|\$|\\boxed|\\[()\[\]]"
)
_TO_BE_WORKED_OUT = re.compile(r"[\d)}]\s*(?:[-+*]|\\(?:times|cdot|div)\b)(?!\s*10\s*\^)\s*[\d(\\]")


class MathVerify:
    """1 if the tagged answer, or else what the last box holds, is mathematically right.

    What any other reward finds right is right here without a comparison, and two numbers are
    settled by that. A sum or product that is still to be worked out is no number.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._workers: _Workers | None = None

    def __call__(self, completion: Transcript, task: Task) -> float:
        return self.of_batch([completion], [task])[0]

    def of_batch(
        self,
        completions: Sequence[Transcript],
        tasks: Sequence[Task],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[float]:
        """Compared side by side; `meanwhile` is called after each comparison.

        Raises `UserError` without the library.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise UserError("reward math_verify: needs math-verify; run pip install -e '.[math]'")
        answers = list(map(_answer_in, completions))
        scores = [
            float(any(is_same_answer(answer, oracle) for oracle in task.answers))
            for answer, task in zip(answers, tasks, strict=True)
        ]
        comparisons = {
            number: comparison
            for number, (answer, task) in enumerate(zip(answers, tasks, strict=True))
            if not scores[number] and len(comparison := _to_compare(answer, task)) > 1
        }
        threads, compare = ThreadPoolExecutor(MOST_WORKERS), self._own_workers().compare
        try:
            found = threads.map(compare, comparisons.values())
            for number, is_right in zip(comparisons, found, strict=True):
                scores[number] = float(is_right)
                meanwhile()
        finally:
            threads.shutdown(cancel_futures=True)
        return scores

    def _own_workers(self) -> _Workers:
        """Those of this process: a fork starts workers of its own."""
        if self._workers is None or self._workers.parent != os.getpid():
            self._workers = _Workers(self._seconds)
        return self._workers


def _answer_in(completion: str) -> str:
    tagged = extract_tag(completion, ANSWER_TAG)
    return (tagged if tagged is not None else last_boxed(after_thought(completion))) or ""


def _to_compare(answer: str, task: Task) -> list[str]:
    """The answer and every oracle that the library may find equal to it."""
    texts = [bare(text) for text in (answer, *task.answers)]
    if not _is_formula(texts[0]):
        return []
    is_number, is_sum = read_number(answer) is not None, _TO_BE_WORKED_OUT.search(texts[0])
    return texts[:1] + [
        text
        for text in filter(_is_formula, texts[1:])
        if not (read_number(text) is not None and (is_number or is_sum))
    ]


def _is_formula(text: str) -> bool:
    return 0 < len(text) <= _LONGEST and _NO_FORMULA.search(text) is None


class _Workers:
    """So many processes at most, each started when there is work that none is free for."""

    def __init__(self, seconds: float) -> None:
        self.parent = os.getpid()
        self._seconds = seconds
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(MOST_WORKERS):
            self._free.put(None)

    def compare(self, texts: Sequence[str]) -> bool:
        """Whether the first is equal to one of the others; False if that takes too long."""
        worker = self._free.get()
        try:
            for _ in range(2):
                if worker is None or not worker.alive:
                    worker = _Worker(self._seconds)
                is_equal = worker.ask(texts)
                if is_equal is not None:
                    return is_equal
            return False
        finally:
            self._free.put(worker)


class _Worker:
    """A process; it ends with this object, and with its parent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-P", _PROGRAM, str(os.getpid()), str(math.ceil(seconds))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        weakref.finalize(self, _end, self._process, os.getpid())
        if self._line(_SECONDS_TO_START) != b'"ready"\n':
            raise UserError("reward math_verify: its worker does not start; reinstall math-verify")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, texts: Sequence[str]) -> bool | None:
        """Whether the first is equal to one of the others; None if the process ended by itself.

        One that takes too long is killed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(texts).encode() + b"\n")
        line = self._line(self._seconds)
        if not line:
            _end(self._process, os.getpid())
        return None if line == b"" else line == b"true\n"

    def _line(self, seconds: float) -> bytes | None:
        """What it says; nothing if it has ended, and None if it says nothing in that time."""
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(self._process.stdout.fileno(), 1024)
                if not piece:
                    return b""
                line += piece
        return line


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    """Kill it and close its pipes, unless this is a fork of the process whose it is."""
    if os.getpid() == parent:
        process.kill()
        process.communicate()
