"""The fusion encoder against an independent float64 form, and against torch where it is installed."""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.core.config import ConfigError
from mmjax.models.attention.grad_cam import grad_cam
from mmjax.models.config import TextConfig, VisionConfig
from mmjax.models.fusion import FusionEncoder, answer_pairs, embed_image_tokens, match_pairs
from mmjax.models.joint_config import FusionConfig
from mmjax.runs.start_weights import ArrayFile
from mmjax.weights.pretrained import Pretrained
from mmjax.weights.rules import SAME, Rule
from support import clip_models
from support.clip_models import EOS, PAD, TOKENS, VOCAB
from support.towers_reference import Params, activation, attention, layer_norm, mlp, softmax

IMAGE_WIDTH, WIDTH, PATCHES = 6, 8, 5
ALBEF = {"block_norm": "post", "ln_eps": 1e-12}
VILT = {"kind": "joint", "pool_tanh": True, "word_head": "own"}
CASES = {
    "albef": ALBEF,
    "cross, norms first, layer scales, tanh": {"pool_tanh": True, "ls_init_value": 0.1, "heads": 4},
    "vilt": VILT,
    "joint, norms after": {"kind": "joint", "block_norm": "res_post"},
}


def make(image_width=IMAGE_WIDTH, *, scan=False, remat="none", **options):
    """The encoder's structure, its random parameters, and the inputs."""
    config = FusionConfig(**{"layers": 2} | options)
    text = TextConfig(width=WIDTH, heads=2, context_length=7, vocab_size=VOCAB, pad_id=PAD, eos_id=EOS)
    shared = {"scan": scan, "remat": remat, "matmul_precision": "full", "dtype": jnp.float32}

    def create():
        return FusionEncoder(config, image_width=image_width, text=text, rngs=nnx.Rngs(0), **shared)

    graph, state = nnx.split(nnx.eval_shape(create))
    rng = np.random.default_rng(1)
    image = rng.normal(size=(len(TOKENS), PATCHES, image_width)).astype(np.float32)
    words = rng.normal(size=(len(TOKENS), TOKENS.shape[1], WIDTH)).astype(np.float32)
    return config, graph, clip_models.random_params(nnx.to_pure_dict(state)), image, words


def end_of(ids):
    return list(ids).index(EOS) + 1


def blocks(x, context, p, *, config, seen):
    """[N,D] and [K,D'] -> [N,D], one sublayer after the other."""
    for i in range(config.layers):
        layer = p.layer(i)
        steps = [("1", lambda h, layer=layer: attention(h, h, layer.under("attn"), config=config, seen=seen))]
        if context is not None:
            cross = lambda h, layer=layer: attention(h, context, layer.under("cross_attn"), config=config)  # noqa: E731
            steps.append(("cross", cross))
        steps.append(("2", lambda h, layer=layer: mlp(h, layer.under("mlp"), config=config)))
        for name, part in steps:
            norm = lambda h, layer=layer, name=name: layer_norm(h, layer.under(f"ln_{name}"), config.ln_eps)  # noqa: E731
            scale = layer.get(f"ls_{name}.gamma", 1.0)
            if config.block_norm == "pre":
                x = x + scale * part(norm(x))
            elif config.block_norm == "post":
                x = norm(x + scale * part(x))
            else:
                x = x + scale * norm(part(x))
    return x


