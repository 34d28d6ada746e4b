"""FLOPs of a compiled program's products."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from mmjax.parallel.mesh import MeshConfig, make_mesh
from mmjax.program import products
from mmjax.program.flops import count_flops, count_pallas_flops
from mmjax.program.hlo import Module
from support.hlo_texts import compiled


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


def test_what_a_loop_does_counts_as_often_as_it_runs(mesh):
    def function(x, w):
        def once(carry, weight):
            rows = jnp.tanh(carry @ weight)
            return rows @ weight, jnp.sum(rows)

        return jax.lax.scan(once, x, jnp.stack([w] * 7))

    module = compiled(function, (16, 24), (24, 24), mesh=mesh, spec=PartitionSpec(), out=None)
    assert products.flops(module) == 7 * 2 * 2 * 16 * 24 * 24
    assert module.unknown_loops == []

    def twice(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: function(x, w)[0], x)

    assert products.flops(compiled(twice, (16, 24), (24, 24), mesh=mesh)) == 3 * 7 * 2 * 2 * 16 * 24 * 24


def test_a_loop_of_unknown_length_is_named_and_counts_once(mesh):
    def function(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e3, lambda x: x @ w, x)

    module = compiled(function, (8, 8), (8, 8), mesh=mesh)
    assert len(module.unknown_loops) == 1
    assert products.flops(module) == 2 * 8**3


def test_of_a_conditionals_branches_the_larger_one_counts(mesh):
    def function(i, x, w):
        return jax.lax.switch(i[0].astype(jnp.int32), [lambda: x, lambda: (x @ w) @ w, lambda: jnp.sin(x)])

    module = compiled(function, (1,), (8, 8), (8, 8), mesh=mesh)
    assert products.flops(module) == 2 * 2 * 8**3


def test_flops_of_a_sharded_product_are_one_devices_share(mesh):
    module = compiled(
        lambda x, w: x @ w.T, (16, 24), (16, 24), mesh=mesh, spec=PartitionSpec(("data", "fsdp")),
        out=PartitionSpec(("data", "fsdp")),
    )  # fmt: skip
    assert products.flops(module) == 2 * 16 * 24 * 16 / 8


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
    module = Module(text)
    assert products.flops(module) == 2 * met * 2 * 6 * 5
    main = module.computations["main"]
    assert products.find_product(main.root, main).kind == "convolution"
    named = Module(text.replace("->b0f", '->b0f, metadata={op_name="jit(f)/dot_general"}')).computations["main"]
    assert products.find_product(named.root, named).kind == "product"  # of a TPU


FORMS = {
    "cuBLAS": (
        '(bf16[8,16,5], s8[64]) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config='
        '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}',
        ("bf16[8,16,7]", "bf16[8,7,5]"),
        2 * 8 * 16 * 5 * 7,
    ),
    "attention": (
        '(bf16[2,10,3,4], u8[0]) custom-call(%a, %b, %b), custom_call_target="__cudnn$fmhaSoftmax", backend_config='
        '{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"element_type":"BF16","dimensions":'
        '["2","3","10","12"],"tuple_shapes":[]}}}',
        ("bf16[2,10,3,4]", "bf16[2,12,3,4]"),
        2 * 2 * (2 * 3 * 10 * 12 * 4),
    ),
    "attention's gradient": (
        '(bf16[2,10,3,4], u8[0]) custom-call(%a, %b, %b), custom_call_target="__cudnn$fmhaSoftmaxBackward", '
        'backend_config={"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":["2","3","10","12"]}}}',
        ("bf16[2,10,3,4]", "bf16[2,12,3,4]"),
        5 * 2 * (2 * 3 * 10 * 12 * 4),
    ),
    "Pallas, estimated": (
        '(bf16[8,5], f32[8]) custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config='
        '{"custom_call_config":{"body":"TUzvUl","cost_estimate":{"transcendentals":"7","flops":"1234"}}}',
        ("bf16[8,7]", "bf16[7,5]"),
        1234,
    ),
    "Pallas, by its trace": (
        'bf16[8,5] custom-call(%a, %b), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(step)/short/pallas_call" stack_frame_id=1}',
        ("bf16[8,7]", "bf16[7,5]"),
        99,
    ),
    "Pallas, of another shape": (
        'bf16[8,6] custom-call(%a, %b), custom_call_target="tpu_custom_call", metadata={op_name="a/short/pallas_call"}',
        ("bf16[8,7]", "bf16[7,5]"),
        0,
    ),
    "no product": ('bf16[8] custom-call(%a, %b), custom_call_target="Sharding"', ("bf16[8]", "bf16[8]"), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_flops_inside_calls_of_libraries_and_kernels_are_counted(form):
    call, (a, b), expected = FORMS[form]
    parameters = f"  %a = {a} parameter(0)\n  %b = {b} parameter(1)\n"
    text = f"ENTRY %main (a: {a}, b: {b}) -> x {{\n{parameters}  ROOT %c = {call}\n}}\n"
    main = Module(text).computations["main"]
    product = products.find_product(main.root, main, {("short", (8, 5)): 99.0})
    assert (None if product is None else product.flops) == expected
    assert product is None or product.dtype == "bf16"


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("Forward", ("[2,16,16,3]", "[8,4,4,3]"), "[2,4,4,8]"),
        ("BackwardInput", ("[2,4,4,8]", "[8,4,4,3]"), "[2,16,16,3]"),
        ("BackwardFilter", ("[2,16,16,3]", "[2,4,4,8]"), "[8,4,4,3]"),
    ],
)
def test_a_convolution_of_cudnn_costs_the_same_in_all_directions(target, operands, result):
    a, b = (f"bf16{shape}" for shape in operands)
    text = f"""ENTRY %main (a: {a}, b: {b}) -> x {{
  %a = {a} parameter(0)
  %b = {b} parameter(1)
  ROOT %c = (bf16{result}, u8[0]) custom-call(%a, %b), window={{size=4x4 stride=4x4}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"
}}
"""  # noqa: E501
    assert products.flops(Module(text)) == 2 * 2 * 4 * 4 * 8 * 4 * 4 * 3


def test_a_pallas_kernel_is_counted_for_every_step_of_its_grid_and_found_by_name():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def whole(x, y):
        def once(carry, _):
            return carry + run(x, y), None

        run = pl.pallas_call(
            kernel,
            grid=(4,),
            name="short",
            out_shape=jax.ShapeDtypeStruct((4, 8, 5), jnp.float32),
            in_specs=[pl.BlockSpec((None, *a.shape[1:]), lambda i: (i, 0, 0)) for a in (x, y)],
            out_specs=pl.BlockSpec((None, 8, 5), lambda i: (i, 0, 0)),
            interpret=True,
        )
        return jax.lax.scan(once, jnp.zeros((4, 8, 5)), length=3)[0]

    traced = jax.make_jaxpr(whole)(jnp.zeros((4, 8, 7)), jnp.zeros((4, 7, 5)))
    assert count_flops(traced) == 3 * 4 * 2 * 8 * 7 * 5
    assert count_pallas_flops(traced) == {("short", (4, 8, 5)): 4 * 2 * 8 * 7 * 5}
