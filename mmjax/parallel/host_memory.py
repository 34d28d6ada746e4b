"""How the C library keeps memory between steps, where the CPU is the device."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_GROWTH = 64 * 2**20


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
