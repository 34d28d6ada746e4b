"""Which processes take part in a run, from flags, environment variables or a cluster's launcher.

==========================  ================================================  ======================================
launcher                    detected by                                       address of process 0
==========================  ================================================  ======================================
flags, any launcher         --coordinator --processes --process, or           the flag or variable
                            MMJAX_COORDINATOR MMJAX_PROCESSES MMJAX_PROCESS
launch/local.sh             the same variables, set by the script             127.0.0.1 and a free port
JobSet on GKE, SkyPilot     the same variables, set by their files            the first machine and a fixed port
Open MPI                    OMPI_COMM_WORLD_SIZE and _RANK                    JAX, up to Open MPI 4; MMJAX_COORDINATOR
Slurm                       SLURM_NTASKS, _PROCID, _STEP_NODELIST, …          JAX: the first node of the step
TPU pod, GCE or GKE         a TPU device file and libtpu                      JAX: TPU_WORKER_* or the metadata server
none of these               —                                                 one process
==========================  ================================================  ======================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.parallel.local_devices import count_tpu_chips

COORDINATOR, PROCESSES, PROCESS = "MMJAX_COORDINATOR", "MMJAX_PROCESSES", "MMJAX_PROCESS"


class Launcher(NamedTuple):
    """The environment variables of a launcher, which is detected if all of them are set."""

    name: str
    total: str
    rank: str
    also_required: tuple[str, ...]
    address: str  # the variable that JAX derives the address of process 0 from


# Open MPI comes first, because mpirun inside a Slurm job leaves the variables of the Slurm task in place.
LAUNCHERS = (
    Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", (), "OMPI_MCA_orte_hnp_uri"),
    Launcher(
        "Slurm",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        ("SLURM_JOB_ID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"),
        "SLURM_STEP_NODELIST",
    ),
)


class Cluster(NamedTuple):
    """Arguments of ``jax.distributed.initialize``; JAX detects those that are None."""

    name: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_device_ids: tuple[int, ...] | None = None  # empty: all visible devices


class Setting(NamedTuple):
    """The value of a flag or variable, and its origin as ``KEY=value`` for messages."""

    text: str
    value: Any


def detect(
    environ: Mapping[str, str] | None = None,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """Returns the cluster that flags and environment describe, or None for a single process.

    JAX's own detection (tried with 0.10.2) is used for addresses, but does not suffice. It reports none of the invalid
    or contradicting settings that raise here, gives each process one device (see ``_local_devices``), takes a single
    Slurm task for a cluster, and under Open MPI 5 inside Slurm reads the numbers of the Slurm job.

    Args:
      environ: environment variables; default ``os.environ``.
      coordinator: ``--coordinator``, HOST:PORT of process 0.
      processes: ``--processes``, the number of processes.
      process: ``--process``, the index of this process.

    Raises:
      ConfigError: values are invalid, contradict each other, or are incomplete.
    """
    environ = os.environ if environ is None else environ
    address = _setting("--coordinator", coordinator, COORDINATOR, environ)
    total = _as_int(_setting("--processes", processes, PROCESSES, environ))
    rank = _as_int(_setting("--process", process, PROCESS, environ))
    launcher = next((launcher for launcher in LAUNCHERS if _is_detected(launcher, environ)), None)
    if launcher is not None and total.value is not None and environ[launcher.total] == "1":
        launcher = None  # a single task that starts several processes itself, as launch/local.sh in a Slurm job
    if launcher is not None:
        total, rank = _from_launcher(total, rank, launcher, environ)
    by_variable = {PROCESSES: total, PROCESS: rank, COORDINATOR: address}
    present = [setting for setting in by_variable.values() if setting.value is not None]
    if not present:
        return Cluster("TPU pod") if _on_tpu_host(environ) else None
    if total.value is not None and total.value < 1:
        raise ConfigError(f"{total.text}: must be at least 1")
    if rank.value is not None and total.value is not None and not 0 <= rank.value < total.value:
        raise ConfigError(f"{rank.text}: must be from 0 to {total.value - 1}, because {total.text}")
    if address.value is not None:
        _check_address(address)
    if total.value == 1:
        return None
    missing = [name for name, setting in by_variable.items() if setting.value is None]
    if launcher is None:
        if missing:
            raise ConfigError(
                f"{present[0].text}: no launcher provides the rest; set {' and '.join(missing)} too, or unset it for a "
                "single process"
            )
        return Cluster("flags", address.value, total.value, rank.value)
    if address.value is None and launcher.address not in environ:
        raise ConfigError(
            f"{COORDINATOR}: {launcher.name} started {total.value} processes and does not provide the address of the "
            f"first one; set it to HOST:PORT of that one (mpirun -x {COORDINATOR}=HOST:PORT)"
        )
    return Cluster(launcher.name, address.value, total.value, rank.value, _local_devices(launcher, environ))


def _setting(flag: str, value: Any, name: str, environ: Mapping[str, str]) -> Setting:
    """Returns the value of the flag or of the variable ``name``, which must not differ."""
    variable = environ.get(name) or None
    if value is None:
        return Setting(f"{name}={variable}", variable)
    if variable is not None and variable != str(value):
        raise ConfigError(f"{flag}={value}: {name} is {variable}; give one of the two")
    return Setting(f"{flag}={value}", value)


def _as_int(setting: Setting) -> Setting:
    if setting.value is None:
        return setting
    try:
        return Setting(setting.text, int(setting.value))
    except ValueError:
        raise ConfigError(f"{setting.text}: is not a whole number") from None


def _is_detected(launcher: Launcher, environ: Mapping[str, str]) -> bool:
    return all(name in environ for name in (launcher.total, launcher.rank, *launcher.also_required))


def _from_launcher(
    total: Setting, rank: Setting, launcher: Launcher, environ: Mapping[str, str]
) -> tuple[Setting, Setting]:
    """Returns the launcher's total and rank; values from elsewhere must agree with them."""
    values = [_as_int(Setting(f"{name}={environ[name]}", environ[name])) for name in (launcher.total, launcher.rank)]
    for other, setting in zip((total, rank), values, strict=True):
        if other.value is not None and other.value != setting.value:
            raise ConfigError(f"{other.text}: {launcher.name} sets {setting.text}; unset the first, it is not needed")
    return values[0], values[1]


def _check_address(setting: Setting) -> None:
    host, colon, port = setting.value.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"{setting.text}: expected HOST:PORT of the first process, such as 10.0.0.1:8476")


def _on_tpu_host(environ: Mapping[str, str]) -> bool:
    """Whether all TPUs of this machine are the process's; JAX itself finds out whether they are part of a pod."""
    return environ.get("TPU_PROCESS_BOUNDS") != "1,1,1" and count_tpu_chips(environ) > 0


def _local_devices(launcher: Launcher, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns () for all visible devices, or None for JAX's default of one device per process.

    That default, the device numbered as the process on its machine, would leave seven of eight devices idle if a
    machine runs one process, and would find no device if the launcher hides those of other processes.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return () if len(visible) == 1 or _processes_per_host(launcher, environ) == 1 else None


def _processes_per_host(launcher: Launcher, environ: Mapping[str, str]) -> int | None:
    """Returns the launcher's number of processes on this machine; Slurm writes ``4(x2),3`` for 4, 4 and 3."""
    if launcher.name == "Open MPI":
        return int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"]) if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ else None
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for tasks, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(repeats or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else None
