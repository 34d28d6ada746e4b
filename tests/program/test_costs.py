"""What a compiled program's text says about its work, its memory traffic and its collectives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.parallel.mesh import MeshConfig, make_mesh
from mmjax.program import costs
from mmjax.program.hlo import Module

MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(**MESH))


def compiled(function, *shapes, mesh, spec=None, out=None):
    """The program's text for float32 arrays of these shapes."""
    place = NamedSharding(mesh, PartitionSpec() if spec is None else spec)
    arguments = [jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for shape in shapes]
    result = None if out is None else NamedSharding(mesh, out)
    return Module(jax.jit(function, out_shardings=result).lower(*arguments).compile().as_text())


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
    ],
)
def test_all_forms_of_groups_are_read(text, expected):
    assert costs.parse_groups(text, devices=8) == expected


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
    found = costs.collectives(compiled(island, (16, 5), mesh=mesh), devices=8)
    local = 16 * 5 * 4
    whole = {"all-gather": local * size}.get(kind, local)
    assert [(one.kind, one.times, one.bytes) for one in found] == [(kind, 1, whole)]
    assert costs.mesh_axes(found[0], MESH) == "+".join(axes)
    n = size
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
    assert found[0].sent == pytest.approx(share * whole)


def test_what_a_loop_does_counts_as_often_as_it_runs(mesh):
    def function(x, w):
        def once(carry, weight):
            rows = jnp.tanh(carry @ weight)
            return rows @ weight, jnp.sum(rows)

        return jax.lax.scan(once, x, jnp.stack([w] * 7))

    module = compiled(function, (16, 24), (24, 24), mesh=mesh, spec=PartitionSpec(), out=None)
    assert costs.flops(module) == 7 * 2 * 2 * 16 * 24 * 24
    assert module.unknown_loops == []

    def twice(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: function(x, w)[0], x)

    assert costs.flops(compiled(twice, (16, 24), (24, 24), mesh=mesh)) == 3 * 7 * 2 * 2 * 16 * 24 * 24


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh):
    def island(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "fsdp") * 0.5, x)

    function = jax.shard_map(island, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    (found,) = costs.collectives(compiled(function, (8,), mesh=mesh), devices=8)
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 5, 32)


def test_a_loop_of_unknown_length_is_named_and_counts_once(mesh):
    def function(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e3, lambda x: x @ w, x)

    module = compiled(function, (8, 8), (8, 8), mesh=mesh)
    assert len(module.unknown_loops) == 1
    assert costs.flops(module) == 2 * 8**3


def test_of_a_conditionals_branches_the_larger_one_counts(mesh):
    def function(i, x, w):
        return jax.lax.switch(i[0].astype(jnp.int32), [lambda: x, lambda: (x @ w) @ w, lambda: jnp.sin(x)])

    module = compiled(function, (1,), (8, 8), (8, 8), mesh=mesh)
    assert costs.flops(module) == 2 * 2 * 8**3


def test_flops_of_a_sharded_product_are_one_devices_share(mesh):
    module = compiled(
        lambda x, w: x @ w.T, (16, 24), (16, 24), mesh=mesh, spec=PartitionSpec(("data", "fsdp")),
        out=PartitionSpec(("data", "fsdp")),
    )  # fmt: skip
    assert costs.flops(module) == 2 * 16 * 24 * 16 / 8


CONVOLUTIONS = [
    # rows, kernel, window, rows out: as one dimension of a line of HLO
    (8, 3, "size=3 pad=1_1", 8),
    (8, 4, "size=4 stride=4", 2),
    (9, 3, "size=3 stride=2 pad=1_1", 5),
    (4, 4, "size=4 stride=3 lhs_dilate=4", 4),  # how a TPU writes a batch of four products
    (5, 3, "size=3 pad=2_2 rhs_dilate=2", 5),
]


