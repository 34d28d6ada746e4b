"""How much memory this machine has, and how the C library keeps it between steps where the CPU is the device."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_GROWTH = 64 * 2**20
_LARGEST_IN_ARENA = 64 * 2**20  # of an arena that is not the main one
_ARENAS = "MALLOC_ARENA_MAX"


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


def arena_advice(temporaries: int) -> str:
    """What to set so that the C library keeps a step's temporaries, of so many bytes; empty where nothing helps.

    glibc maps a block of more than 64 MiB whatever it was told, if the thread that asks has an arena of its own, and
    XLA's CPU client asks from such threads. Threads that share one arena wait for each other, which makes small steps
    slower, and arenas cannot be taken away once the step is compiled and its size is known. So this is left to the
    user, by the variable that glibc reads when a process starts.
    """
    if temporaries <= _LARGEST_IN_ARENA or os.environ.get(_ARENAS) or platform.libc_ver()[0] != "glibc":
        return ""
    return (
        f"a step has {temporaries / 2**20:,.0f} MiB of temporaries: {_ARENAS}=1 in the environment keeps them from "
        "step to step, which may be faster"
    )
