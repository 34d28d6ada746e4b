"""Meshes and where arrays land on them; mistakes in the mesh section are tested with the command line."""

import jax
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.parallel.host_rows import ALL_ROWS, RowBlock, row_block, row_block_of_shards
from mmjax.parallel.mesh import BATCH_AXES, MeshConfig, batch_sharding, check_batch_size, make_mesh
from support import command, processes, tiny
from support.training import assembled


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 4, "fsdp": 2}, (4, 2, 1)),
        ({"fsdp": 8}, (1, 8, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "tensor": -1}, (1, 1, 8)),
    ],
)
def test_minus_one_takes_what_is_left(sizes, shape):
    mesh = make_mesh(MeshConfig(**sizes))
    assert tuple(mesh.shape.values()) == shape
    assert tuple(mesh.axis_names) == (*BATCH_AXES, "tensor")


@pytest.mark.parametrize(
    ("sizes", "mention"),
    [
        ({"data": 3, "fsdp": -1}, r"mesh\.data=3: .*8 devices"),
        ({"fsdp": 16}, r"mesh\.fsdp=16: .*8 devices"),
        ({"fsdp": 2, "tensor": 3}, r"mesh\.fsdp=2 x mesh\.tensor=3: .*8 devices"),
        ({"data": 2, "fsdp": 2}, r"mesh\.data=2 x mesh\.fsdp=2 x mesh\.tensor=1 is 4 devices, but there are 8"),
        ({"data": 16}, r"is 16 devices, but there are 8"),
        ({"tensor": -1}, r"mesh\.data=-1 and mesh\.tensor=-1: .*set the other$"),
        ({"tensor": 0}, r"mesh\.tensor=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, mention):
    with pytest.raises(ConfigError, match=mention):
        make_mesh(MeshConfig(**sizes))


def test_a_batch_is_split_by_rows_over_both_axes_and_copied_over_tensor():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(np.arange(8), batch_sharding(mesh))
    assert [s.data.tolist() for s in rows.addressable_shards] == [[2 * (i // 2), 2 * (i // 2) + 1] for i in range(8)]
    check_batch_size(12, mesh, path="batch_size")
    with pytest.raises(ConfigError, match=r"batch_size=14: .* 4 shards of mesh.data x mesh.fsdp; .*: 12, 16$"):
        check_batch_size(14, mesh, path="batch_size")
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with pytest.raises(ConfigError, match=r"batch_size=20.*16, 24"):
        check_batch_size(20, mesh, path="batch_size")
    with pytest.raises(ConfigError, match=r"batch_size=3.*: 8$"):
        check_batch_size(3, mesh, path="batch_size")


@pytest.mark.parametrize(
    ("held", "shares"),
    [
        ({0: {0, 1}, 1: {2, 3}}, [(0, 2), (1, 2)]),
        ({0: {0}, 1: {0}}, [(0, 1), (0, 1)]),  # one tensor group over both
        ({0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({0: {0, 2}, 1: {1, 3}}, [(0, 2), (1, 2)]),  # devices in another order than processes
        ({0: {2, 3}, 1: {0, 1}}, [(1, 2), (0, 2)]),
    ],
)
def test_a_process_makes_the_rows_that_its_devices_hold(held, shares):
    assert [row_block_of_shards(process, held) for process in held] == [RowBlock(*block) for block in shares]


@pytest.mark.parametrize("held", [{0: {0, 1}, 1: {1, 2}}, {0: {0, 1}, 1: {2}}, {0: {0, 1}, 1: {1}}])
def test_shares_that_overlap_in_part_are_refused(held):
    with pytest.raises(ConfigError, match=r"mesh: 2 processes .*mesh\.tensor"):
        row_block_of_shards(0, held)


def test_one_process_has_everything():
    for sizes in ({}, {"tensor": 8, "data": 1}, {"fsdp": 2, "tensor": 2}):
        assert row_block(0, batch_sharding(make_mesh(MeshConfig(**sizes)))) == ALL_ROWS


ACROSS = """
import sys
sys.path[:0] = [{tests!r}]
with distributed.join():
    from mmjax.train.setup import setup
    from support import tiny

    experiment = tiny.experiment(mesh={{"data": 1, "tensor": 2}})
    resolved = setup(experiment)
    program, batches = resolved.program, resolved.make_batches()
    state, compiled = program.initialize(), program.trace(program.batch_shape(batches[0])).lower().compile()
    for step in range(2):
        state, metrics = compiled(state, program.place(batches[step]))
        print("share", (program.row_block.index, program.row_block.count), "loss", float(metrics["loss"]), flush=True)
"""


@pytest.mark.slow
def test_a_tensor_axis_over_two_processes_trains_as_over_one():
    """Both make all rows of the batch."""
    running = processes.start(ACROSS.format(tests=str(command.TESTS)), 2)
    said = processes.outputs(running, timeout=300)
    assert [process.wait() for process in running] == [0, 0], said
    program, batches = assembled(tiny.experiment(mesh={"data": 1, "tensor": 2}), jax.devices()[:2])
    state, compiled, losses = program.initialize(), None, []
    for _ in range(2):
        arrays = next(batches)
        compiled = compiled or program.trace(program.batch_shape(arrays)).lower().compile()
        state, metrics = compiled(state, program.place(arrays))
        losses.append(float(metrics["loss"]))
    batches.close()
    for text in said:
        assert text.count("share (0, 1) loss ") == 2, text
        lines = [line for line in text.splitlines() if line.startswith("share (0, 1) loss ")]
        np.testing.assert_allclose([float(line.split()[-1]) for line in lines], losses, rtol=1e-5)
