"""Low-rank adapters: their sizes and first values, and that a merged model is the unmerged one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.core.config import ConfigError
from mmjax.core.state import flatten
from mmjax.models.clip import Clip
from mmjax.models.lora import add_adapters, list_adapters, merge_adapters
from support import clip_models, towers_reference

CONFIG = clip_models.config({"patch_bias": True, "layers": 3}, {"proj_bias": True}, remat="none")
EVERY_KERNEL = (".*",)


def adapted(config=CONFIG, *, targets=EVERY_KERNEL, rank=2, scale=0.5, seed=0, dtype=jnp.float32):
    """The model's structure and its parameters by path, those of adapters too."""

    def create():
        model = Clip(config, rngs=nnx.Rngs(0), dtype=dtype)
        add_adapters(model, rank=rank, scale=scale, targets=targets, seed=seed)
        return model

    graph, state = nnx.split(create())
    return graph, nnx.to_pure_dict(state)


def embedded(graph, params, config=CONFIG):
    model = nnx.merge(graph, nnx.State(params))
    return model.encode_image(clip_models.images(config)), model.encode_text(clip_models.TOKENS)


def test_an_adapter_has_rank_times_inputs_and_outputs_for_each_layer():
    _, params = adapted(
        targets=("visual/blocks/attn/(query|out)", "text/blocks/mlp/fc1", "visual/patch_embed", "text/proj")
    )
    arrays = flatten(params)
    layers = {adapter.layer: (adapter.a, adapter.b) for adapter in list_adapters(arrays)}
    assert {layer: (a.shape, b.shape) for layer, (a, b) in layers.items()} == {
        "visual/blocks/attn/query": ((3, 8, 2), (3, 2, 2, 4)),
        "visual/blocks/attn/out": ((3, 2, 4, 2), (3, 2, 8)),
        "text/blocks/mlp/fc1": ((2, 8, 2), (2, 2, 32)),
        "visual/patch_embed": ((4, 4, 3, 2), (2, 8)),
        "text/proj": ((8, 2), (2, 6)),
    }
    assert sum(a.size + b.size for a, b in layers.values()) == 2 * (3 * 2 * 16 + 2 * 40 + 48 + 8 + 8 + 6)


def test_a_is_kaiming_uniform_and_b_zero_and_each_draws_for_itself():
    _, params = adapted(rank=4)
    arrays = flatten(params)
    for layer, a, b in list_adapters(arrays):
        kernel, stacked = arrays[f"{layer}/kernel"], "/blocks/" in layer
        inputs = a.size // 4 // (kernel.shape[0] if stacked else 1)
        assert np.abs(a).max() <= inputs**-0.5 and np.std(a) == pytest.approx((3 * inputs) ** -0.5, rel=0.3)
        assert not np.any(b) and len(np.unique(a)) > 0.9 * a.size
    _, alone = adapted(rank=4, targets=("text/blocks/attn/key",))
    _, other = adapted(rank=4, targets=("text/blocks/attn/key",), seed=1)
    path = "text/blocks/attn/key/lora/a"
    np.testing.assert_array_equal(flatten(alone)[path], arrays[path])
    assert not np.any(flatten(other)[path] == arrays[path])
    plain = flatten(nnx.to_pure_dict(nnx.state(Clip(CONFIG, rngs=nnx.Rngs(0)))))
    for path, array in plain.items():
        np.testing.assert_array_equal(array, arrays[path], err_msg=path)


def test_with_b_at_zero_the_model_is_the_plain_one_bit_for_bit():
    graph, params = adapted()
    plain, _ = nnx.split(Clip(CONFIG, rngs=nnx.Rngs(0)))
    bare = nnx.to_pure_dict(nnx.state(Clip(CONFIG, rngs=nnx.Rngs(0))))
    both = jax.jit(embedded, static_argnums=0)
    for got, want in zip(both(graph, params), both(plain, bare), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("scan", [True, False])
def test_a_merged_model_is_the_unmerged_one_and_the_reference(scan):
    config = clip_models.config({"patch_bias": True, "layers": 3}, {"proj_bias": True}, scan=scan)
    graph, params = adapted(config, scale=0.5)
    params = clip_models.random_params(params)
    unmerged = jax.jit(embedded, static_argnums=0)(graph, params)
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    merged = merge_adapters(arrays, scale=0.5)
    plain, shapes = clip_models.split(config)
    assert merged.keys() == flatten(shapes).keys()
    tree = jax.tree.unflatten(jax.tree.structure(shapes), [merged[path] for path in flatten(shapes)])
    for got, want in zip(unmerged, jax.jit(embedded, static_argnums=0)(plain, tree), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    exact = clip_models.double(tree)  # each kernel by its definition, with all sums over the rank written out
    for layer, a, b in list_adapters(arrays):
        kernel = arrays[f"{layer}/kernel"].astype(np.float64)
        for index in np.ndindex(*kernel.shape[:1] if "/blocks/" in layer else ()):
            product = np.tensordot(a[index].astype(np.float64), b[index].astype(np.float64), axes=1)
            kernel[index] += 0.5 * product
        np.testing.assert_allclose(merged[f"{layer}/kernel"], kernel, rtol=1e-5, atol=1e-6)
        exact[f"{layer}/kernel".replace("/", ".")] = kernel
    image = towers_reference.encode_image(exact, clip_models.images(config), config=config)
    text = towers_reference.encode_text(exact, clip_models.TOKENS, config=config)
    for got, want in zip(unmerged, (image, text), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("visual/atn",)}, r"^lora.targets: 'visual/atn' matches no kernel .*text/blocks/attn/key/kernel"),
        ({"targets": (".*", "text/token_embed")}, r"^lora.targets: 'text/token_embed' matches no kernel"),
        ({"targets": ()}, r"^lora.targets=\(\): names no kernel"),
        ({"rank": 7}, r"^lora.rank=7: text/proj/kernel is 8 x 6; use at most 6, or leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        adapted(**options)
