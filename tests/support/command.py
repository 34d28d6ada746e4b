"""The command line in a process of its own, on a config file of the tiny experiment."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def config_file(folder: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text("from support import tiny\n\n\ndef get_config(arg=''):\n    return tiny.sections()\n")
    return path


def compiler_flags(devices: int = 1) -> str:
    """This process's ``XLA_FLAGS`` with another number of simulated devices."""
    return re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with one simulated device and the tests' modules importable."""
    return os.environ | {
        "PYTHONPATH": str(TESTS),
        "XLA_FLAGS": compiler_flags(),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def start(*arguments: str, **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax", *arguments],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, timeout: float = 300, **extra: str) -> str:
    """Its output; fails the test where the exit status is not 0, or where it takes longer than ``timeout`` seconds."""
    process = start(*arguments, **extra)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output
