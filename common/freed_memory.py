"""What glibc does with memory that was freed."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def keep_freed_memory() -> None:
    """Let glibc hold what is freed for what comes next.

    Given back to the operating system, as it is without this, memory comes again page by page and
    has to be cleared: that was an eighth of a step of 135 M weights on a CPU.
    """
    if _LIBC is not None and hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_MMAP_MAX, 0)
        # As an unsigned number it is the highest of all.
        _LIBC.mallopt(_TRIM_THRESHOLD, -1)


def kept_bytes() -> int:
    """How much of the process's memory is free, and kept; 0 where nobody can say."""
    if _LIBC is None or not hasattr(_LIBC, "mallinfo2"):
        return 0
    mallinfo = _LIBC.mallinfo2
    mallinfo.restype = _Mallinfo2
    return mallinfo().fordblks
