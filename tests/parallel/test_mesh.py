"""Meshes and where arrays land on them; mistakes in the mesh section are tested with the command line."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmjax.config import ConfigError
from mmjax.parallel import sharding
from mmjax.parallel.mesh import BATCH_AXES, MeshConfig, batch_sharding, check_batch, make_mesh


@pytest.mark.parametrize(("data", "fsdp", "shape"), [(-1, 1, (8, 1)), (2, -1, (2, 4)), (4, 2, (4, 2)), (-1, 8, (1, 8))])
def test_minus_one_takes_what_is_left(data, fsdp, shape):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    assert tuple(mesh.shape.values()) == shape
    assert tuple(mesh.axis_names) == BATCH_AXES


@pytest.mark.parametrize(("data", "fsdp"), [(3, -1), (-1, 16), (2, 2), (16, 1)])
def test_sizes_that_do_not_fit_are_refused(data, fsdp):
    with pytest.raises(ConfigError, match=r"mesh\..*8"):
        make_mesh(MeshConfig(data=data, fsdp=fsdp))


def test_a_batch_is_split_by_rows_over_both_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = jax.device_put(np.arange(16), batch_sharding(mesh))
    assert [s.data.tolist() for s in rows.addressable_shards] == [[2 * i, 2 * i + 1] for i in range(8)]
    with pytest.raises(ConfigError, match=r"batch_size=20.*16, 24"):
        check_batch(20, mesh, path="batch_size")
    with pytest.raises(ConfigError, match=r"batch_size=3.*: 8$"):
        check_batch(3, mesh, path="batch_size")


def test_the_policy_splits_the_largest_dimension_that_divides_of_large_arrays_only():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    shapes = {
        "stacked": (12, 64, 256),
        "square": (12, 256, 256),
        "odd": (127, 255),
        "second": (8, 4097),
        "small": (8, 8),
        "scalar": (),
    }
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: s.spec for name, s in sharding.parameter_shardings(params, mesh).items()}
    assert specs == {
        "stacked": PartitionSpec(None, None, "fsdp"),
        "square": PartitionSpec(None, None, "fsdp"),  # a tie goes to the last
        "odd": PartitionSpec(),
        "second": PartitionSpec("fsdp"),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
    alone = sharding.parameter_shardings(params, make_mesh(MeshConfig(data=8)))
    assert all(s.spec == PartitionSpec() for s in alone.values())
