"""Small disks that fill up or take nothing."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, *, size, read_only=False):
    """``folder`` as a disk of its own; skips the test where this machine lets nobody mount one."""
    folder.mkdir(exist_ok=True)
    options = f"size={size}" + (",ro" if read_only else "")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("a disk that fills up must be mounted, which takes root and is not allowed everywhere")
    try:
        yield folder
    finally:
        subprocess.check_call(["umount", folder])
