"""How much memory this machine has, and how the C library keeps it between steps where the CPU is the device."""

import ctypes
import importlib.util
import os
from importlib import metadata

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
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
    return _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _GROWTH})


def share_one_arena() -> bool:
    """Lets all threads allocate from the arena whose pages ``keep_freed_memory`` keeps; for a process without JAX yet.

    glibc maps a block of more than 64 MiB whatever it was told, if the thread that asks has an arena of its own, and
    XLA's CPU client asks from such threads. Arenas that threads have already are not taken away.

    Returns:
        False where JAX may find an accelerator, whose host threads are better off apart, and without glibc.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms != "cpu" and (platforms or _has_accelerator_plugin()):
        return False
    return _mallopt({_M_ARENA_MAX: 1})


def _has_accelerator_plugin() -> bool:
    modules = (importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return any(modules) or bool(metadata.entry_points(group="jax_plugins"))


def _mallopt(options: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(option, value) for option, value in options.items()]
    return all(taken)
