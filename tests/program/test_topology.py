"""Slices that are not there: topologies, their links, and what the compiler says of them."""

import importlib.util

import jax
import pytest
from jax.experimental import topologies

from mmjax.core.config import ConfigError
from mmjax.program import topologies as aot
from mmjax.program import topology
from mmjax.program.chips import GIB, TPUS
from mmjax.program.collectives import Collective
from mmjax.program.tpu_slice import TpuSlice


def test_rates_count_the_dimensions_that_a_group_extends_over():
    devices = tuple(jax.devices())
    places = tuple((i // 2, i % 2, 0) for i in range(8))
    v4 = TpuSlice(name="v4:4x2x1", chip=TPUS["v4"], sides=(4, 2, 1), devices=devices, coordinates=places)
    everyone, column = [devices], [devices[::2], devices[1::2]]
    assert v4.bandwidth(everyone) == (2 + 1) * 50e9  # four chips close to a ring, two do not
    assert v4.bandwidth(column) == 2 * 50e9
    one = Collective(name="it", kind="all-reduce", bytes=10**9, times=3, groups=(tuple(range(8)),))
    assert v4.seconds(one, devices) == pytest.approx(3 * 2 * 7 / 8 * 1e9 / 150e9)
    on = Collective(name="it", kind="collective-permute", bytes=10**9, times=2, groups=((0, 1), (1, 0)))
    assert v4.seconds(on, devices) == pytest.approx(2 * 1e9 / 50e9)
    assert v4.seconds(Collective(name="it", kind="all-gather", bytes=64, times=1, groups=((0,),)), devices) == 0


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("16x16", ["v5e:16x16"]),
        ("v5e-256", ["v5e:16x16"]),
        ("v9:2x2", ["no such chip", "v5e", "tpu7x"]),
        ("v5d:2x2", ["did you mean"]),
        ("v5e:2x2x2", ["2 dimensions", "v5e:4x4"]),
        ("v4:4x4", ["3 dimensions", "v4:4x4x4"]),
        ("v5e:0x2", ["v5e:4x4"]),
    ],
)
def test_a_topology_that_cannot_be_is_refused(name, mentions):
    with pytest.raises(ConfigError) as error:
        aot.make_topology(name)
    for mention in [f"--topology={name}", *mentions]:
        assert mention in str(error.value)


def test_without_libtpu_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mmjax\[aot\]'"):
        aot.make_topology("v5e:2x2")


@pytest.mark.parametrize(
    ("message", "mention"),
    [
        ('ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm …".', "another process"),
        ('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible by\nthe bounds "2x2x1"', 'bounds "2x2x1"'),
    ],
)
def test_libtpus_errors_are_one_line_with_the_way_out(message, mention, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(ConfigError, match=mention) as error:
        aot.make_topology("v5e:3x3")
    assert "\n" not in str(error.value) and "--topology=v5e:3x3" in str(error.value)


@pytest.mark.parametrize(
    ("message", "needed", "usable"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (69.17G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee https://openxla.org",
            69.17 * GIB,
            15.75 * GIB,
        ),
        ("Ran out of memory in memory space hbm. Used 900.5M of 15.75G hbm. Exceeded", 900.5 * 2**20, 15.75 * GIB),
        ("INTERNAL: something else", None, None),
    ],
)
def test_what_the_compiler_says_of_memory_is_understood(message, needed, usable):
    error = topology.parse_out_of_memory(message)
    if needed is None:
        assert error is None
    else:
        assert (error.needed, error.usable) == (needed, usable)
        assert "\n" not in str(error)


def test_only_an_error_about_memory_becomes_one():
    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self, options):
            raise jax.errors.JaxRuntimeError(self.message)

    with pytest.raises(topology.OutOfMemory):
        topology.compile_program(Lowered("temporaries (69.17G) exceeds available HBM (15.75G)"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        topology.compile_program(Lowered("INTERNAL: broken"))


@pytest.fixture
def small_programs_are_cached():
    key = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, key)
    jax.config.update(key, 0.0)
    yield
    jax.config.update(key, before)


@pytest.mark.usefixtures("small_programs_are_cached")
def test_a_program_of_the_cache_has_the_lines_of_its_own_code():
    """The same program of two files, as of two checkouts that share a cache."""
    before = jax.config.jax_compilation_cache_include_metadata_in_key

    def text(file, compile_lowered):
        scope = {}
        exec(compile("def scale(x):\n    return x * 3 + 1\n", file, "exec"), scope)
        return compile_lowered(jax.jit(scope["scale"]).lower(jax.numpy.ones(7))).as_text()

    plain = [text(file, lambda lowered: lowered.compile()) for file in ("/a/scale.py", "/b/scale.py")]
    assert "/a/scale.py" in plain[1]  # what JAX's cache does by itself
    for file in ("/a/scale.py", "/b/scale.py", "/a/scale.py"):
        assert file in text(file, topology.compile_program)
    assert jax.config.jax_compilation_cache_include_metadata_in_key == before
