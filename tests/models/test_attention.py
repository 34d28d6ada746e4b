"""Attention's values and gradients against float64, and in which numbers it computes and keeps them."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from mmjax.models.attention import choice
from mmjax.models.attention.choice import choose_kernel
from mmjax.models.attention.kernels import attend
from mmjax.models.attention.short import attend_short
from mmjax.models.block_stack import run_blocks, stack_blocks
from mmjax.models.layers import BlockSpec, normal
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from support import clip_models
from support.jaxprs import equations

B, N, H, D = 3, 11, 2, 8


def operands(dtype, *, keys=N, seed=0):
    """Queries, keys and values, and a gradient of the result."""
    rng = np.random.default_rng(seed)
    shapes = (B, N, H, D), (B, keys, H, D), (B, keys, H, D), (B, N, H, D)
    return tuple(jnp.asarray(rng.normal(size=shape) * 1.5, dtype) for shape in shapes)


def reference(q, k, v, gradient, *, mask=None):
    """The result and the three gradients, in float64."""
    q, k, v, gradient = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v, gradient))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(D)
    logits = logits if mask is None else np.where(mask, logits, -1e30)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    weights = e / e.sum(-1, keepdims=True)
    by_weights = np.einsum("bqhd,bkhd->bhqk", gradient, v)
    by_logits = weights * (by_weights - (weights * by_weights).sum(-1, keepdims=True))
    by_logits = by_logits if mask is None else np.where(mask, by_logits, 0)
    return (
        np.einsum("bhqk,bkhd->bqhd", weights, v),
        np.einsum("bhqk,bkhd->bqhd", by_logits, k) / np.sqrt(D),
        np.einsum("bhqk,bqhd->bkhd", by_logits, q) / np.sqrt(D),
        np.einsum("bhqk,bqhd->bkhd", weights, gradient),
    )


def masks():
    causal = np.tril(np.ones((N, N), bool))[None, None]
    few = np.random.default_rng(1).random((B, 1, 1, N)) < 0.5
    few[0] = False  # a row that sees nothing
    return {"all": None, "causal": causal, "keys": few}


def both(function, q, k, v, gradient):
    result, pull = jax.vjp(function, q, k, v)
    return result, *pull(gradient)


def assert_near(got, expected, dtype):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        error = np.linalg.norm(np.asarray(one.astype(jnp.float32)) - other) / np.linalg.norm(other)
        assert error < (2e-6 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mask", ["all", "causal", "keys"])
def test_values_and_gradients_are_those_of_float64(mask, dtype):
    mask = masks()[mask]
    arrays = operands(dtype)
    got = jax.jit(lambda *arrays: both(lambda q, k, v: attend(q, k, v, mask=mask), *arrays))(*arrays)
    assert_near(got, reference(*arrays, mask=mask), dtype)


def towers(**structure):
    one = {"layers": 3, "qk_norm": True}
    config = clip_models.config(vision=one, text=one, **structure)
    graph, shapes = clip_models.split(config, dtype=jnp.bfloat16)
    images = clip_models.images(config)

    def value(params):
        model = clip_models.model(graph, params)
        return jnp.sum(model.encode_image(images)) + jnp.sum(model.encode_text(clip_models.TOKENS))

    return value, shapes


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_in_bfloat16_no_product_of_a_backward_pass_is_of_float32(remat):
    value, shapes = towers(remat=remat)
    program = equations(jax.make_jaxpr(jax.grad(value))(shapes).jaxpr)
    dtypes = {v.aval.dtype for e in program if e.primitive.name == "dot_general" for v in e.invars}
    assert dtypes == {jnp.dtype("bfloat16")}


def test_in_bfloat16_nothing_of_the_size_of_the_logits_is_kept_in_float32():
    value, shapes = towers(remat="dots")
    kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(value, params)[1], shapes))
    square = [leaf.dtype for leaf in kept if leaf.ndim >= 4 and leaf.shape[-1] == leaf.shape[-2]]
    assert square and set(square) == {jnp.dtype("bfloat16")}


def stack(kernel, *, width=8, dtype=jnp.float32, **options):
    spec = BlockSpec(
        width=width, heads=2, hidden=8, activation="gelu", ln_eps=1e-5, attention=kernel, **options,
        **{f"init_{name}": normal(0.5) for name in ("qkv", "out", "fc1", "fc2")},
    )  # fmt: skip
    return nnx.split(stack_blocks(spec, layers=3, rngs=nnx.Rngs(params=0), dtype=dtype))


@pytest.fixture
def emulated(monkeypatch):
    """cuDNN's kernel by the compiler, because there is no cuDNN here."""

    def emulate(*arrays, implementation, **options):
        assert implementation == "cudnn" and arrays[0].shape[1] % 2 == 0
        calls.append(options)
        return dot_product_attention(*arrays, implementation="xla", **options)

    calls, dot_product_attention = [], jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", emulate)
    return calls