def reference(image, words, ids, p, *, config):
    """Fused tokens of one pair, f64."""
    x, context, length = words, image, len(words)
    real = np.arange(length) < end_of(ids)
    if config.kind == "joint":
        if "image_proj.kernel" in p:
            context = context @ p["image_proj.kernel"] + p["image_proj.bias"]
        x = np.concatenate([x + p["type_embed"][0], context + p["type_embed"][1]])
        real, context = np.concatenate([real, np.ones(len(context), bool)]), None
    x = blocks(x, context, p.under("blocks"), config=config, seen=np.tile(real, (len(x), 1)))[:length]
    return x if config.block_norm == "post" else layer_norm(x, p.under("ln_final"), config.ln_eps)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_float64_form(name):
    config, graph, params, image, words = make(**CASES[name])
    p = Params(clip_models.double(params))
    table = np.random.default_rng(2).normal(size=(VOCAB, WIDTH)).astype(np.float32)

    @jax.jit
    def run(params):
        model = nnx.merge(graph, nnx.State(params))
        fused = model(image, words, TOKENS)
        return fused, model.match(image, words, TOKENS), model.word_logits(fused, table)

    fused, matches, logits = run(params)
    for row, ids in enumerate(TOKENS):
        expected = reference(image[row].astype(float), words[row].astype(float), ids, p, config=config)
        real = slice(end_of(ids))
        np.testing.assert_allclose(fused[row, real], expected[real], atol=2e-5)
        first = expected[0]
        if config.pool_tanh:
            first = np.tanh(first @ p["pooler.kernel"] + p["pooler.bias"])
        np.testing.assert_allclose(matches[row], first @ p["match_head.kernel"] + p["match_head.bias"], atol=2e-5)
        hidden = activation(expected @ p["word_hidden.kernel"] + p["word_hidden.bias"], "gelu")
        hidden = layer_norm(hidden, p.under("word_norm"), config.ln_eps)
        scores = hidden @ (p["word_out.kernel"] if config.word_head == "own" else table.T) + p["word_bias"]
        np.testing.assert_allclose(logits[row, real], scores[real], atol=5e-5)


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_what_follows_the_end_of_a_text_counts_for_nothing(kind):
    _, graph, params, image, words = make(kind=kind)
    match = jax.jit(lambda image, words: nnx.merge(graph, nnx.State(params)).match(image, words, TOKENS))
    other = words.copy()
    for row, ids in enumerate(TOKENS):
        other[row, end_of(ids) :] = 9.0
    np.testing.assert_array_equal(match(image, other), match(image, words))
    assert np.abs(match(image[::-1], words) - match(image, words)).max() > 1e-2  # but the image does


@pytest.mark.parametrize("name", CASES)
def test_two_images_are_the_float64_form(name):
    """ALBEF's blocks take turns, and have one pair of keys and values; ViLT's encoder runs twice."""
    config, graph, params, image, words = make(**CASES[name], images=2, answers=3)
    p = Params(clip_models.double(params))
    images = np.stack([image, image[::-1]], axis=1)
    got = jax.jit(lambda images: nnx.merge(graph, nnx.State(params)).answer(images, words, TOKENS))(images)
    for row, ids in enumerate(TOKENS):
        pair, x = images[row].astype(float), words[row].astype(float)
        if config.kind == "joint":
            types = (p | {"type_embed": p["type_embed"][[0, 1 + k]]} for k in range(2))
            ends = [reference(pair[k], x, ids, Params(q), config=config)[0] for k, q in enumerate(types)]
        else:
            shared = {
                f"blocks_2.cross_attn.{part}": p[f"blocks.cross_attn.{part}"]
                for part in ("key.kernel", "key.bias", "value.kernel", "value.bias")
            }
            assert not shared.keys() & p.keys()
            seen = np.tile(np.arange(len(x)) < end_of(ids), (len(x), 1))
            one = dataclasses.replace(config, layers=1)
            for layer in range(config.layers):
                for k, stack in enumerate(("blocks", "blocks_2")):
                    own = {key: value[layer : layer + 1] for key, value in Params(p | shared).under(stack).items()}
                    x = blocks(x, pair[k], Params(own), config=one, seen=seen)
            ends = [(x if config.block_norm == "post" else layer_norm(x, p.under("ln_final"), config.ln_eps))[0]]
        if config.pool_tanh:
            ends = [np.tanh(end @ p["pooler.kernel"] + p["pooler.bias"]) for end in ends]
        hidden = np.concatenate(ends) @ p["answer_hidden.kernel"] + p["answer_hidden.bias"]
        hidden = activation(layer_norm(hidden, p.under("answer_norm"), config.ln_eps), "gelu")
        np.testing.assert_allclose(got[row], hidden @ p["answer_out.kernel"] + p["answer_out.bias"], atol=5e-5)
    swapped = jax.jit(lambda images: nnx.merge(graph, nnx.State(params)).answer(images, words, TOKENS))(images[:, ::-1])
    assert np.abs(swapped - got).max() > 1e-3  # which is left and which is right counts


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_an_encoder_for_two_images_starts_from_one_for_one(kind):
    """Both blocks of ALBEF's, and both vectors of ViLT's kinds of images; heads may be others."""
    small = {"kind": kind, "layers": 1}
    both = {"modalities": ("left", "right"), "modality_channels": (3, 3), "modality_embed": False}
    one = clip_models.config(fusion=FusionConfig(**small))
    two = clip_models.config(vision=both, fusion=FusionConfig(**small, word_head="none", answers=2, images=2))
    paths = {key.replace(".", "/"): x for key, x in clip_models.flat(clip_models.split(two)[1]).items()}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for path, x in paths.items()}
    known = clip_models.flat(clip_models.random_params(clip_models.split(one)[1]))
    arrays = {key.replace(".", "/"): np.asarray(x) for key, x in known.items()}
    rules = tuple(Rule((path,), path, SAME) for path in arrays)
    loaded = Pretrained(spec="run", config=one, file=ArrayFile(Path("run"), arrays), rules=rules).read(two, target)
    assert all(path.startswith("fusion/answer_") for path in loaded.missing) and loaded.missing
    second = [path for path in target if path.startswith("fusion/blocks_2/")]
    assert bool(second) == (kind == "cross") and not any("cross_attn/key" in path for path in second)
    for path in second:
        np.testing.assert_array_equal(loaded.params[path], arrays[path.replace("blocks_2", "blocks")])
    if kind == "joint":
        np.testing.assert_array_equal(loaded.params["fusion/type_embed"], arrays["fusion/type_embed"][[0, 1, 1]])
    with pytest.raises(ConfigError, match=r"model.fusion: the weights of .run. have another"):
        other = dataclasses.replace(two, fusion=dataclasses.replace(two.fusion, layers=2))
        Pretrained(spec="run", config=one, file=ArrayFile(Path("run"), arrays), rules=rules).read(other, target)


