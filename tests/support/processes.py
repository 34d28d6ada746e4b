"""Several processes that run one small program, each told which one it is."""

import os
import socket
import subprocess
import sys

from support import command

PREAMBLE = """
import os, signal, sys, time
import jax, jax.numpy as jnp
from mmjax.core.config import ConfigError
from mmjax.parallel import collectives, distributed
me = int(os.environ["MMJAX_PROCESS"])

def total(value):
    "The sum of value over all processes: one collective."
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("d"))
    array = jax.make_array_from_process_local_data(rows, jnp.full((jax.local_device_count(),), value).__array__())
    return float(jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))(array))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(program, count, *, port=None):
    """The processes, running ``program`` after ``PREAMBLE`` with one device each."""
    port = port or free_port()
    given = os.environ | {
        "MMJAX_COORDINATOR": f"127.0.0.1:{port}",
        "MMJAX_PROCESSES": str(count),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": command.compiler_flags(),
        "PYTHONUNBUFFERED": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + program],
            env=given | {"MMJAX_PROCESS": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def outputs(processes, *, timeout=90):
    """What each of them said, once all have ended."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
