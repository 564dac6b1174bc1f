"""What the machine is, and what it can do: products of matrices, and moving memory."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from common.repository import REPOSITORY

LARGE_PRODUCT = (2048, 2048, 2048)
LARGE_VECTOR = 2**25
SECONDS_PER_RATE = 0.5


@dataclass(frozen=True)
class Machine:
    """Rates that work is compared with, in float32."""

    flops: float
    """Of a large product, floating-point operations per second."""
    bandwidth: float
    """Of a triad over vectors that no cache holds, bytes per second."""


def measure_machine() -> Machine:
    return Machine(product_rate(*LARGE_PRODUCT), triad_rate(LARGE_VECTOR))


@torch.no_grad()
def product_rate(rows: int, inputs: int, outputs: int) -> float:
    """Floating-point operations per second of `rows` vectors through a linear map."""
    vectors, weights = torch.rand(rows, inputs), torch.rand(outputs, inputs)
    result = torch.empty(rows, outputs)
    seconds = _shortest(lambda: torch.mm(vectors, weights.T, out=result))
    return 2 * rows * inputs * outputs / seconds


@torch.no_grad()
def triad_rate(length: int) -> float:
    """Bytes per second of a = b + 3 c: two read and one written, as STREAM counts them."""
    first, second, result = (torch.ones(length) for _ in range(3))
    seconds = _shortest(lambda: torch.add(first, second, alpha=3.0, out=result))
    return 3 * result.nbytes / seconds


def _shortest(work: Callable[[], object]) -> float:
    """The shortest of several repetitions, the first left out; other work only adds to it."""
    work()
    shortest, ends = float("inf"), time.perf_counter() + SECONDS_PER_RATE
    while (started := time.perf_counter()) < ends:
        work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def describe_machine() -> str:
    """Processor, cores, threads, versions and commit, in a line."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, commit {_commit()}"
    )


def processor() -> str:
    """Its name, and what it understands."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(*names, platform.processor(), 'unknown')[0]} ({platform.machine()})"


def _commit() -> str:
    """Of this repository, marked where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
