"""Collectives of a compiled program: bytes, groups of devices, and mesh axes."""

import math

import jax
import pytest
from jax.sharding import PartitionSpec

from mmjax.parallel.mesh import MeshConfig, make_mesh
from mmjax.program import collectives
from mmjax.program.hlo import Module
from support.hlo_texts import TPU_TEXT, compiled

MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(**MESH))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, use_global_device_ids=true", ((0, 1), (2, 3))),
        ("replica_groups={}, to_apply=%add", (tuple(range(8)),)),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups=[2,4]<=[8], x", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", (tuple(range(8)),)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("channel_id=1", (tuple(range(8)),)),
        (
            "replica_groups=mesh['x'=2,'y'=1,'z'=2,'w'=2], device_ids=([2,2,2]T(0,2,1)) {'z'}",
            ((0, 1), (2, 3), (4, 5), (6, 7)),
        ),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=([8]) {'x'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['x'=2,'y'=4], device_ids=(7,6,5,4,3,2,1,0) {'y'}", ((7, 6, 5, 4), (3, 2, 1, 0))),
    ],
)
def test_all_forms_of_groups_are_read(text, expected):
    assert collectives.parse_groups(text, devices=8) == expected


@pytest.mark.parametrize("axis", ["data", "fsdp", ("data", "fsdp")])
@pytest.mark.parametrize(
    ("kind", "collective"),
    [
        ("all-reduce", lambda x, axis: jax.lax.psum(x, axis)),
        ("all-gather", lambda x, axis: jax.lax.all_gather(x, axis, tiled=True)),
        ("reduce-scatter", lambda x, axis: jax.lax.psum_scatter(x, axis, tiled=True)),
        ("all-to-all", lambda x, axis: jax.lax.all_to_all(x, axis, split_axis=0, concat_axis=0, tiled=True)),
        ("collective-permute", None),
    ],
)
def test_collectives_of_a_program_are_found_with_their_bytes_and_axes(kind, collective, axis, mesh):
    axes = axis if isinstance(axis, tuple) else (axis,)
    size = math.prod(MESH[name] for name in axes)
    if collective is None:

        def collective(x, axis):
            return jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])

    island = jax.shard_map(
        lambda x: collective(x, axis),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(("data", "fsdp")),
        check_vma=False,
    )
    found = collectives.collectives(compiled(island, (16, 5), mesh=mesh), devices=8)
    local = 16 * 5 * 4
    whole = {"all-gather": local * size}.get(kind, local)
    assert [(one.kind, one.times, one.bytes) for one in found] == [(kind, 1, whole)]
    assert collectives.mesh_axes(found[0], MESH) == "+".join(axes)
    n = size
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
    assert found[0].sent == pytest.approx(share * whole)


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh):
    def island(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "fsdp") * 0.5, x)

    function = jax.shard_map(island, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    (found,) = collectives.collectives(compiled(function, (8,), mesh=mesh), devices=8)
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 5, 32)


def test_a_tpus_ways_to_write_collectives_count_once_each():
    found = collectives.collectives(Module(TPU_TEXT), devices=4)
    assert [(one.kind, one.bytes, one.times) for one in found] == [
        ("reduce-scatter", 128 * 128 * 2, 1),
        ("all-gather", 8 * 128 * 2, 1),
        ("collective-permute", 8 * 64 * 2, 1),
    ]
    assert {collectives.mesh_axes(one, {"data": 2, "fsdp": 2}) for one in found} == {"fsdp"}


def test_collectives_that_are_started_and_finished_apart_count_once():
    text = """ENTRY %main (x: f32[4,8]) -> f32[16,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %rd = f32[4,8]{1,0} all-reduce-done(%r)
  %g = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%rd), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %gd = f32[16,8]{1,0} all-gather-done(%g)
}
"""
    found = collectives.collectives(Module(text), devices=4)
    assert [(one.kind, one.bytes, one.sent) for one in found] == [("all-reduce", 128, 192), ("all-gather", 512, 384)]
