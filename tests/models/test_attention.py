"""Attention's values and gradients against float64, and in which numbers it computes and keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.attention import attend
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
