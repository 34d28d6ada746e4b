"""The command line in a process of its own, on a config file of the tiny experiment."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def config_file(folder: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text("from support import tiny\n\n\ndef get_config(arg=''):\n    return tiny.sections()\n")
    return path


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with one simulated device and the tests' modules importable."""
    return os.environ | {
        "PYTHONPATH": str(TESTS),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1",
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


def run(*arguments: str, **extra: str) -> str:
    """Its output; fails the test where the exit status is not 0."""
    process = start(*arguments, **extra)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
