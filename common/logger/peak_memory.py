"""The most memory that was held while something ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from common.freed_memory import kept_bytes

# Between two looks a pass over 135 M weights grew by 0.4 % at most.
SECONDS_BETWEEN_LOOKS = 0.01

# A look goes through what is free, in a millisecond if that is much: it takes this share of a core.
MOST_LOOKING = 0.02


@dataclass
class Peak:
    """Known when what it was watched over is done."""

    num_bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most that a GPU's tensors take in this block; on any other device, that the process does,
    without what it keeps for later.

    The operating system knows that of the whole life of a process alone, so a thread looks.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.num_bytes = torch.cuda.max_memory_allocated(device)
        return
    ended = threading.Event()

    def look() -> None:
        is_last, wait = False, SECONDS_BETWEEN_LOOKS
        while not is_last:
            is_last = ended.wait(wait)
            # Of this thread: that it waited for a core makes a look no dearer.
            started = time.thread_time()
            peak.num_bytes = max(peak.num_bytes, held_bytes())
            took = time.thread_time() - started
            wait = max(SECONDS_BETWEEN_LOOKS, took / MOST_LOOKING)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def held_bytes() -> int:
    """What the process has in memory and in use."""
    return psutil.Process().memory_info().rss - kept_bytes()
