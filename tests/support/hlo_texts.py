"""Texts of compiled programs, reduced to what the tests look at, and programs compiled here."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.program.hlo import Module


def compiled(function, *shapes, mesh, spec=None, out=None):
    """The program's text for float32 arrays of these shapes."""
    place = NamedSharding(mesh, PartitionSpec() if spec is None else spec)
    arguments = [jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for shape in shapes]
    result = None if out is None else NamedSharding(mesh, out)
    return Module(jax.jit(function, out_shardings=result).lower(*arguments).compile().as_text())


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

GPU_TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "PACKAGE/models/layers.py"
2 "/elsewhere/flax/nnx/module.py"

FunctionNames
1 "Dense.__call__"
2 "wrapper"

FileLocations
1 {file_name_id=1 function_name_id=1 line=80 end_line=80 column=8 end_column=20}
2 {file_name_id=2 function_name_id=2 line=12 end_line=12 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=1}


%product_of_a_slice (p0: bf16[12,64,64], p1: s32[], p2: bf16[512,64]) -> (bf16[512,64], s8[4096]) {
  %p2 = bf16[512,64]{1,0} parameter(2)
  %p0 = bf16[12,64,64]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %flat = bf16[64,64]{1,0} bitcast(%cut)
  ROOT %call = (bf16[512,64]{1,0}, s8[4096]{0}) custom-call(%p2, %flat), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}
}

%keep (s: bf16[12,512,64], x: bf16[512,64], i: s32[]) -> bf16[12,512,64] {
  %s = bf16[12,512,64]{2,1,0} parameter(0)
  %x = bf16[512,64]{1,0} parameter(1)
  %row = bf16[1,512,64]{2,1,0} bitcast(%x)
  %i = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = bf16[12,512,64]{2,1,0} dynamic-update-slice(%s, %row, %i, %none, %none)
}

%zeros () -> bf16[12,512,64] {
  %nothing = bf16[] constant(0)
  ROOT %filled = bf16[12,512,64]{2,1,0} broadcast(%nothing), dimensions={}
}

%turn (t: bf16[512,64]) -> bf16[64,512] {
  %t = bf16[512,64]{1,0} parameter(0)
  ROOT %turned = bf16[64,512]{1,0} transpose(%t), dimensions={1,0}
}

%sum (u: bf16[64,512]) -> f32[64] {
  %u = bf16[64,512]{1,0} parameter(0)
  %wide = f32[64,512]{1,0} convert(%u)
  %start = f32[] constant(0)
  ROOT %summed = f32[64]{0} reduce(%wide, %start), dimensions={1}, to_apply=%add
}

%double (v: f32[64]) -> f32[64] {
  %v = f32[64]{0} parameter(0)
  ROOT %twice = f32[64]{0} add(%v, %v)
}

%condition (c: (s32[], bf16[12,512,64])) -> pred[] {
  %c = (s32[], bf16[12,512,64]{2,1,0}) parameter(0)
  %n = s32[] constant(12)
  %k = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%k, %n), direction=LT
}

%body (c: (s32[], bf16[12,64,64], bf16[512,64], bf16[12,512,64])) -> (s32[], bf16[12,64,64], bf16[512,64], bf16[12,512,64]) {
  %c.1 = (s32[], bf16[12,64,64]{2,1,0}, bf16[512,64]{1,0}, bf16[12,512,64]{2,1,0}) parameter(0)
  %k.1 = s32[] get-tuple-element(%c.1), index=0
  %w = bf16[12,64,64]{2,1,0} get-tuple-element(%c.1), index=1
  %h = bf16[512,64]{1,0} get-tuple-element(%c.1), index=2
  %kept = bf16[12,512,64]{2,1,0} get-tuple-element(%c.1), index=3
  %multiplied = (bf16[512,64]{1,0}, s8[4096]{0}) fusion(%w, %k.1, %h), kind=kCustom, calls=%product_of_a_slice
  %y = bf16[512,64]{1,0} get-tuple-element(%multiplied), index=0
  %fusion-start = ((bf16[12,512,64]{2,1,0}, bf16[512,64]{1,0}, s32[]), bf16[12,512,64]{2,1,0}, u32[]) fusion-start(%kept, %y, %k.1), kind=kLoop, calls=%keep, metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice" stack_frame_id=3}
  %fusion-done = bf16[12,512,64]{2,1,0} fusion-done(%fusion-start)
  ROOT %next = (s32[], bf16[12,64,64]{2,1,0}, bf16[512,64]{1,0}, bf16[12,512,64]{2,1,0}) tuple(%k.1, %w, %y, %fusion-done)
}

ENTRY %main (w.1: bf16[12,64,64], x.1: bf16[512,64], g: f32[1000]) -> f32[64] {
  %w.1 = bf16[12,64,64]{2,1,0} parameter(0)
  %x.1 = bf16[512,64]{1,0} parameter(1)
  %g = f32[1000]{0} parameter(2)
  %zero.1 = s32[] constant(0)
  %stack = bf16[12,512,64]{2,1,0} fusion(), kind=kLoop, calls=%zeros
  %first = (s32[], bf16[12,64,64]{2,1,0}, bf16[512,64]{1,0}, bf16[12,512,64]{2,1,0}) tuple(%zero.1, %w.1, %x.1, %stack)
  %begun = f32[1000]{0} all-reduce-start(%g), replica_groups={{0,1}}, to_apply=%add
  %last = (s32[], bf16[12,64,64]{2,1,0}, bf16[512,64]{1,0}, bf16[12,512,64]{2,1,0}) while(%first), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %ended = f32[1000]{0} all-reduce-done(%begun)
  %begun.2 = f32[1000]{0} all-reduce-start(%ended), replica_groups={{0,1}}, to_apply=%add
  %ended.2 = f32[1000]{0} all-reduce-done(%begun.2)
  %out = bf16[512,64]{1,0} get-tuple-element(%last), index=2
  %across = bf16[64,512]{1,0} fusion(%out), kind=kInput, calls=%turn
  %reduced = f32[64]{0} fusion(%across), kind=kInput, calls=%sum, metadata={op_name="jit(step)/transpose(jvp())/reduce_sum" source_file="/elsewhere/loss.py" source_line=7}
  ROOT %doubled = f32[64]{0} fusion(%reduced), kind=kLoop, calls=%double, metadata={op_name="jit(step)/rematted_computation/add"}
}
"""  # noqa: E501
"""A scan of twelve products on a GPU, as jax 0.12 compiles it: each slice is cut inside of the product's call."""
