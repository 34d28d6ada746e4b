"""Freed pages stay with the process: touching a large block again costs no page faults."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from mmjax.parallel.host_memory import keep_freed_memory
    if not keep_freed_memory():
        sys.exit(77)

def touch():
    np.ones(64 * 2**20, np.uint8)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_large_block_is_reused():
    assert faults("kept") < 50 < faults("plain")
