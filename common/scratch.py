"""Where weights pass from one process to another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# Where memory is files, so that they never meet a disk.
_MEMORY = Path("/dev/shm")
_PREFIX = "re-grpo-"


@contextmanager
def scratch_directory(root: Path | None = None) -> Iterator[Path]:
    """A directory of this process under `root`, else in memory if there is such a place.

    Those of processes that are no more are removed.
    """
    if root is None:
        root = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