@pytest.mark.parametrize(("rows", "kernel", "window", "out"), CONVOLUTIONS)
def test_flops_of_a_convolution_are_of_what_lies_within_the_input(rows, kernel, window, out):
    text = f"""ENTRY %main (x: f32[2,{rows},6], w: f32[{kernel},6,5]) -> f32[2,{out},5] {{
  %x = f32[2,{rows},6]{{2,1,0}} parameter(0)
  %w = f32[{kernel},6,5]{{2,1,0}} parameter(1)
  ROOT %c = f32[2,{out},5]{{2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels=b0f_0io->b0f
}}
"""
    given = dict(part.split("=") for part in window.split())
    low = int(given.get("pad", "0_0").split("_")[0])
    stride, dilate, spread = (int(given.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    met = 0
    for i in range(out):
        for k in range(kernel):
            at = i * stride + k * spread - low
            met += at % dilate == 0 and 0 <= at // dilate < rows
    assert met > 0
    assert costs.flops(Module(text)) == 2 * met * 2 * 6 * 5


TPU_TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[128,128]) -> bf16[128,64] {
  %p = bf16[128,128]{1,0} parameter(0)
  %r = bf16[128,128]{1,0} all-reduce(%p), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, to_apply=%add
  %z = u32[]{:T(128)} constant(0)
  ROOT %d = bf16[128,64]{1,0} dynamic-slice(%r, %z, %z), dynamic_slice_sizes={128,64}
}

%async_start (q: bf16[8,64]) -> (bf16[8,64], bf16[8,128]) {
  %q = bf16[8,64]{1,0} parameter(0)
  %g = bf16[8,128]{1,0} all-gather(%q), channel_id=9, replica_groups=[2,2]<=[4], dimensions={1}
  ROOT %t = (bf16[8,64]{1,0}, bf16[8,128]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (q: bf16[8,64]) -> bf16[8,128] {
  %q.1 = bf16[8,64]{1,0} parameter(0)
  ROOT %g.1 = bf16[8,128]{1,0} all-gather(%q.1), channel_id=9, replica_groups=[2,2]<=[4], dimensions={1}
}

%async_done (q: bf16[8,64]) -> bf16[8,128] {
  %q.2 = bf16[8,64]{1,0} parameter(0)
  %g.2 = bf16[8,128]{1,0} all-gather(%q.2), channel_id=9, replica_groups=[2,2]<=[4], dimensions={1}
  ROOT %t.2 = bf16[8,128]{1,0} custom-call(%q.2, %g.2), custom_call_target="AsyncCollectiveDone"
}

%read_slice (s: f32[12,64,64], i: s32[]) -> f32[64,64] {
  %s.1 = f32[12,64,64]{2,1,0} parameter(0)
  %i.1 = s32[]{:T(128)} parameter(1)
  %cut = f32[1,64,64]{2,1,0} dynamic-slice(%s.1, %i.1, %i.1, %i.1), dynamic_slice_sizes={1,64,64}
  ROOT %flat = f32[64,64]{1,0} bitcast(%cut)
}

%write_slice (s: f32[12,64,64], x: f32[1,64,64], i: s32[]) -> f32[12,64,64] {
  %s.2 = f32[12,64,64]{2,1,0} parameter(0)
  %x.2 = f32[1,64,64]{2,1,0} parameter(1)
  %i.2 = s32[]{:T(128)} parameter(2)
  ROOT %put = f32[12,64,64]{2,1,0} dynamic-update-slice(%s.2, %x.2, %i.2, %i.2, %i.2)
}

%condition (c: (s32[], f32[12,64,64])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[12,64,64]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(12)
  %k = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%k, %n), direction=LT
}

%body (c: (s32[], f32[12,64,64])) -> (s32[], f32[12,64,64]) {
  %c.1 = (s32[]{:T(128)}, f32[12,64,64]{2,1,0}) parameter(0)
  %k.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %all = f32[12,64,64]{2,1,0} get-tuple-element(%c.1), index=1
  %one = f32[64,64]{1,0:T(8,128)S(1)} fusion(%all, %k.1), kind=kLoop, calls=%read_slice
  %again = f32[1,64,64]{2,1,0:T(8,128)S(1)} bitcast(%one)
  %new = f32[12,64,64]{2,1,0} fusion(%all, %again, %k.1), kind=kLoop, calls=%write_slice
  ROOT %next = (s32[]{:T(128)}, f32[12,64,64]{2,1,0}) tuple(%k.1, %new)
}

ENTRY %main (w: bf16[128,128], x: bf16[8,64], y: f32[12,64,64]) -> f32[12,64,64] {
  %w = bf16[128,128]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %y = f32[12,64,64]{2,1,0} parameter(2)
  %scattered = bf16[128,64]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  %started = (bf16[8,64]{1,0}, bf16[8,128]{1,0}) fusion(%x), kind=kCustom, calls=%async_start
  %beside = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %ended = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%async_done
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%zero)
  %moved = (bf16[8,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %there = bf16[8,64]{1,0} collective-permute-done(%moved)
  %first = (s32[]{:T(128)}, f32[12,64,64]{2,1,0}) tuple(%copied, %y)
  %last = (s32[]{:T(128)}, f32[12,64,64]{2,1,0}) while(%first), condition=%condition, body=%body
  ROOT %result = f32[12,64,64]{2,1,0} get-tuple-element(%last), index=1
}
"""  # noqa: E501


def test_a_tpus_ways_to_write_collectives_count_once_each():
    found = costs.collectives(Module(TPU_TEXT), devices=4)
    assert [(one.kind, one.bytes, one.times) for one in found] == [
        ("reduce-scatter", 128 * 128 * 2, 1),
        ("all-gather", 8 * 128 * 2, 1),
        ("collective-permute", 8 * 64 * 2, 1),
    ]
    assert {costs.mesh_axes(one, {"data": 2, "fsdp": 2}) for one in found} == {"fsdp"}


@pytest.mark.parametrize(("next_", "trips"), [("%k.2", 8), ("%k.3", 4), ("%k.4", 3), ("%k", 8), ("%k.5", 8)])
def test_a_loop_that_takes_several_parts_at_a_time_runs_as_much_less_often(next_, trips):
    """By one, by two in one or two additions (three in two), and where what it adds is not seen."""
    text = f"""%condition (c: (s32[], f32[4])) -> pred[] {{
  %c = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %c.1 = (s32[], f32[4]) parameter(0)
  %k = s32[] get-tuple-element(%c.1), index=0
  %one = s32[] constant(1)
  %two = s32[] constant(2)
  %k.2 = s32[] add(%k, %one)
  %k.3 = s32[] add(%k.2, %one)
  %half = s32[] copy(%k.2)
  %k.4 = s32[] add(%two, %half)
  %k.5 = s32[] add(%k, %k)
  %x = f32[4] get-tuple-element(%c.1), index=1
  ROOT %next = (s32[], f32[4]) tuple({next_}, %x)
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x.1 = f32[4] parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[4]) tuple(%zero, %x.1)
  %last = (s32[], f32[4]) while(%first), condition=%condition, body=%body
  ROOT %result = f32[4] get-tuple-element(%last), index=1
}}
"""
    assert [one.times for one in Module(text).executed() if one.instruction.name.strip("%") == "x"] == [trips]


def test_collectives_that_are_started_and_finished_apart_count_once():
    text = """ENTRY %main (x: f32[4,8]) -> f32[16,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %rd = f32[4,8]{1,0} all-reduce-done(%r)
  %g = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%rd), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %gd = f32[16,8]{1,0} all-gather-done(%g)
}
"""
    found = costs.collectives(Module(text), devices=4)
    assert [(one.kind, one.bytes, one.sent) for one in found] == [("all-reduce", 128, 192), ("all-gather", 512, 384)]


def test_a_loop_moves_slices_and_what_is_on_the_chip_costs_no_memory_traffic():
    module = Module(TPU_TEXT)
    assert module.unknown_loops == []
    before, _, rest = TPU_TEXT.partition("%body")
    in_loop = [e for e in module.executed() if e.times == 12]
    assert in_loop
    with_loop = costs.memory_bytes(module)
    shorter = Module(before.replace("constant(12)", "constant(2)") + "%body" + rest)
    # A pass reads one slice, writes it, and reads the counter twice; the rest of the stack stays where it is.
    assert (with_loop - costs.memory_bytes(shorter)) / 10 == 2 * 64 * 64 * 4 + 2 * 4
