"""Freed pages stay with the process: touching a large block again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from mmjax.parallel.host_memory import arena_advice

CODE = """
import resource, sys, threading
from mmjax.parallel.host_memory import keep_freed_memory
mode, where = sys.argv[1:]
assert mode == "plain" or keep_freed_memory()
import numpy as np

def touch():
    np.ones(80 * 2**20, np.uint8)

def measure():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if where == "thread":
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
else:
    measure()
"""


def faults(mode: str, where: str) -> int:
    words = [sys.executable, "-c", CODE, mode, where]
    environment = os.environ | ({"MALLOC_ARENA_MAX": "1"} if mode == "shared" else {})
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")


@glibc_only
@pytest.mark.parametrize(("mode", "where"), [("kept", "main"), ("shared", "thread")])
def test_a_large_block_is_reused(mode, where):
    assert faults(mode, where) < 50 < faults("plain", where)


@glibc_only
def test_the_advice_is_for_steps_that_no_arena_of_a_thread_holds(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert "317 MiB" in arena_advice(317 * 2**20) and "MALLOC_ARENA_MAX=1" in arena_advice(317 * 2**20)
    assert faults("kept", "thread") > 50  # of a block of 80 MiB: the advice is needed
    assert arena_advice(64 * 2**20) == ""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert arena_advice(317 * 2**20) == ""


def test_other_c_libraries_get_no_advice(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert arena_advice(317 * 2**20) == ""