@pytest.mark.parametrize("name", ["albef", "cross, norms first, layer scales, tanh"])
def test_maps_are_weights_times_slopes_of_the_match(name):
    """Slopes by differences in float64, weight by weight."""
    config, graph, params, image, words = make(**CASES[name], scan=True)
    p = Params(clip_models.double(params))
    run = jax.jit(lambda params: grad_cam(nnx.merge(graph, nnx.State(params)), image, words, TOKENS))
    got, row = run(params), 0
    end, heads = end_of(TOKENS[row]), config.heads or 2
    block, rest = p.under("blocks").layer(0), Params({k: v[1:] for k, v in p.under("blocks").items()})
    x, context = words[row].astype(float), image[row].astype(float)
    seen = np.tile(np.arange(len(x)) < end, (len(x), 1))
    pre = config.block_norm == "pre"

    def add(x, y, norm, scale):
        y = x + block.get(f"ls_{scale}.gamma", 1.0) * y
        return y if pre else layer_norm(y, block.under(f"ln_{norm}"), config.ln_eps)

    def normed(x, norm):
        return layer_norm(x, block.under(f"ln_{norm}"), config.ln_eps) if pre else x

    own = normed(x, "1")
    start = add(x, attention(own, own, block.under("attn"), config=config, seen=seen), "1", "1")
    cross, queries = block.under("cross_attn"), normed(start, "cross")
    q, k, v = (
        np.einsum("nd,dhe->hne", y, cross[f"{part}.kernel"]) + cross[f"{part}.bias"][:, None]
        for y, part in ((queries, "query"), (context, "key"), (context, "value"))
    )
    weights = np.array([[softmax(line) for line in q[h] @ k[h].T / q.shape[-1] ** 0.5] for h in range(heads)])

    def score(weights):
        out = np.einsum("hlk,hke,hed->ld", weights, v, cross["out.kernel"]) + cross["out.bias"]
        y = add(start, out, "cross", "cross")
        y = add(y, mlp(normed(y, "2"), block.under("mlp"), config=config), "2", "2")
        y = blocks(y, context, rest, config=dataclasses.replace(config, layers=1), seen=seen)
        first = (layer_norm(y, p.under("ln_final"), config.ln_eps) if pre else y)[0]
        if config.pool_tanh:
            first = np.tanh(first @ p["pooler.kernel"] + p["pooler.bias"])
        return (first @ p["match_head.kernel"] + p["match_head.bias"])[1]

    wanted = np.zeros(len(context))
    for h, l, t in np.ndindex(heads, end, len(context)):  # noqa: E741
        step = np.zeros_like(weights)
        step[h, l, t] = 1e-5
        slope = (score(weights + step) - score(weights - step)) / 2e-5
        wanted[t] += weights[h, l, t] * max(slope, 0) / heads / end
    assert wanted.max() > 1e-4
    np.testing.assert_allclose(got[row], wanted, rtol=1e-3, atol=1e-6)


