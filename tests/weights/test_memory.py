"""What listing and reading cost: no more than the tensor that was asked for, and neither jax nor torch."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.weights.open_tensors import open_tensors
from support import weight_files as files

SIZE = 8 * 2**20
COUNT = 16
ARRAYS = {"a": np.ones(SIZE // 4, np.float32), "b": np.zeros(SIZE // 4, np.float32)}


def write(folder, form):
    path = folder / "weights"
    if form == "safetensors":
        save_file(ARRAYS, path)
    elif form == "npz":
        with open(path, "wb") as file:
            np.savez(file, **ARRAYS)
    else:
        state = {name: files.tensor([SIZE // 4], count=SIZE // 4, key=name) for name in ARRAYS}
        files.write_archive(path, files.program(files.dictionary(state)), {k: a.tobytes() for k, a in ARRAYS.items()})
    return path


@pytest.mark.parametrize("form", ["safetensors", "npz", "torch"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, form):
    path = write(tmp_path, form)
    tracemalloc.start()
    try:
        file = open_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < SIZE / 10
        for name in ARRAYS:
            tracemalloc.reset_peak()
            assert file.read(name).sum() == ARRAYS[name].sum()
            assert tracemalloc.get_traced_memory()[1] < 1.1 * SIZE
    finally:
        tracemalloc.stop()


READING = f"""
import sys
import jax, numpy as np
from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.place import read_params
from mmjax.weights.rules import Rule, linear

def in_memory(key):
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(key))

sharding = jax.sharding.NamedSharding(jax.make_mesh((8,), ("fsdp",)), jax.sharding.PartitionSpec("fsdp"))
leaf = jax.ShapeDtypeStruct((2048, 1024), np.float32, sharding=sharding)
rules = [Rule((f"p{{k}}",), f"t{{k}}", linear()) for k in range({COUNT})]
leaves = {{f"p{{k}}": leaf for k in range({COUNT})}}
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = in_memory("VmRSS")
params = jax.block_until_ready(read_params(open_tensors(sys.argv[1]), rules, leaves))
print(in_memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of resident memory")
def test_onto_eight_devices_there_is_no_copy_of_the_whole(tmp_path):
    """On simulated devices the parameters lie in the host's memory themselves: once, and not twice.

    In a process of its own: memory that other tests have freed would be taken again, and not be seen.
    """
    size = COUNT * SIZE
    entries = {f"t{k}": ("F32", [1024, 2048], (k * SIZE, (k + 1) * SIZE)) for k in range(COUNT)}
    path = files.write_safetensors(tmp_path / "model.safetensors", entries)
    os.truncate(path, path.stat().st_size + size)  # zeros that take no space
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    output = subprocess.run([sys.executable, "-c", READING, path], env=environment, capture_output=True, text=True)
    assert size < int(output.stdout) < 1.3 * size, output.stderr  # with one tensor, and pages that are not full


def test_neither_jax_nor_torch_is_imported():
    code = "import sys, mmjax.weights.open_tensors; sys.exit(bool({'jax', 'torch', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
