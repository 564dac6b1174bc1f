"""Where weights pass from one process to another."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError

# Where memory is files, so that they never meet a disk.
_MEMORY = Path("/dev/shm")
_PREFIX = "re-grpo-"
# In each directory: its process holds a lock on it.
_OWNER = "owner"
# Seconds in which a process has locked what it has made.
_NEW = 60.0


@contextmanager
def scratch_directory(root: Path | None, num_bytes: int) -> Iterator[Path]:
    """A directory of this process under `root`, else in memory if so much has room there.

    Those of processes that are no more are removed.
    """
    if root is None:
        has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > num_bytes
        root = _MEMORY if has_room else Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with passing_weights(root):
        own = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    if root not in (_MEMORY, Path(tempfile.gettempdir())):
        # Who names a place may have a server of another user's look there.
        own.chmod(0o755)
    with (own / _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _is_abandoned(directory: Path) -> bool:
    try:
        if not (directory / _OWNER).exists():
            return time.time() - directory.stat().st_mtime > _NEW
        with (directory / _OWNER).open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def passing_weights(directory: Path) -> Iterator[None]:
    """Say in one line what keeps weights from being written there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{directory}: cannot hold weights for what samples ({why}); name another place by "
            "--engine-directory"
        ) from None
