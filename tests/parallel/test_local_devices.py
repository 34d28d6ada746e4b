import os

import pytest

from mmjax.parallel import local_devices
from mmjax.parallel.local_devices import count_tpu_chips, find_gpus


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Writes a program in its place that prints ``output``."""

    def write(output, status=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


def test_gpus_are_those_that_jax_may_use(nvidia_smi):
    nvidia_smi("0\\n1\\n")
    assert find_gpus({}) == ["0", "1"]
    assert find_gpus({"JAX_PLATFORMS": "cuda,cpu"}) == ["0", "1"]
    assert find_gpus({"JAX_PLATFORMS": "cpu"}) == []
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "1, GPU-5f"}) == ["1", "GPU-5f"]
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_a_driver_that_finds_no_gpu(nvidia_smi):
    nvidia_smi("No devices were found", status=6)
    assert find_gpus({}) == []


def test_a_machine_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus({}) == []


def test_tpu_chips_are_device_files(tmp_path, monkeypatch):
    monkeypatch.setattr(local_devices.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert count_tpu_chips({}, devices=tmp_path) == 0
    (tmp_path / "vfio").mkdir()
    for name in ("vfio", "0", "1", "2", "3"):
        (tmp_path / "vfio" / name).touch()
    assert count_tpu_chips({}, devices=tmp_path) == 4
    for i in range(8):
        (tmp_path / f"accel{i}").touch()
    assert count_tpu_chips({"JAX_PLATFORMS": "tpu,cpu"}, devices=tmp_path) == 8
    assert count_tpu_chips({"JAX_PLATFORMS": "cpu"}, devices=tmp_path) == 0
    monkeypatch.setattr(local_devices.importlib.util, "find_spec", lambda name: None)
    assert count_tpu_chips({}, devices=tmp_path) == 0