@pytest.mark.parametrize(
    "causal, scan, run",
    [
        (False, True, {"position": 0, "record": (1, 2, 3)}),
        pytest.param(True, False, {"position": jnp.array([6, 2, 4])}, marks=pytest.mark.slow),
        pytest.param(False, False, {"rotation": True, "record": (0, 2)}, marks=pytest.mark.slow),
        (True, True, {"valid": jnp.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4], bool)}),
    ],
    ids=["one position and taps", "causal", "rotary", "padding is masked"],
)
def test_a_fused_kernels_padding_changes_no_value_no_tap_and_no_gradient(causal, scan, run, emulated):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(3, 7, 8)), jnp.float32)
    if run.pop("rotation", False):
        angles = rng.normal(size=(1, 7, 2))
        run["rotation"] = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)

    def evaluate(kernel):
        graph, state = stack(kernel, causal=causal, qk_norm=scan)

        def value(state, x):
            y, inputs = run_blocks(nnx.merge(graph, state), x, scan=scan, remat="dots", **run)
            return jnp.sum(jnp.sin(3 * y)) + sum(jnp.sum(jnp.sin(z)) for z in inputs.values()), (y, inputs)

        return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(state, x)

    expected = evaluate("xla")
    assert not emulated
    got = evaluate("cudnn")
    assert bool(emulated) == ("valid" not in run)
    for one, other in zip(got, expected, strict=True):
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(other))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * s), one, other)


