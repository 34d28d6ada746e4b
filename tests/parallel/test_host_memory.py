"""Freed pages stay with the process: touching a large block again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from mmjax.parallel import host_memory

CODE = """
import resource, sys, threading
from mmjax.parallel.host_memory import keep_freed_memory, share_one_arena
mode, where = sys.argv[1:]
assert mode != "shared" or share_one_arena()
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
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(("mode", "where"), [("kept", "main"), ("shared", "thread")])
def test_a_large_block_is_reused(mode, where):
    assert faults(mode, where) < 50 < faults("plain", where)


@pytest.mark.parametrize(("platforms", "plugin"), [("cuda", False), ("tpu,cpu", False), (None, True)])
def test_where_there_may_be_an_accelerator_threads_keep_their_arenas(monkeypatch, platforms, plugin):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host_memory, "_has_accelerator_plugin", lambda: plugin)
    monkeypatch.setattr(host_memory, "_mallopt", lambda options: pytest.fail(f"set {options}"))
    assert not host_memory.share_one_arena()
