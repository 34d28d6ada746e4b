"""What is kept, what is best, and that a checkpoint comes back on another mesh with the same bits."""

import contextlib
import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmjax.checkpoints import replica_slices
from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.checkpoints.manager import Checkpoints
from mmjax.commands import inspect
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.train.program import Program
from support import tiny


@pytest.fixture(scope="module")
def programs():
    """The same state on a mesh of replicas, on one of three axes, and with the optimizer's part of it split too."""
    ready = {"model__text_cfg__vocab_size": 40, "model__text_cfg__pad_id": 0, "model__text_cfg__eos_id": 2}
    ready["objective"] = {"name": "hn_nce"}
    whole = Program(tiny.experiment(optimizer__ema_decay=0.9, mesh__data=8, **ready))
    split = Program(tiny.experiment(optimizer__ema_decay=0.9, mesh={"data": 2, "fsdp": 2, "tensor": 2}, **ready))
    zero = Program(tiny.experiment(optimizer__ema_decay=0.9, mesh={"data": 4, "fsdp": 2, "optimizer": "zero"}, **ready))
    return whole, split, zero


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(jax.device_get(x), jax.device_get(y))


def test_every_part_of_the_state_comes_back_also_on_another_mesh(programs, tmp_path):
    whole, split, _ = programs
    state = whole.initialize()
    gap = jax.device_put(np.float32(0.1), whole.shardings.objective["gap"])
    state = dataclasses.replace(state, objective={"gap": gap})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=3)
        checkpoints.wait()
        for program in programs:
            restored = checkpoints.restore(program.abstract_state)
            equal(restored, state)
            for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(program.shardings), strict=True):
                assert got.sharding == wanted
        equal(checkpoints.restore_params(split.abstract_state.params), state.params)
        equal(checkpoints.restore_params(split.abstract_state.params, ema=True), state.ema_params)


def test_the_latest_and_the_best_are_kept(programs, tmp_path):
    state = programs[0].initialize()
    with contextlib.closing(Checkpoints(tmp_path, keep=2, best="val/rsum")) as checkpoints:
        for step, score in enumerate([1.0, 9.0, 3.0, 4.0, 2.0]):
            checkpoints.save(state, step=step, metrics={"val/rsum": score})
        checkpoints.save(state, step=5)  # stopped by a signal: not measured
        checkpoints.wait()
        assert checkpoints.steps == [1, 4, 5]
        assert (checkpoints.resolve("best"), checkpoints.resolve("last")) == (1, 5)
        with pytest.raises(ConfigError, match=r"--step=3.*1, 4, 5"):
            checkpoints.resolve(3)
    with contextlib.closing(Checkpoints(tmp_path, best="val/rsum", read_only=True)) as checkpoints:
        assert checkpoints.resolve("best") == 1


def test_a_metric_that_is_not_measured_is_named(programs, tmp_path):
    checkpoints = Checkpoints(tmp_path, best="val/rsumm")
    with contextlib.closing(checkpoints), pytest.raises(ConfigError, match=r"val/rsumm.*val/rsum"):
        checkpoints.save(programs[0].initialize(), step=1, metrics={"val/rsum": 1.0})


def test_leftovers_of_a_save_that_was_cut_off_are_not_checkpoints(programs, tmp_path):
    state = programs[0].initialize()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=1)
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-7").mkdir()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.steps == [1]
        equal(checkpoints.restore(programs[0].abstract_state), state)


def test_inspection_counts_and_its_fingerprint_sees_one_bit(programs, tmp_path):
    state = programs[0].initialize()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=1)
    facts = inspect.summarize(tmp_path)
    params = jax.device_get(state.params)
    assert facts["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert facts["bytes"] == 4 * facts["parameters"]
    assert sum(row["parameters"] for row in facts["modules"].values()) == facts["parameters"]
    shown = inspect.format_text(facts)
    assert f"{facts['parameters']:,}" in shown and facts["sha256"] in shown
    flat = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    assert fingerprint(flat) == facts["sha256"]
    assert fingerprint(dict(reversed(flat.items()))) == facts["sha256"]
    name = "visual/proj/kernel"
    changed = flat[name].copy()
    changed.view(np.uint32)[0, 0] ^= 1
    assert fingerprint(flat | {name: changed}) != facts["sha256"]
    assert fingerprint(flat | {name: flat[name].T}) != facts["sha256"]


def test_parameters_are_read_onto_a_device_of_this_process(tmp_path, monkeypatch):
    """Not onto the one that saved them, which another process may have."""
    last = jax.devices()[-1]
    numbers = jax.device_put(np.arange(4.0, dtype=np.float32), last)
    state = TrainState(step=np.int32(1), params={"w": numbers}, opt_state={"m": numbers}, ema_params=None)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=1)
    devices = []
    restore = ocp.StandardCheckpointHandler.restore

    def spy(*arguments, **options):
        result = restore(*arguments, **options)
        devices.extend(device for leaf in jax.tree.leaves(result) for device in leaf.devices())
        return result

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", spy)
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.read_params()["w"].tolist() == [0, 1, 2, 3]
    assert devices == [jax.local_devices()[0]]


def test_an_average_that_an_objective_compares_with_comes_back(tmp_path):
    numbers, averages = (jax.device_put(np.arange(4.0, dtype=np.float32) + n) for n in (0, 1))
    state = TrainState(
        step=jax.device_put(np.int32(1)), params={"w": numbers}, opt_state={"m": numbers}, ema_params=None,
        momentum_params={"w": averages},
    )  # fmt: skip
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=1)
        checkpoints.wait()
        equal(checkpoints.restore(target), state)


def test_devices_share_the_saving_of_large_arrays_alone(tmp_path):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    size = 8 * replica_slices.MIN_BYTES // 4
    arrays = {"large": np.arange(size, dtype=np.float32), "small": np.arange(size - 8, dtype=np.float32)}
    params = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P()))
    state = TrainState(step=np.int32(1), params=params, opt_state=(), ema_params=None)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, step=1)
        checkpoints.wait()
        equal(checkpoints.read_params(), arrays)
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        saved = checkpointer.metadata(tmp_path / "checkpoints" / "1" / "params").item_metadata
    assert saved["large"].storage.chunk_shape == (size // 8,)
    assert saved["small"].storage.chunk_shape == (size - 8,)
