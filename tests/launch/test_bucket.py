"""Checkpoints in a bucket, over a stand-in for one: machines with no folder in common, and one that lost its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import buckets, command

pytestmark = pytest.mark.slow
pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'mmjax[gcs]'")

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local.sh"
MMJAX = """#!/usr/bin/env bash
# Each process has a folder of its own, as on a machine of its own.
exec {python} -m mmjax "${{@/--workdir=/--workdir={folder}/machine$MMJAX_PROCESS/}}"
"""


def test_machines_with_no_common_folder_train_and_a_new_one_goes_on(tmp_path):
    config, launcher = command.config_file(tmp_path), tmp_path / "mmjax"
    launcher.write_text(MMJAX.format(python=sys.executable, folder=tmp_path))
    launcher.chmod(0o755)

    def both(*words, status=0):
        run = [SCRIPT, "-n", "2", "-d", "cpu", "--", *words]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def train(*words, **options):
        return both(
            "train", f"--config={config}", "--workdir=run", "--config.checkpoint.directory=gs://bucket/runs/one",
            "--config.checkpoint.keep=1", *words, **options,
        )  # fmt: skip

    def inspect(folder):
        run = [sys.executable, "-m", "mmjax", "inspect", f"--workdir={folder}", "--json"]
        return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)

    with buckets.bucket() as (where, objects):
        environment = command.environment(
            **where, MMJAX=str(launcher), JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled")
        )
        train()
        steps = {name.split("/")[2] for name in objects} - {"config.json"}
        assert steps == {"6"} and "runs/one/config.json" in objects
        folders = [tmp_path / f"machine{i}" / "run" for i in (0, 1)]
        names = [{path.name for path in folder.iterdir()} for folder in folders]
        assert "report.html" in names[0] and names[1] == {"config.json", "tokenizer"}
        last = json.loads((folders[0] / "metrics.jsonl").read_text().splitlines()[-1])

        shutil.rmtree(folders[0])
        said = train()
        assert said.count("going on from the checkpoint of step 6") == 1 and (folders[0] / "report.html").exists()
        again = json.loads((folders[0] / "metrics.jsonl").read_text().splitlines()[-1])
        assert again["test/rsum"] == last["test/rsum"]
        said = both("eval", "--workdir=run", "--json")
        (line,) = [line for line in said.splitlines() if "test/rsum" in line]
        assert json.loads(line.removeprefix("[0] "))["test/rsum"] == pytest.approx(last["test/rsum"], abs=1e-6)

        shutil.rmtree(folders[0])
        said = train("--config.seed=1", status=2)
        assert "holds checkpoints of another experiment (seed: 0 there, 1 now)" in said
        assert json.loads(inspect(folders[1]).stdout)["steps"] == [6]
    gone = inspect(folders[1])
    assert gone.returncode == 2 and len(gone.stderr.splitlines()) == 1
    assert "checkpoint.directory=gs://bucket/runs/one: cannot be reached" in gone.stderr
