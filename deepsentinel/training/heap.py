"""The process's allocator, for programs whose one purpose is training: command line and demo."""

from __future__ import annotations

import ctypes
import sys


def keep_heap() -> None:
    """Make glibc keep freed memory for good: every step allocates the same large blocks again.

    On a virtual machine with two cores a fresh page costs more than the arithmetic on it: a step of
    the nano model took 0.60-0.71 s with the defaults and 0.52-0.55 s so, and no page fault. It is
    a setting of the whole process and cannot be taken back, so `train` leaves it to its caller: a
    notebook would never again return what its other arrays held.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(-4, 0)  # M_MMAP_MAX: never a mapping of its own
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never back to the system
