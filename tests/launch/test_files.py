"""The files of ``launch/``: what a linter and the structures they are read by say of them."""

import copy
import functools
import itertools
import operator
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from support.launch_schemas import JOBSET, SKYPILOT, errors

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "launch").iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]


def read(name):
    return yaml.safe_load((ROOT / "launch" / name).read_text())


def shellcheck(path):
    command = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert command is not None, "shellcheck is part of the test extra: pip install -e '.[test]'"
    found = subprocess.run([command, "--shell=bash", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_they_are_all_there():
    assert {path.name for path in FILES} == {
        "local.sh", "slurm.sbatch", "tpu_vm.sh", "gke_jobset.yaml", "skypilot.yaml", "Dockerfile",
        "accelerator_report.sh",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_starts_with_what_it_is_how_to_start_it_and_what_to_edit(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#!")]
    block = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert block.startswith("# ") and "What to edit" in block
    assert re.search(rf"^#   \S*.*(launch/)?{re.escape(path.name)}", block, re.MULTILINE), "no command to copy"
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    assert path.stat().st_mode & 0o111 and "\nset -euo pipefail\n" in path.read_text()
    shellcheck(path)


@pytest.mark.parametrize("block", ["setup", "run"])
def test_skypilots_commands_pass_shellcheck(block, tmp_path):
    script = tmp_path / block
    script.write_text("#!/usr/bin/env bash\n" + read("skypilot.yaml")[block])
    shellcheck(script)


def test_the_jobset_conforms_to_its_schema_and_names_only_what_it_has():
    jobset = read("gke_jobset.yaml")
    assert errors(jobset, JOBSET) == []
    (job,) = jobset["spec"]["replicatedJobs"]
    assert jobset["spec"]["coordinator"]["replicatedJob"] == job["name"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def changed(document, path, value):
    """The document with the value at a dotted path set, or removed where it is None."""
    document = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = functools.reduce(operator.getitem, parents, document)
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


POD = "spec.replicatedJobs.0.template.spec.template.spec"


@pytest.mark.parametrize(
    ("name", "schema", "path", "value", "message"),
    [
        ("gke_jobset.yaml", JOBSET, "apiVersion", "jobset.x-k8s.io/v1", "none of"),
        ("gke_jobset.yaml", JOBSET, "metadata.name", "My_Run", "not of the form"),
        ("gke_jobset.yaml", JOBSET, "metadata.name", None, ".metadata.name is missing"),
        ("gke_jobset.yaml", JOBSET, "spec.failurePolicy.rules.0.action", "Fail", "none of"),
        ("gke_jobset.yaml", JOBSET, "spec.replicatedJobs.0.template.spec.completion", 2, "completion: no such field"),
        ("gke_jobset.yaml", JOBSET, f"{POD}.containers.0.env.2.value", 2, "2 is no str"),
        ("gke_jobset.yaml", JOBSET, f"{POD}.containers.0.env.0.valueFrom.fieldRef.fieldPath", "labels", "of the form"),
        ("gke_jobset.yaml", JOBSET, f"{POD}.containers.0.ports", {"containerPort": 1}, "is no list"),
        ("gke_jobset.yaml", JOBSET, f"{POD}.restartPolicy", "Always", "none of"),
        ("gke_jobset.yaml", JOBSET, f"{POD}.hostNetwork", "yes", "is no bool"),
        ("skypilot.yaml", SKYPILOT, "num_nodes", True, "is no int"),
        ("skypilot.yaml", SKYPILOT, "resources.spot", True, "spot: no such field"),
        ("skypilot.yaml", SKYPILOT, "resources.job_recovery.strategy", "EAGER", "none of"),
        ("skypilot.yaml", SKYPILOT, "file_mounts.runs", "s3://x", "runs: no such field"),
        ("skypilot.yaml", SKYPILOT, "envs.MY-RUN", "x", "MY-RUN: no such field"),
    ],
)
def test_the_schemas_refuse_what_the_servers_would(name, schema, path, value, message):
    (error, *_) = errors(changed(read(name), path, value), schema)
    assert message in error


def test_the_jobset_tells_each_pod_which_process_it_is():
    job = read("gke_jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    variables = {entry["name"]: entry for entry in container["env"]}
    names = list(variables)
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert variables["MMJAX_PROCESSES"]["value"] == str(job["completions"])  # a string: YAML would make it a number
    assert all(isinstance(entry.get("value", ""), str) for entry in variables.values())
    index = variables["MMJAX_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    # A variable can refer only to those before it.
    assert names.index("COORDINATOR_HOST") < names.index("MMJAX_COORDINATOR")
    host, port = variables["MMJAX_COORDINATOR"]["value"].split(":")
    assert host == "$(COORDINATOR_HOST)" and int(port) == container["ports"][0]["containerPort"]
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"] and rule["values"] == [2]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy allows no other


def test_skypilots_file_conforms_to_its_schema_and_restarts_what_was_stopped():
    task = read("skypilot.yaml")
    assert errors(task, SKYPILOT) == []
    status = re.search(r"MMJAX_STOPPED_STATUS=(\d+)", task["run"])[1]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [int(status)]


def test_skypilots_run_tells_each_node_which_process_it_is(tmp_path):
    stand_in = tmp_path / "mmjax"
    stand_in.write_text('#!/usr/bin/env bash\necho "$MMJAX_COORDINATOR|$MMJAX_PROCESSES|$MMJAX_PROCESS|$*"\n')
    stand_in.chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.9", "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2", "ARGS": "--config=a.py --config.steps=5", "RUN": "first",
    }  # fmt: skip
    run = ["bash", "-c", read("skypilot.yaml")["run"]]
    said = subprocess.run(run, env=given, capture_output=True, text=True, check=True).stdout
    assert said == "10.0.0.4:8476|2|1|train --config=a.py --config.steps=5 --workdir=/runs/first\n"
    empty = subprocess.run(run, env=given | {"ARGS": ""}, capture_output=True, text=True)
    assert empty.returncode == 2 and "ARGS is empty" in empty.stderr


def test_the_image_installs_extras_that_there_are():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    devices = re.search(r'case "\$DEVICE" in ([a-z|]+)\)', text)[1].split("|")
    assert set(devices) - {"cpu"} <= set(extras) and re.search(r"^ARG DEVICE=(\w+)$", text, re.MULTILINE)[1] in devices
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert text.index("FROM ") < text.index("ARG DEVICE")  # one before it would be empty after it
