"""The files of ``launch/``: what a linter and the structures they are read by say of them."""

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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


# The fields that JobSet v1alpha2, batch/v1 and core/v1 have at each place, of those that may stand in such a file.
JOBSET = {"apiVersion": str, "kind": str, "metadata": dict, "spec": dict}
JOBSET_SPEC = {
    "replicatedJobs": list, "network": dict, "successPolicy": dict, "failurePolicy": dict, "startupPolicy": dict,
    "suspend": bool, "coordinator": dict, "managedBy": str, "ttlSecondsAfterFinished": int,
}  # fmt: skip
REPLICATED_JOB = {"name": str, "template": dict, "replicas": int, "dependsOn": list, "groupName": str}
JOB_SPEC = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int, "podFailurePolicy": dict,
    "activeDeadlineSeconds": int, "template": dict,
}  # fmt: skip
POD_SPEC = {
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "nodeSelector": dict, "tolerations": list,
    "containers": list, "volumes": list, "serviceAccountName": str, "hostNetwork": bool, "subdomain": str,
}  # fmt: skip
CONTAINER = {
    "name": str, "image": str, "command": list, "args": list, "env": list, "ports": list, "resources": dict,
    "volumeMounts": list, "securityContext": dict,
}  # fmt: skip


def conforms(value, fields, *, required=()):
    assert isinstance(value, dict)
    for key, inner in value.items():
        assert key in fields, f"{key}: no such field"
        assert isinstance(inner, fields[key]), f"{key}: {inner!r} is no {fields[key].__name__}"
    assert not set(required) - set(value)


def test_the_jobset_has_the_fields_of_its_apis():
    jobset = read("gke_jobset.yaml")
    conforms(jobset, JOBSET, required=JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    conforms(spec, JOBSET_SPEC, required=("replicatedJobs", "coordinator", "failurePolicy"))
    conforms(spec["coordinator"], {"replicatedJob": str, "jobIndex": int, "podIndex": int})
    conforms(spec["failurePolicy"], {"maxRestarts": int, "restartStrategy": str, "rules": list})
    for rule in spec["failurePolicy"]["rules"]:
        conforms(rule, {"name": str, "action": str, "targetReplicatedJobs": list, "onJobFailureReasons": list})
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        known = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"}
        assert set(rule["onJobFailureReasons"]) <= known | {"PodFailurePolicy"}
    (job,) = spec["replicatedJobs"]
    conforms(job, REPLICATED_JOB, required=("name", "template"))
    assert spec["coordinator"]["replicatedJob"] == job["name"]
    conforms(job["template"]["spec"], JOB_SPEC, required=("parallelism", "completions", "template"))
    pod = job["template"]["spec"]["template"]["spec"]
    conforms(pod, POD_SPEC, required=("restartPolicy", "containers"))
    (container,) = pod["containers"]
    conforms(container, CONTAINER, required=("name", "image", "args", "env"))
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


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


def test_skypilots_file_has_its_fields_and_joins_the_nodes():
    task = read("skypilot.yaml")
    conforms(
        task,
        {
            "name": str, "workdir": str, "num_nodes": int, "resources": dict, "envs": dict, "file_mounts": dict,
            "setup": str, "run": str,
        },
    )  # fmt: skip
    conforms(task["resources"], {"accelerators": str, "use_spot": bool, "job_recovery": dict})
    recovery = task["resources"]["job_recovery"]
    conforms(recovery, {"strategy": str, "max_restarts_on_errors": int, "recover_on_exit_codes": list})
    assert recovery["strategy"] in ("FAILOVER", "EAGER_NEXT_REGION")
    status = re.search(r"MMJAX_STOPPED_STATUS=(\d+)", task["run"])[1]
    assert recovery["recover_on_exit_codes"] == [int(status)]


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
