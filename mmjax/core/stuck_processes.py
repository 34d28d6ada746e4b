"""Which processes of this machine are stuck, as the kernel tells it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

_STUCK = {
    "T": "is stopped by a signal; `kill -CONT {pid}` lets it go on",
    "t": "is stopped by a debugger",
    "D": "waits for a disk or a file server",
    "Z": "has ended",
    "X": "has ended",
}


def describe_stuck(pid: int) -> str:
    """Why the process cannot do anything, such as ``is stopped by a signal; …``; empty if it can, or is not known."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]  # after the name, which may hold anything
    except OSError:  # no such process, or not Linux
        return ""
    return _STUCK.get(state, "").format(pid=pid)


def stuck_workers() -> list[str]:
    """Describes each worker process of this one that is stuck; those that merely wait are left out."""
    pids = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    reasons = ((pid, describe_stuck(pid)) for pid in pids)
    return [f"worker process {pid} {reason}" for pid, reason in reasons if reason]
