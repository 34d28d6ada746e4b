"""A Slurm cluster of this one machine, in a folder of its own."""

import contextlib
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from support.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def missing():
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if absent:
        return f"{', '.join(absent)}: not installed (Debian: slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs only as root"


@contextlib.contextmanager
def cluster(folder: Path, *, cpus: int = 2):
    """Environment variables with which sbatch and the others find the cluster, while it runs."""
    folder.chmod(0o755)
    names = ("munge", "state", "spool")
    munge, state, spool = ((folder / name) for name in names)
    for path in (munge, state, spool):
        path.mkdir(mode=0o755)
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    node = platform.node().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(f"""
ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CryptoType=crypto/munge
StateSaveLocation={state}
SlurmdSpoolDir={spool}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobRequeue=1
MinJobAge=300
KillWait=5
ReturnToService=2
MpiDefault=none
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={node} Default=YES MaxTime=INFINITE State=UP
""")
    given = os.environ | {"SLURM_CONF": str(conf), "PATH": SEARCHED}
    daemons = []

    def daemon(*words):
        log = (folder / f"{words[0]}.out").open("w")
        daemons.append(subprocess.Popen(words, env=given, stdout=log, stderr=log))
        log.close()

    try:
        daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
               f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        _until(lambda: (munge / "socket").exists(), folder)
        daemon("slurmctld", "-D", "-c", "-f", str(conf))
        daemon("slurmd", "-D", "-c", "-f", str(conf))
        _until(lambda: "idle" in _said(given, "sinfo", "--noheader", "--format=%T"), folder)
        yield given
    finally:
        for process in reversed(daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _said(given, *words):
    return subprocess.run(words, env=given, capture_output=True, text=True).stdout


def _until(true, folder, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.*"))
            raise AssertionError(f"Slurm did not start:\n{logs}")
        time.sleep(0.2)
