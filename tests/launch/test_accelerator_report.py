"""``launch/accelerator_report.sh`` with a stand-in for mmjax: what it writes, and what it survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "accelerator_report.sh"
DEVICE = {
    "device": "NVIDIA H100 80GB HBM3", "devices": 1, "jax": "0.11.2", "cores": 16, "chip": "h100",
    "flops_per_second": {"bfloat16": 700e12, "float32": 400e12}, "bytes_per_second": 3e12,
}  # fmt: skip
ROW = {
    "seconds": 0.15, "examples_per_second": 3413.3, "mfu": 0.4, "flops_per_second_per_device": 350e12,
    "peak_bytes": 25 * 2**30, "modeled_seconds": 0.12, "ratio": 1.25,
    "kernels": [{"kind": "product", "executions": 600}, {"kind": "copy", "executions": 40}],
}  # fmt: skip
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  "- "*) exec "$REAL" "$@" ;;
  "-c import open_clip") exit 1 ;;
  *"bench device"*) echo '{device}' ;;
  *"bench step"*ViT-L-14*) printf 'loading\\nRESOURCE_EXHAUSTED: out of memory\\n\\n' >&2; exit 1 ;;
  *"bench step"*ViT-B-32*) sleep 60 ;;
  *"bench step"*) echo "memory fraction $XLA_CLIENT_MEM_FRACTION" >&2; echo '[{row}]' ;;
  *"data bench"*) echo '{loader}' ;;
  *"mmjax compile"*--topology=h100:1*) echo '{plan}' ;;
esac
"""


@pytest.fixture
def report(tmp_path):
    stand_in = tmp_path / "python"
    text = STAND_IN
    for name, value in {
        "device": DEVICE,
        "row": ROW,
        "loader": {"cores": 16, "examples_per_second": {"whole batches": 2000.0}},
        "plan": {"topology": "h100:1", "needed_bytes": 24 * 2**30, "estimate": {"step_seconds": 0.114}},
    }.items():
        text = text.replace(f"{{{name}}}", json.dumps(value, indent=2))
    stand_in.write_text(text)
    stand_in.chmod(0o755)

    def run(*flags):
        environment = os.environ | {"PYTHON": str(stand_in), "REAL": sys.executable, "PART_SECONDS": "1"}
        done = subprocess.run(
            [SCRIPT, "-o", tmp_path / "out", *flags], env=environment, capture_output=True, text=True, timeout=60
        )
        files = [tmp_path / "out" / name for name in ("report.json", "report.md")]
        return done, *(file.read_text() if file.exists() else "" for file in files)

    return run


def test_a_part_that_fails_or_has_no_time_is_named_and_the_others_go_on(report):
    done, *_ = report("-m", "0", "-p", "step")
    assert done.returncode == 0 and done.stdout.count("left out: no time") == 3

    done, text, table = report("-p", "device peer step loader plan")
    parts = json.loads(text)["parts"]
    assert done.returncode == 1
    assert parts["step-ViT-L-14"]["status"] == "failed: RESOURCE_EXHAUSTED: out of memory"
    assert parts["step-ViT-B-32"] | {"line": "", "seconds": 1} == {
        "status": "failed: took more than PART_SECONDS=1", "result": None, "line": "", "seconds": 1,
    }  # fmt: skip
    assert parts["peer-open_clip-ViT-B-16"]["status"] == "left out: open_clip is not installed"
    assert parts["step-ViT-B-16"]["status"] == "ok" and parts["step-ViT-B-16"]["result"] == [ROW]
    assert parts["plan"]["result"]["needed_bytes"] == 24 * 2**30 and json.loads(text)["machine"] == DEVICE
    assert "| step-ViT-B-16 | 150.0 | 3413 | 40.0% | 50.0% | 25.0 | 640 | 120.0 | 0.80 | 1.250 |" in table
    for line in ("* step-ViT-L-14: failed: RESOURCE", "modelled 114.0 ms", "whole batches 2000/s", "700.0 TFLOP/s"):
        assert line in table
        assert line.removeprefix("* ") in done.stdout  # it prints as it goes
