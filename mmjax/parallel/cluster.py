"""Which processes there are, as flags or the environment that started this one say."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError

COORDINATOR, PROCESSES, PROCESS = "MMJAX_COORDINATOR", "MMJAX_PROCESSES", "MMJAX_PROCESS"


class Launcher(NamedTuple):
    """How a launcher tells a process which one it is; it started us if all its variables are set."""

    name: str
    total: str
    rank: str
    further: tuple[str, ...]
    address: str  # what jax finds the first process's address in


# In this order, because mpirun inside a Slurm job leaves the variables of Slurm's own tasks in place.
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
"""Launchers with variables of their own.

==========================  ================================================  ======================================
started by                  seen by                                           address of the first process
==========================  ================================================  ======================================
flags, any launcher         --coordinator --processes --process, or           the flag or variable
                            MMJAX_COORDINATOR MMJAX_PROCESSES MMJAX_PROCESS
launch/local.sh             the same variables, which it sets                 127.0.0.1 and a free port
JobSet on GKE, SkyPilot     the same variables, which their files set         the first machine and a fixed port
Open MPI                    OMPI_COMM_WORLD_SIZE and _RANK                    jax, to version 4; MMJAX_COORDINATOR
Slurm                       SLURM_NTASKS, _PROCID, _STEP_NODELIST, …          jax, the step's first node
TPU pod, GCE or GKE         a TPU's device file and libtpu                    jax, TPU_WORKER_* or the metadata server
none of these               —                                                 nothing happens: one process
==========================  ================================================  ======================================
"""


class Cluster(NamedTuple):
    """What ``jax.distributed.initialize`` is told; what is None, jax finds itself."""

    name: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_device_ids: tuple[int, ...] | None = None  # empty: all that are visible


class Said(NamedTuple):
    """A setting's value, and who says it, as ``KEY=value``."""

    text: str
    value: Any


def detect(
    environ: Mapping[str, str] | None = None,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """The cluster that flags and environment describe; None for a single process. Raises where they contradict."""
    environ = os.environ if environ is None else environ
    address = _said("--coordinator", coordinator, COORDINATOR, environ)
    total = _whole(_said("--processes", processes, PROCESSES, environ))
    rank = _whole(_said("--process", process, PROCESS, environ))
    launcher = next((known for known in LAUNCHERS if _started_by(known, environ)), None)
    if launcher is not None and total.value is not None and environ[launcher.total] == "1":
        launcher = None  # its only task starts processes itself, as launch/local.sh does inside a job
    if launcher is not None:
        total, rank = _agreed(total, rank, launcher, environ)
    settings = {PROCESSES: total, PROCESS: rank, COORDINATOR: address}
    given = [said for said in settings.values() if said.value is not None]
    if not given:
        return Cluster("TPU pod") if _on_tpu_host(environ) else None
    if total.value is not None and total.value < 1:
        raise ConfigError(f"{total.text}: must be at least 1")
    if rank.value is not None and total.value is not None and not 0 <= rank.value < total.value:
        raise ConfigError(f"{rank.text}: must be from 0 to {total.value - 1}, because {total.text}")
    if address.value is not None:
        _check_address(address)
    if total.value == 1:
        return None
    missing = [name for name, said in settings.items() if said.value is None]
    if launcher is None:
        if missing:
            raise ConfigError(
                f"{given[0].text}: no launcher says the rest; set {' and '.join(missing)} too, or unset it for a "
                "single process"
            )
        return Cluster("flags", address.value, total.value, rank.value)
    if address.value is None and launcher.address not in environ:
        raise ConfigError(
            f"{COORDINATOR}: {launcher.name} started {total.value} processes and does not say where the first one "
            f"is; set it to HOST:PORT of that one (mpirun -x {COORDINATOR}=HOST:PORT)"
        )
    return Cluster(launcher.name, address.value, total.value, rank.value, _local_devices(launcher, environ))


def _said(flag: str, value: Any, name: str, environ: Mapping[str, str]) -> Said:
    """The flag's value or the variable's, which must not differ."""
    variable = environ.get(name) or None
    if value is None:
        return Said(f"{name}={variable}", variable)
    if variable is not None and variable != str(value):
        raise ConfigError(f"{flag}={value}: {name} is {variable}; give one of the two")
    return Said(f"{flag}={value}", value)


def _whole(said: Said) -> Said:
    if said.value is None:
        return said
    try:
        return Said(said.text, int(said.value))
    except ValueError:
        raise ConfigError(f"{said.text}: is no whole number") from None


def _started_by(launcher: Launcher, environ: Mapping[str, str]) -> bool:
    return all(name in environ for name in (launcher.total, launcher.rank, *launcher.further))


def _agreed(total: Said, rank: Said, launcher: Launcher, environ: Mapping[str, str]) -> tuple[Said, Said]:
    """Total and rank as the launcher says; whoever gives others too must mean the same."""
    known = [_whole(Said(f"{name}={environ[name]}", environ[name])) for name in (launcher.total, launcher.rank)]
    for given, found in zip((total, rank), known, strict=True):
        if given.value is not None and given.value != found.value:
            raise ConfigError(f"{given.text}: {launcher.name} says {found.text}; unset the first, it is not needed")
    return known[0], known[1]


def _check_address(said: Said) -> None:
    host, colon, port = said.value.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"{said.text}: expected HOST:PORT of the first process, such as 10.0.0.1:8476")


def _on_tpu_host(environ: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs that are to be used; jax asks its surroundings whether they are part of a pod."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return False
    devices = Path("/dev")
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def _local_devices(launcher: Launcher, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Empty (all visible devices) for the only process of a machine or a process that sees one; else jax's rule.

    That rule is one device a process, its number among those of the machine, which would leave seven of eight idle
    where a machine runs one process, and find nothing where the launcher has hidden the others' devices.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return () if len(visible) == 1 or _processes_here(launcher, environ) == 1 else None


def _processes_here(launcher: Launcher, environ: Mapping[str, str]) -> int | None:
    """How many processes of the launcher run on this machine; Slurm writes ``4(x2),3`` for 4, 4 and 3."""
    if launcher.name == "Open MPI":
        return int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"]) if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ else None
    written = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", written):
        counts += [int(tasks)] * int(times or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else None