@pytest.mark.parametrize("remat, forward", [("none", 1), ("dots", 1), ("offload", 1), ("full", 2)])
def test_cudnns_forward_kernel_runs_again_only_where_nothing_is_kept(remat, forward, monkeypatch):
    """As a GPU would be told."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91400)
    graph, state = stack("cudnn", width=16, causal=True, qk_norm=False, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((3, 7, 16), jnp.bfloat16)

    def value(state, x):
        return jnp.sum(run_blocks(nnx.merge(graph, state), x, scan=True, remat=remat)[0].astype(jnp.float32))

    text = jax.jit(jax.grad(value)).trace(state, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == forward
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


SHORT = pytest.mark.parametrize("causal", [False, True])


@SHORT
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("devices", [1, 4])
def test_the_kernel_for_short_sequences_is_attention_of_biased_products(causal, dtype, devices):
    q, k, v, gradient = (x[:2] for x in operands(dtype))
    q, k, v, gradient = (jnp.concatenate([x, -x[::-1] / 2]) for x in (q, k, v, gradient))
    rng = np.random.default_rng(4)
    bias = rng.normal(size=(3, H, D)).astype(np.float32)
    joined = jnp.concatenate([x.reshape(4, N, H * D) for x in (q, k, v)], axis=-1)
    rows = batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()[:devices]))

    def both(joined, bias, gradient):
        result, pull = jax.vjp(lambda x, b: attend_short(x, b, H, causal, rows, True), joined, bias)
        return result, *pull(gradient)

    result, by_joined, by_bias = jax.jit(both)(joined, bias.ravel(), gradient.reshape(4, N, H * D))
    double = [jnp.asarray(np.asarray(x, np.float32) + b, jnp.float32) for x, b in zip((q, k, v), bias, strict=True)]
    mask = masks()["causal"] if causal else None
    expected, *by_each = reference(*double, gradient, mask=mask)
    by_each = np.stack([x.reshape(4, N, H * D) for x in by_each], axis=2)
    assert_near([result], [expected.reshape(4, N, H * D)], dtype)
    assert_near([by_joined], [by_each.reshape(4, N, -1)], dtype)
    np.testing.assert_allclose(by_bias, by_each.sum((0, 1)).ravel(), rtol=0, atol=2e-2 * np.abs(by_each).max())


@SHORT
@pytest.mark.parametrize("remat, kernels", [("dots", 2), pytest.param("full", 3, marks=pytest.mark.slow)])
def test_blocks_with_the_kernel_for_short_sequences_are_the_same_and_run_it_once(causal, remat, kernels):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 7, 8)), jnp.float32)

    def program(kernel):
        graph, state = stack(kernel, causal=causal, qk_norm=False, qkv_bias="qv")

        def value(state, x):
            y, inputs = run_blocks(nnx.merge(graph, state), x, scan=True, remat=remat, record=(1,), position=2)
            return jnp.sum(jnp.sin(3 * y)), (y, inputs)

        return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True)), state

    (function, state), (reference, _) = program("pallas"), program("xla")
    traced = equations(jax.make_jaxpr(function)(state, x).jaxpr)
    assert sum(equation.primitive.name == "pallas_call" for equation in traced) == kernels
    for one, other in zip(function(state, x), reference(state, x), strict=True):
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(other))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * s), one, other)


def test_a_kernel_is_chosen_by_the_target_and_a_refusal_says_why(monkeypatch):
    monkeypatch.setattr(choice, "platform_of", lambda row_sharding: row_sharding.platform)

    def chosen(platform="gpu", dtype=jnp.bfloat16, text=None, tensor=1, **model):
        config = clip_models.config(text={"heads": 1, "width": 64} | (text or {}), **model)
        rows = types.SimpleNamespace(platform=platform, mesh=types.SimpleNamespace(shape={"tensor": tensor}))
        return str(choose_kernel(config, config.text_cfg, dtype=dtype, row_sharding=rows))

    monkeypatch.setattr(choice, "_cudnn_is_installed", lambda: False)
    assert chosen() == "xla (no cudnn: cuDNN is not installed)"
    monkeypatch.setattr(choice, "_cudnn_is_installed", lambda: True)
    assert chosen() == chosen(attention="cudnn") == "cudnn"
    assert chosen(attention="xla") == chosen(text={"attention": "xla"}, attention="cudnn") == "xla"
    assert chosen("cpu") == chosen(None) == "xla"
    assert chosen("cpu", attention="cudnn") == "xla (no cudnn: the platform is cpu)"
    assert chosen(dtype=jnp.float32) == "xla (no cudnn: precision is not bfloat16)"
    assert chosen(text={"pool_type": "mean"}) == "xla (no cudnn: padding is masked)"
    assert chosen(text={"width": 136}) == "xla (no cudnn: heads are 136 wide)"
    short = functools.partial(chosen, "tpu", attention="pallas")
    assert short() == "pallas" and chosen("cpu", attention="pallas") == "pallas (emulated)"
    assert short(text={"qk_norm": True}) == "xla (no pallas: queries and keys have norms)"
    assert short(text={"width": 32}) == "xla (no pallas: heads are 32 wide)"
    assert short(text={"context_length": 5000}) == "xla (no pallas: 5000 positions of width 64)"
    assert short(text={"mask_padding": True}) == "xla (no pallas: padding is masked)"
    assert short(tensor=2) == "xla (no pallas: mesh.tensor is 2)"
    assert chosen(attention="pallas") == "xla (no pallas: the platform is gpu)"
