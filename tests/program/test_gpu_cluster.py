"""GPUs that are not attached: names, links, memory, and what their compiler is told of them."""

import importlib.util
import re

import jax
import pytest
from jax.experimental import topologies as jax_topologies

from mmjax.core.config import ConfigError
from mmjax.program import gpu_cluster, topologies
from mmjax.program.chips import GPUS
from mmjax.program.collectives import Collective

H100 = GPUS["h100"]


def cluster(per_host, chip=H100):
    return gpu_cluster.GpuCluster(name="it", chip=chip, devices=tuple(jax.devices()), per_host=per_host)


def test_links_are_nvlink_within_a_machine_and_all_its_cards_between_machines():
    devices = jax.devices()
    assert cluster(8).bandwidth([devices]) == 450e9
    two = cluster(4)
    assert two.bandwidth([devices[:4], devices[4:]]) == 450e9
    assert two.bandwidth([devices]) == 4 * 50e9  # each machine sends through the cards of its four GPUs
    assert two.bandwidth([[devices[0], devices[4]]]) == 50e9
    assert two.bandwidth([[devices[0], devices[1], devices[4]]]) == 50e9  # the second machine has one of them
    assert cluster(4, GPUS["a100"]).bandwidth([devices]) == 4 * 25e9
    reduced = Collective(name="it", kind="all-reduce", bytes=10**9, times=2, groups=(tuple(range(8)),))
    assert two.seconds(reduced, devices) == pytest.approx(2 * 2 * 7 / 8 * 1e9 / 200e9)
    passed = Collective(name="it", kind="collective-permute", bytes=10**9, times=1, groups=((3, 4), (4, 3)))
    assert two.seconds(passed, devices) == pytest.approx(1e9 / 50e9)
    assert cluster(8).seconds(passed, devices) == pytest.approx(1e9 / 450e9)


@pytest.mark.parametrize(
    ("variables", "fraction"),
    [
        ({}, 0.75),
        ({"XLA_CLIENT_MEM_FRACTION": ".9"}, 0.9),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, 0.5),
        ({"XLA_CLIENT_MEM_FRACTION": ""}, 0.75),
    ],
)
def test_a_program_may_use_what_jax_allocates(variables, fraction, monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster(8).usable_bytes == fraction * H100.hbm


def test_a_fraction_that_is_no_number_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ConfigError, match=r"^XLA_CLIENT_MEM_FRACTION=most: .*0\.9"):
        _ = cluster(8).usable_bytes


@pytest.mark.parametrize(
    ("name", "mention"),
    [
        ("h100:16", "h100:2x8"), ("h100:2x9", "h100:3x8"), ("h100:0", "h100:8"), ("h100:1x2x8", "machines x GPUs"),
        ("h1000:8", "did you mean 'h100'"), ("h100", "h100:2x8"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_is_refused(name, mention):
    with pytest.raises(ConfigError, match=rf"^--topology={name}: ") as error:
        topologies.make_topology(name)
    assert mention in str(error.value) and "\n" not in str(error.value)


def test_without_the_plugin_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mmjax\[aot-gpu\]'"):
        topologies.make_topology("h100:8")


@pytest.mark.parametrize(("name", "layout", "per_host"), [("h100:1", "1x1x1", 1), ("b200:2x8", "1x2x8", 8)])
def test_the_plugin_is_asked_for_machines_of_gpus(name, layout, per_host, monkeypatch):
    class Description:
        devices = jax.devices()

    asked = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(jax_topologies, "get_topology_desc", lambda **given: asked.update(given) or Description)
    made = topologies.make_topology(name)
    assert (asked["platform"], asked["topology"], made.per_host) == ("cuda", layout, per_host)
    assert made.compiler_options == {"xla_gpu_enable_triton_gemm": False}

    def fail(**_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no field\nnamed so")

    monkeypatch.setattr(jax_topologies, "get_topology_desc", fail)
    with pytest.raises(ConfigError, match="rejects it: INVALID_ARGUMENT: no field named so"):
        topologies.make_topology(name)


@pytest.mark.parametrize("name", GPUS)
def test_the_compiler_is_told_the_figures_of_the_table(name):
    chip, text = GPUS[name], gpu_cluster.target_config(GPUS[name])
    assert text.count("{") == text.count("}") == 3
    numbers = dict(re.findall(r"(\w+): (\d+)(?: |$)", text))
    assert int(numbers["device_memory_size"]) == int(chip.hbm)
    assert int(numbers["core_count"]) == chip.cores and int(numbers["block_dim_limit_x"]) == 2147483647
    accelerated = "feature_extension: ACCELERATED_FEATURES" in text
    assert accelerated == (chip.capability >= (9, 0)) and f'name: "{chip.kind}"' in text
