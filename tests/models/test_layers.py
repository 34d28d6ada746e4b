"""How the blocks run changes nothing of what they compute: loops, what is kept, stages, products in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.models.block_stack import run_blocks
from mmjax.models.clip import Clip
from mmjax.models.layers import LayerNorm, activate
from support import clip_models, towers_reference
from support.clip_models import TOKENS
from support.jaxprs import equations, low_precision_sums

# One position of each sequence is pooled in the first pair of towers, all in the second, where pads are also masked;
# the third pair is for what takes long to compile.
ONE = {"vision": {"layers": 3}, "text": {"layers": 3}}
ALL = {
    "vision": {"layers": 3, "pool_type": "avg", "qk_norm": True},
    "text": {"layers": 3, "pool_type": "mean", "no_causal_mask": True, "qk_norm": True},
}
SHORT = {"vision": {"pool_type": "avg"}, "text": ALL["text"] | {"layers": 2}}


def prepared(towers, **structure):
    config = clip_models.config(**towers, **structure)
    graph, shapes = clip_models.split(config)
    return config, graph, clip_models.random_params(shapes)


def scalar(graph, images):
    """A function of the parameters in which every number of both embeddings counts differently."""
    rng = np.random.default_rng(5)
    rows = len(next(iter(images.values()))), len(TOKENS)
    weights = [rng.normal(size=(n, 6)).astype(np.float32) for n in rows]

    def value(params):
        model = clip_models.model(graph, params)
        return jnp.sum(weights[0] * model.encode_image(images)) + jnp.sum(weights[1] * model.encode_text(TOKENS))

    return value, weights


def assert_close(got, expected, *, tolerance):
    scale = max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale), got, expected)


def test_in_bfloat16_the_backward_pass_keeps_kernels_in_it():
    config = clip_models.config(**ONE, scan=False, remat="dots")
    graph, params = clip_models.split(config, dtype=jnp.bfloat16)
    tokens = jnp.ones((1, 5, 8), jnp.bfloat16)

    def trunk(params):
        return run_blocks(clip_models.model(graph, params).visual.blocks, tokens, scan=False, remat="dots")[0]

    kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(trunk, params)[1], params))
    kernels = {leaf.dtype for leaf in kept if leaf.size % 64 == 0 and leaf.size}
    assert kernels == {jnp.dtype("bfloat16")}


def test_on_a_cpu_the_gradient_of_a_kernel_sums_over_one_axis():
    """Over two, images and tokens, both factors would first be transposed."""
    config, graph, params = prepared(ONE)
    mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
    on_cpu = nnx.split(Clip(config, rngs=nnx.Rngs(0), row_sharding=NamedSharding(mesh, PartitionSpec("data"))))[0]
    summed, results = {}, {}
    for name, structure in (("unknown", graph), ("cpu", on_cpu)):
        value, _ = scalar(structure, clip_models.images(config))
        step = jax.value_and_grad(value)
        products = [e for e in equations(jax.make_jaxpr(step)(params).jaxpr) if e.primitive.name == "dot_general"]
        axes = [(e.params["dimension_numbers"], e.outvars[0].aval.ndim) for e in products]
        # Of two axes, by a product that has no batch: a kernel's gradient.
        summed[name] = sum(len(contracted[0]) == 2 and ndim == 2 for (contracted, _), ndim in axes)
        results[name] = jax.jit(step)(params)
    assert summed["unknown"] >= 2 * 6 and summed["cpu"] == 0
    assert_close(results["cpu"], results["unknown"], tolerance=1e-6)


def test_loops_and_what_is_kept_change_nothing():
    results = {}
    loops = [(True, remat) for remat in ("none", "dots", "attention", "offload")]
    for scan, remat in ((False, "none"), *loops, (False, "full")):
        config, graph, params = prepared(SHORT, scan=scan, remat=remat)
        value, _ = scalar(graph, clip_models.images(config))
        results[scan, remat] = jax.jit(jax.value_and_grad(value))(params)
    value, gradient = results.pop((False, "none"))
    for got_value, got_gradient in results.values():
        assert_close(got_value, value, tolerance=1e-6)
        assert_close(got_gradient, gradient, tolerance=1e-5)


def test_what_is_offloaded_is_in_the_hosts_memory_between_the_passes():
    """As a TPU would be told; a CPU's memory is the host's."""
    count = {}
    for remat in ("dots", "offload"):
        config, graph, params = prepared(SHORT, remat=remat)
        value, _ = scalar(graph, clip_models.images(config))
        text = jax.jit(jax.grad(value)).trace(params).lower(lowering_platforms=("tpu",)).as_text()
        count[remat] = text.count('_xla_buffer_placement = "pinned_host"')
    assert count["dots"] == 0 and count["offload"] >= 14  # seven products a block, in two towers


@pytest.mark.parametrize("scan", [False, True], ids=["written out", "loop"])
def test_what_is_kept_shrinks_from_none_to_dots_to_attention_to_full(scan):
    def kept(remat):
        config, graph, params = prepared(ONE, scan=scan, remat=remat)
        value, _ = scalar(graph, clip_models.images(config, n=16))
        pullback = jax.eval_shape(lambda params: jax.vjp(value, params)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    none, dots, attention, full = (kept(remat) for remat in ("none", "dots", "attention", "full"))
    assert full < 0.7 * attention and dots < 0.7 * none
    hidden = 16 * 32 * 4  # bytes of a token of all images: in two blocks all ten, and in the last one that is pooled
    assert dots - attention >= (2 * 10 + 1) * hidden


def test_a_loop_is_one_program_for_any_depth():
    def size(scan, layers):
        config, graph, params = prepared({"vision": {"layers": layers}, "text": {"layers": layers}}, scan=scan)
        value, _ = scalar(graph, clip_models.images(config))
        return sum(
            equation.primitive.name == "dot_general" for equation in equations(jax.make_jaxpr(value)(params).jaxpr)
        )

    assert size(True, 3) == size(True, 6)
    assert size(False, 6) > 1.5 * size(False, 3)


@pytest.mark.parametrize("scan", [True, False])
def test_blocks_that_are_frozen_give_the_same_and_get_no_gradient(scan):
    config, graph, params = prepared({"vision": {"layers": 4}}, scan=scan)
    images = clip_models.images(config)

    def run(params, frozen):
        model = clip_models.model(graph, params)
        model.visual.frozen_blocks = frozen
        pooled, inputs, _ = model.visual.run(model.visual.embed(images), blocks=(0, 2, 3))
        return jnp.sum(jnp.square(pooled)), inputs

    compiled = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (value, inputs), want = compiled(params, 0)
    for frozen in (2, 3):
        (again, same), got = compiled(params, frozen)
        assert_close(again, value, tolerance=1e-5)
        assert inputs.keys() == same.keys()
        for k, x in inputs.items():
            assert_close(same[k], x, tolerance=1e-5)
        pairs = zip(*(jax.tree.leaves(grads["visual"]["blocks"]) for grads in (got, want)), strict=True)
        for a, b in pairs:
            assert not np.any(a[:frozen])
            np.testing.assert_allclose(a[frozen:], b[frozen:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activations_are_their_equations_far_from_zero_too(kind):
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = towers_reference.activation(x.astype(np.float64), kind)
    np.testing.assert_allclose(activate(jnp.asarray(x), kind), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("towers, scan", [(ONE, True), (ALL, False)], ids=["one, loop", "all, written out"])
def test_a_tower_may_be_left_and_entered_between_any_blocks(towers, scan):
    config, graph, params = prepared(towers, scan=scan)

    @jax.jit
    def stages(params, images):
        model = clip_models.model(graph, params)
        x = model.visual.run(model.visual.embed(images), blocks=range(4)).block_inputs
        y = model.text.run(model.text.embed(TOKENS), TOKENS, blocks=range(4)).block_inputs
        visual = [model.visual.project(model.visual.pool(x[k], start=k)) for k in range(4)]
        text = [model.text.project(model.text.pool(y[k], TOKENS, start=k)) for k in range(4)]
        return visual, text, model.visual.run(x[1], start=1, blocks=[3]).block_inputs[3], x[3]

    images = clip_models.images(config)
    visual, text, entered_late, whole = stages(params, images)
    double = clip_models.double(params)
    for k in range(4):
        assert_close(visual[k], towers_reference.encode_image(double, images, config=config), tolerance=1e-5)
        assert_close(text[k], towers_reference.encode_text(double, TOKENS, config=config), tolerance=1e-5)
    assert_close(entered_late, whole, tolerance=1e-6)
    assert whole.shape == (2, 9 + 1, 8)


@pytest.mark.parametrize("start, stop", [(2, 1), (0, 4), (-1, 2)])
def test_blocks_that_are_not_there_are_refused(start, stop):
    _, graph, params = prepared(ONE)
    model = clip_models.model(graph, params)
    with pytest.raises(ValueError, match=rf"blocks {start} to {stop}.*3"):
        run_blocks(model.visual.blocks, jnp.zeros((1, 10, 8)), start=start, stop=stop, scan=True, remat="none")


@pytest.mark.parametrize(
    "towers",
    [
        {},
        {
            "vision": {
                "stem": "conv", "stem_widths": (4, 8), "image_size": 8, "patch_bias": True, "registers": 1,
                "pool_type": "map", "proj_bias": True, "qk_norm": True, "activation": "gelu_tanh",
                "modalities": ("image", "depth"), "modality_channels": (3, 1), "fusion": "tokens",
            },
            "text": {"pool_type": "mean", "proj_bias": True, "qk_norm": True, "activation": "quick_gelu"},
        },
    ],
    ids=["clip", "every part"],
)  # fmt: skip
def test_each_parameters_gradient_is_the_references_slope(towers):
    """Central differences of the float64 form, along a random direction of each parameter alone and of all."""
    config, graph, params = prepared(towers)
    images = clip_models.images(config)
    value, weights = scalar(graph, images)
    gradient = clip_models.double(jax.jit(jax.grad(value))(params))
    at = clip_models.double(params)
    rng = np.random.default_rng(9)
    direction = {k: rng.normal(size=v.shape) for k, v in at.items()}

    def reference(params, tower):
        if tower == "visual":
            return (weights[0] * towers_reference.encode_image(params, images, config=config)).sum()
        return (weights[1] * towers_reference.encode_text(params, TOKENS, config=config)).sum()

    def slope(move, step=1e-5):
        ahead, behind = ({k: v + s * move.get(k, 0) for k, v in at.items()} for s in (step, -step))
        towers = {k.split(".")[0] for k in move} & {"visual", "text"}
        return sum(reference(ahead, tower) - reference(behind, tower) for tower in towers) / (2 * step)

    parts = {k: slope({k: move}) for k, move in direction.items()}
    scale = max(map(abs, parts.values()))
    for path, expected in parts.items():
        assert np.sum(gradient[path] * direction[path]) == pytest.approx(expected, rel=1e-4, abs=2e-6 * scale), path
    # A softmax does not see what adds one number to all of a row's logits; nothing here sees the temperature.
    blind = {path for path, expected in parts.items() if abs(expected) < 1e-5 * scale}
    assert all(path.startswith("logit_") or path.endswith((".key.bias", ".ln_k.bias")) for path in blind)
    total = sum(np.sum(gradient[path] * direction[path]) for path in direction)
    assert total == pytest.approx(slope(direction), rel=1e-4)


def test_towers_in_bfloat16_keep_float32_parameters_results_and_gradients():
    config, graph, params = prepared(ALL)
    half, shapes = clip_models.split(config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    images = clip_models.images(config, n=8)

    def encode(graph):
        def both(params):
            model = clip_models.model(graph, params)
            return model.encode_image(images), model.encode_text(TOKENS)

        return jax.jit(both)(params)

    for one, two in zip(encode(graph), encode(half), strict=True):
        assert one.dtype == two.dtype == jnp.float32
        error = np.linalg.norm(one - two) / np.linalg.norm(one)
        assert 1e-5 < error < 0.05  # not the same products, but near
    gradient = jax.eval_shape(jax.grad(scalar(half, clip_models.images(config))[0]), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("towers", [ONE, ALL], ids=["one", "all"])
def test_in_bfloat16_products_are_in_it_and_norms_and_softmax_are_not(towers):
    config = clip_models.config(**towers)
    graph, shapes = clip_models.split(config, dtype=jnp.bfloat16)
    images = clip_models.images(config)

    def both(params):
        model = clip_models.model(graph, params)
        return model.encode_image(images), model.encode_text(TOKENS)

    program = list(equations(jax.make_jaxpr(both)(shapes).jaxpr))

    def inputs(*names):
        return {v.aval.dtype for e in program if e.primitive.name in names for v in e.invars}

    assert inputs("dot_general") == {jnp.dtype("bfloat16")}
    assert inputs("exp", "rsqrt") == {jnp.dtype("float32")}


PARTS = {
    "prefix": ({"registers": 2, "patch_bias": True, "proj_bias": True, "qk_norm": True}, {"proj_bias": True}),
    "modalities": (
        {"modalities": ("image", "depth"), "modality_channels": (3, 1), "fusion": "tokens"},
        {"pool_type": "mean"},
    ),
    "map": ({"pool_type": "map", "stem": "conv", "stem_widths": (8, 8), "patch_bias": True}, {}),
}


@pytest.mark.parametrize("parts", PARTS)
def test_in_bfloat16_what_rows_share_is_summed_in_float32(parts):
    """Gradients of biases, positions, class tokens and the like are sums over all rows of a batch."""
    config = clip_models.config(*PARTS[parts])
    graph, shapes = clip_models.split(config, dtype=jnp.bfloat16)
    value, _ = scalar(graph, clip_models.images(config))
    assert not low_precision_sums(jax.make_jaxpr(jax.grad(value))(shapes).jaxpr)


def test_a_norm_in_bfloat16_sees_small_differences_of_large_numbers():
    norm = LayerNorm(4, eps=1e-5, dtype=jnp.bfloat16)
    got = norm(jnp.array([[1000.0, 1001.0, 1002.0, 1003.0]]))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32)[0], np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-2)


def encode_text(text, tokens):
    _, graph, params = prepared({"text": text})
    return np.asarray(jax.jit(lambda params: clip_models.model(graph, params).encode_text(tokens))(params))


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_what_follows_the_end_of_a_text_does_not_matter(pool):
    pad, bos, eos = clip_models.PAD, clip_models.BOS, clip_models.EOS
    tokens = np.array(
        [
            [bos, 4, 5, eos, pad, pad, pad],
            [bos, 4, 5, eos, 9, 16, 1],
            [bos, 4, 5, eos, eos, eos, pad],
            [bos, 4, 6, eos, pad, pad, pad],  # another word: another embedding
        ],
        np.int32,
    )
    got = encode_text({"pool_type": pool}, tokens)
    np.testing.assert_array_equal(got[1:3], got[[0, 0]])
    assert np.abs(got[3] - got[0]).max() > 1e-3
    short = encode_text({"pool_type": pool}, tokens[:1, :4])
    np.testing.assert_allclose(short, got[:1], atol=1e-6)
    both_ways = encode_text({"pool_type": pool, "no_causal_mask": True}, tokens)
    assert np.abs(both_ways[1] - both_ways[0]).max() > 1e-3


@pytest.mark.parametrize("no_causal_mask", [False, True], ids=["causal", "both ways"])
def test_pads_do_not_matter_to_a_mean(no_causal_mask):
    pad = clip_models.PAD
    text = {"pool_type": "mean", "no_causal_mask": no_causal_mask}
    words = np.array([[17, 4, 5, 18], [17, 9, 18, pad]], np.int32)
    padded = np.pad(words, ((0, 0), (0, 3)), constant_values=pad)
    short, long = encode_text(text, words), encode_text(text, padded)
    np.testing.assert_allclose(long, short, atol=1e-6)
    counted = encode_text(text | {"pad_id": 16}, padded)
    assert np.abs(counted - long).max() > 1e-3


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"8 tokens.*context_length=7"):
        encode_text({}, np.zeros((1, 8), np.int32))


def test_starting_values_are_those_of_the_papers():
    """Spread of each kind of parameter, and that layers differ; on towers wide enough to measure."""
    width, layers = 64, 4
    tower = {"width": width, "layers": layers}
    config = clip_models.config(
        vision={"head_width": 16, "patch_bias": True, "proj_bias": True, **tower},
        text={"heads": 4, "vocab_size": 300, "context_length": 50, "proj_bias": True, **tower},
        embed_dim=96, init_logit_scale=1.25, init_logit_bias=-10.0,
    )  # fmt: skip
    params = clip_models.flat(nnx.to_pure_dict(nnx.state(Clip(config, rngs=nnx.Rngs(3)))))
    assert params["logit_scale"] == 1.25 and params["logit_bias"] == -10
    residual = (2 * layers * width) ** -0.5
    spread = {
        "text.token_embed.embedding": 0.02,
        "text.pos_embed": 0.01,
        "text.blocks.attn.query.kernel": width**-0.5,
        "text.blocks.attn.key.kernel": width**-0.5,
        "text.blocks.attn.value.kernel": width**-0.5,
        "text.blocks.attn.out.kernel": residual,
        "text.blocks.mlp.fc1.kernel": (2 * width) ** -0.5,
        "text.blocks.mlp.fc2.kernel": residual,
        "text.proj.kernel": width**-0.5,
        "visual.proj.kernel": width**-0.5,
        "visual.pos_embed": width**-0.5,
        # torch's defaults are uniform: the bound over the root of three
        "visual.blocks.attn.query.kernel": (6 / (4 * width)) ** 0.5 / 3**0.5,
        "visual.blocks.attn.value.kernel": (6 / (4 * width)) ** 0.5 / 3**0.5,
        "visual.blocks.mlp.fc1.kernel": width**-0.5 / 3**0.5,
        "visual.blocks.mlp.fc2.kernel": (4 * width) ** -0.5 / 3**0.5,
        "visual.patch_embed.kernel": (4 * 4 * 3) ** -0.5 / 3**0.5,
    }
    for path, sd in spread.items():
        value = np.asarray(params[path])
        assert value.std() == pytest.approx(sd, rel=4 / (2 * value.size) ** 0.5), path
        assert abs(value.mean()) < 4 * sd / value.size**0.5, path
    for path, value in params.items():
        if path.endswith("bias") and path != "logit_bias":
            assert not np.any(value), path
        if path.endswith("scale") and path != "logit_scale":
            assert np.all(np.asarray(value) == 1), path
        if ".blocks." in path and path.endswith("kernel"):
            assert len({np.asarray(layer).tobytes() for layer in value}) == layers, path
    drawn = [np.asarray(v).ravel()[:64].tobytes() for k, v in params.items() if k.endswith("kernel")]
    assert len(set(drawn)) == len(drawn)  # no two parts share their numbers


def test_without_a_bias_the_model_has_none():
    _, graph, params = prepared({})
    assert "logit_bias" not in params and clip_models.model(graph, params).logit_bias is None
