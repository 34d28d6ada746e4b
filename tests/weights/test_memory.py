"""What listing and reading cost: no more than the tensor that was asked for, and neither jax nor torch."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.weights.open_tensors import open_tensors
from support import weight_files as files

SIZE = 8 * 2**20
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


def test_neither_jax_nor_torch_is_imported():
    code = "import sys, mmjax.weights.open_tensors; sys.exit(bool({'jax', 'torch', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
