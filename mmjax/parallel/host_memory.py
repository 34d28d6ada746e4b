"""How much memory this machine has, and how the C library keeps it between steps where the CPU is the device."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_GROWTH = 64 * 2**20


def memory_bytes() -> int:
    """All of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> bool:
    """Makes ``free`` keep pages for the next ``malloc``; False where the C library is not glibc.

    XLA's CPU client allocates a step's temporaries at each call. By default glibc maps such large blocks and unmaps
    them when they are freed, so the kernel clears every page of them in every step: a quarter of the quickstart's
    processor time. The price is that the process does not shrink again.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, _GROWTH)])
