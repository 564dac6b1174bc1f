"""A process that compares mathematical answers, one request a line, for `math_verify.py`.

It is run as a file and imports nothing of ours, so that it starts quickly. While Python computes in
C nothing else of Python runs, so the kernel ends such a comparison: when it takes too long, and
when the process that asked is gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

MOST_MEMORY = 4 * 2**30


def main(parent: int, seconds: int) -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _limit(resource.RLIMIT_AS, MOST_MEMORY)
    fcntl.fcntl(sys.stdin, fcntl.F_SETOWN, os.getpid())
    replies.write('"ready"\n')
    replies.flush()
    for line in sys.stdin:
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + seconds + 1)
        _end_when_input_ends(True)
        answer, *oracles = map(_expressions, json.loads(line))
        is_equal = any(oracle and answer and _are_equal(oracle, answer) for oracle in oracles)
        _end_when_input_ends(False)
        replies.write(json.dumps(is_equal) + "\n")
        replies.flush()


def _expressions(text: str) -> list[Any]:
    target = [LatexExtractionConfig()]
    return parse(f"${text}$", target, fallback_mode="no_fallback", parsing_timeout=0)


def _are_equal(oracle: list[Any], answer: list[Any]) -> bool:
    return verify(oracle, answer, timeout_seconds=0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    # Not every system has every limit.
    with suppress(ValueError, OSError):
        resource.setrlimit(
            kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )


def _end_when_input_ends(wanted: bool) -> None:
    """Whether the kernel sends SIGIO, which ends the process, when something comes of the input.

    Nobody writes there during a comparison, so it can only be that the other end is closed.
    """
    flags = fcntl.fcntl(sys.stdin, fcntl.F_GETFL)
    flags = flags | os.O_ASYNC if wanted else flags & ~os.O_ASYNC
    fcntl.fcntl(sys.stdin, fcntl.F_SETFL, flags)


def _end_with(parent: int) -> None:
    """A fork of the parent may hold the other end of the input open."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