def test_pairs_are_tokens_of_both_towers_through_a_head():
    """Towers and heads that only name what they are given."""
    rows = np.arange(4.0).reshape(4, 1, 1)  # first pictures 0 and 1, second ones 2 and 3
    tower = types.SimpleNamespace(
        embed=lambda x: x,
        run=lambda x, *ids, with_sequence: types.SimpleNamespace(sequence=x if with_sequence else None),
    )
    heads = {
        "match": lambda image, text, ids: np.stack(
            [0 * ids[:, 0], image[:, 0, 0] + 10 * text[:, 0] + 100 * ids[:, 0]], 1
        ),
        "answer": lambda image, text, ids: image[:, :, 0, 0] + 10 * text + 100 * ids,
    }
    for number, expected in ((1, rows), (2, np.array([[0.0, 2.0], [1.0, 3.0]])[..., None, None])):
        fusion = types.SimpleNamespace(config=types.SimpleNamespace(images=number), **heads)
        model = types.SimpleNamespace(visual=tower, text=tower, fusion=fusion)
        tokens = embed_image_tokens(model, rows)
        np.testing.assert_array_equal(tokens, expected)
        ids = np.arange(1, len(tokens) + 1)[:, None]
        if number == 1:
            np.testing.assert_array_equal(match_pairs(model, tokens, ids), np.arange(4) + 110 * np.arange(1, 5))
        else:
            np.testing.assert_array_equal(answer_pairs(model, tokens, ids), [[110, 112], [221, 223]])


