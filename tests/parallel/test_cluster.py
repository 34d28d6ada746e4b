"""Which processes there are: from flags, variables, Open MPI, Slurm; contradictions say what to do."""

import pytest

from mmjax.core.config import ConfigError
from mmjax.parallel import cluster
from mmjax.parallel.cluster import Cluster, detect

MINE = {"MMJAX_COORDINATOR": "10.0.0.1:8476", "MMJAX_PROCESSES": "4", "MMJAX_PROCESS": "3"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}


def test_nothing_says_anything_about_others():
    assert detect({}) is None
    assert detect({"JAX_PLATFORMS": "cpu", "HOSTNAME": "here", "JOB_COMPLETION_INDEX": "1"}) is None


def test_variables_and_flags_say_it_all():
    told = Cluster("flags", "10.0.0.1:8476", 4, 3)
    assert detect(MINE) == told
    assert detect({}, coordinator="10.0.0.1:8476", processes=4, process=3) == told
    assert detect(MINE, processes=4) == told
    mixed = {"MMJAX_COORDINATOR": "10.0.0.1:8476", "MMJAX_PROCESSES": ""}
    assert detect(mixed, processes=4, process=0) == told._replace(process=0)


@pytest.mark.parametrize("missing", [{}, {"MMJAX_PROCESS": "0"}, {"MMJAX_COORDINATOR": "a:1"}])
def test_one_process_joins_nobody(missing):
    assert detect({"MMJAX_PROCESSES": "1"} | missing) is None
    assert detect(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("environ", "flags", "words"),
    [
        ({"MMJAX_PROCESSES": "2"}, {}, ["MMJAX_PROCESSES=2", "MMJAX_PROCESS and MMJAX_COORDINATOR"]),
        ({"MMJAX_COORDINATOR": "a:1", "MMJAX_PROCESS": "0"}, {}, ["MMJAX_PROCESS=0", "set MMJAX_PROCESSES"]),
        (MINE | {"MMJAX_PROCESS": "4"}, {}, ["MMJAX_PROCESS=4", "from 0 to 3"]),
        (MINE | {"MMJAX_PROCESS": "-1"}, {}, ["MMJAX_PROCESS=-1", "from 0 to 3"]),
        (MINE | {"MMJAX_PROCESSES": "0"}, {}, ["MMJAX_PROCESSES=0", "at least 1"]),
        (MINE | {"MMJAX_PROCESSES": "two"}, {}, ["MMJAX_PROCESSES=two", "whole number"]),
        (MINE | {"MMJAX_COORDINATOR": "10.0.0.1"}, {}, ["MMJAX_COORDINATOR=10.0.0.1", "HOST:PORT"]),
        (MINE | {"MMJAX_COORDINATOR": ":80"}, {}, ["HOST:PORT"]),
        (MINE | {"MMJAX_COORDINATOR": "a:99999"}, {}, ["HOST:PORT"]),
        (MINE, {"processes": 3}, ["--processes=3", "MMJAX_PROCESSES is 4"]),
        (MINE, {"coordinator": "b:1"}, ["--coordinator=b:1", "MMJAX_COORDINATOR is 10.0.0.1:8476"]),
        (SLURM | {"MMJAX_PROCESSES": "4"}, {}, ["MMJAX_PROCESSES=4", "Slurm sets SLURM_NTASKS=16"]),
        (SLURM, {"process": 0}, ["--process=0", "Slurm sets SLURM_PROCID=9"]),
        ({k: v for k, v in MPI.items() if "orte" not in k}, {}, ["Open MPI", "MMJAX_COORDINATOR"]),
    ],
)  # fmt: skip
def test_contradictions_name_both_sides_and_the_way_out(environ, flags, words):
    with pytest.raises(ConfigError) as error:
        detect(environ, **flags)
    for word in words:
        assert word in str(error.value)


def test_slurm_gives_each_process_of_a_machine_one_device():
    found = detect(SLURM)
    assert found == Cluster("Slurm", None, 16, 9, None)  # None: jax takes the local id
    assert detect(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}) == found


@pytest.mark.parametrize(
    ("further", "ids"),
    [
        ({"CUDA_VISIBLE_DEVICES": "5"}, ()),  # --gpus-per-task: the others are hidden already
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, ()),  # one process, all devices of its machine
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x1),1,7"}, ()),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,8(x1),7"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)", "JAX_LOCAL_DEVICE_IDS": "2"}, None),  # jax reads that itself
    ],
)
def test_no_device_is_left_idle_or_looked_for_in_vain(further, ids):
    assert detect(SLURM | further).local_device_ids == ids


def test_a_single_task_that_starts_processes_itself_is_left_alone():
    assert detect(SLURM | MINE | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == detect(MINE)


def test_a_batch_script_is_no_task():
    script = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}
    assert detect(script) is None


def test_open_mpi():
    assert detect(MPI) == Cluster("Open MPI", None, 2, 1, ())
    assert detect(SLURM | MPI).name == "Open MPI"
    version_5 = {k: v for k, v in MPI.items() if "orte" not in k} | {"MMJAX_COORDINATOR": "a:8476"}
    assert detect(version_5) == Cluster("Open MPI", "a:8476", 2, 1, ())


def test_a_tpu_host_is_asked_about_its_pod(monkeypatch):
    monkeypatch.setattr(cluster, "count_tpu_chips", lambda environ: 4)
    assert detect({}) == Cluster("TPU pod")
    assert detect({"MMJAX_PROCESSES": "1"}) is None
    assert detect({"TPU_PROCESS_BOUNDS": "1,1,1"}) is None  # a process that has some chips of the machine alone
    assert detect(MINE).name == "flags"


def test_libtpu_without_a_tpu_is_no_pod(monkeypatch):
    monkeypatch.setattr(cluster, "count_tpu_chips", lambda environ: 0)
    assert detect({}) is None
