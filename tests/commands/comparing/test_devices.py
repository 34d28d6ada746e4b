import pytest

from mmjax.commands.comparing import devices
from mmjax.commands.comparing.devices import divide_accelerators
from mmjax.core.config import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", *devices.MEMORY_FRACTION):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "count_tpu_chips", lambda environ: 0)


@pytest.fixture
def on_gpus(monkeypatch):
    def divide(names, jobs):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        return divide_accelerators(jobs)

    return divide


@pytest.mark.parametrize(
    ("names", "jobs", "visible"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("0,1,2,3,4", 2, ["0,1", "2,3"]),  # equally many each
        ("GPU-8932f937,GPU-1c2d", 2, ["GPU-8932f937", "GPU-1c2d"]),
    ],
)
def test_runs_have_equally_many_gpus_of_their_own(names, jobs, visible, on_gpus):
    assert on_gpus(names, jobs) == [{"CUDA_VISIBLE_DEVICES": own} for own in visible]


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({}, "0.450"),
        ({"XLA_CLIENT_MEM_FRACTION": "0.8"}, "0.400"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6"}, "0.300"),
    ],
)
def test_runs_that_are_more_than_gpus_divide_the_memory(fractions, expected, on_gpus, monkeypatch):
    for name, value in fractions.items():
        monkeypatch.setenv(name, value)
    found = on_gpus("2,3", 4)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2", "3", "2", "3"]
    # JAX refuses to start with both variables, and an empty one counts as none.
    assert {one["XLA_CLIENT_MEM_FRACTION"] for one in found} == {expected}
    assert {one["XLA_PYTHON_CLIENT_MEM_FRACTION"] for one in found} == {""}


def test_three_runs_on_two_gpus_fit_where_two_share_one(on_gpus):
    assert {one["XLA_CLIENT_MEM_FRACTION"] for one in on_gpus("0,1", 3)} == {"0.450"}


@pytest.mark.parametrize("environ", [{"CUDA_VISIBLE_DEVICES": ""}, {"JAX_PLATFORMS": "cpu"}])
def test_runs_on_cpus_see_what_the_command_sees(environ, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert divide_accelerators(3) == [{}, {}, {}]


def test_a_single_run_has_all(on_gpus):
    assert on_gpus("0,1", 1) == [{}]


def test_each_run_has_a_tpu_chip(monkeypatch):
    monkeypatch.setattr(devices, "count_tpu_chips", lambda environ: 4)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    found = divide_accelerators(3)
    assert [one.pop("TPU_VISIBLE_CHIPS") for one in found] == ["0", "1", "2"]
    assert found == [{"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}] * 3
    with pytest.raises(ConfigError, match=r"--jobs=5: .* has 4"):
        divide_accelerators(5)