def test_loops_and_what_is_kept_change_no_gradient_also_of_the_image():
    results = []
    for options in ({}, {"scan": True, "remat": "dots"}):
        _, graph, params, image, words = make(**ALBEF, **options)

        def total(params, image, graph=graph, words=words):
            return jnp.sum(jnp.sin(nnx.merge(graph, nnx.State(params)).match(image, words, TOKENS)))

        results.append(jax.jit(jax.grad(total, (0, 1)))(params, image))
    assert all(
        np.abs(leaf).max() > 1e-4 for leaf in (results[0][1], results[0][0]["blocks"]["cross_attn"]["key"]["kernel"])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


def test_a_model_has_it_by_its_section_alone_and_says_what_does_not_fit():
    config = clip_models.config()
    _, shapes = clip_models.split(config)
    _, fused = clip_models.split(clip_models.config(fusion=FusionConfig(layers=1)))
    assert "fusion" not in shapes and {k: v for k, v in fused.items() if k != "fusion"}.keys() == shapes.keys()
    with pytest.raises(ConfigError, match=r"model.fusion.heads=3: must divide the width .*text_cfg.width=8"):
        clip_models.config(fusion=FusionConfig(heads=3))
    for tower in ("vision", "text"):
        with pytest.raises(
            ConfigError, match=rf"model.{tower}_cfg.layers=0: a tower without blocks is for model.fusion"
        ):
            clip_models.config(**{tower: {"layers": 0}})
    with pytest.raises(ConfigError, match=r"model.fusion.attention='cudnn'"):
        FusionConfig(attention="cudnn")
    assert VisionConfig(layers=0).layers == 0


def test_towers_without_blocks_hand_on_what_they_embed():
    """ViLT: patches and words meet before any block."""
    vision = {"layers": 0, "no_ln_pre": True, "final_ln_after_pool": True}
    config = clip_models.config(vision=vision, text={"layers": 0, "block_norm": "post"}, fusion=FusionConfig(**VILT))
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    images = clip_models.images(config)

    @jax.jit
    def run(params):
        model = clip_models.model(graph, params)
        embedded, words = model.visual.embed(images), model.text.embed(TOKENS)
        vision, text = model.visual.run(embedded, with_sequence=True), model.text.run(words, TOKENS, with_sequence=True)
        return embedded, words, vision, text

    embedded, words, vision, text = run(params)
    np.testing.assert_array_equal(vision.sequence, embedded)
    np.testing.assert_array_equal(text.sequence, words)
    assert np.isfinite(vision.pooled).all() and np.isfinite(text.pooled).all()


def test_words_are_masked_before_their_positions_are_added():
    config = clip_models.config()
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    model = clip_models.model(graph, params)
    masked, vector = np.zeros(TOKENS.shape, bool), np.arange(8, dtype=np.float32)
    masked[1, 1] = True
    plain, changed = model.text.embed(TOKENS), model.text.embed(TOKENS, masked=masked, mask_vector=vector)
    np.testing.assert_allclose(changed[1, 1], vector + params["text"]["pos_embed"][1], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(changed)[~masked], np.asarray(plain)[~masked])


def test_albef_is_what_torch_computes():
    torch = pytest.importorskip("torch")
    config, graph, params, image, words = make(**ALBEF)
    p = {k: torch.tensor(np.asarray(v)) for k, v in clip_models.flat(params).items()}
    fused = nnx.merge(graph, nnx.State(params))(image, words, TOKENS)

    def attend(x, keys, name, layer, ignored=None):
        """torch's own module with these weights."""
        get = lambda part: p[f"blocks.{name}.{part}"][layer]  # noqa: E731
        module = torch.nn.MultiheadAttention(WIDTH, 2, kdim=keys.shape[-1], vdim=keys.shape[-1], batch_first=True)
        kernels = {part: get(f"{part}.kernel").reshape(-1, WIDTH).T for part in ("query", "key", "value")}
        weights = {"out_proj.weight": get("out.kernel").reshape(WIDTH, WIDTH).T, "out_proj.bias": get("out.bias")}
        weights["in_proj_bias"] = torch.cat([get(f"{part}.bias").reshape(-1) for part in kernels])
        if keys.shape[-1] == WIDTH:
            weights["in_proj_weight"] = torch.cat(list(kernels.values()))
        else:
            names = zip(("q", "k", "v"), kernels.values(), strict=True)
            weights |= {f"{letter}_proj_weight": kernel for letter, kernel in names}
        module.load_state_dict(weights)
        return module(x, keys, keys, key_padding_mask=ignored, need_weights=False)[0]

    def norm(x, name, layer):
        weights = (p[f"blocks.{name}.{part}"][layer] for part in ("scale", "bias"))
        return torch.nn.functional.layer_norm(x, (WIDTH,), *weights, eps=config.ln_eps)

    ignored = torch.tensor([[k >= end_of(ids) for k in range(len(ids))] for ids in TOKENS])
    x, context = torch.tensor(words), torch.tensor(image)
    with torch.no_grad():
        for i in range(config.layers):
            x = norm(x + attend(x, x, "attn", i, ignored), "ln_1", i)
            x = norm(x + attend(x, context, "cross_attn", i), "ln_cross", i)
            hidden = torch.nn.functional.gelu(x @ p["blocks.mlp.fc1.kernel"][i] + p["blocks.mlp.fc1.bias"][i])
            x = norm(x + hidden @ p["blocks.mlp.fc2.kernel"][i] + p["blocks.mlp.fc2.bias"][i], "ln_2", i)
    for row, ids in enumerate(TOKENS):
        np.testing.assert_allclose(fused[row, : end_of(ids)], x[row, : end_of(ids)].numpy(), atol=1e-5)
