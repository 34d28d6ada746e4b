"""The decoder against an independent float64 form; and word by word against all words at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.models.joint_config import DecoderConfig
from support import clip_models, decoder_reference
from support.clip_models import TOKENS

POOLER = {"attentional_pool": "shared", "attn_pooler_queries": 4, "attn_pooler_heads": 3}
CASCADE = POOLER | {"attentional_pool": "cascade"}
CLASS = {"embed_cls": True, "final_ln_after_pool": True}
CAPPA = {"inputs": "ids", "cross_mlp": False, "mask_token": True}
POST = {"block_norm": "post", "embed_norm": True, "token_types": 1}
CASES = {
    "coca": ({}, POOLER, CLASS),
    "coca as in the paper": ({"cross_mlp": False, "width": 12, "heads": 3}, CASCADE, {}),
    "on a tower of another kind": ({"qk_norm": True, "ls_init_value": 0.3, "qkv_bias": "none"}, {}, POST),
    "cappa": (CAPPA, {"pool_type": "avg", "class_token": False}, {}),
    "prefix": ({"inputs": "ids", "attend": "prefix", "mlp_type": "swiglu"}, {"registers": 1}, {}),
}  # fmt: skip


@functools.cache
def prepared(name):
    """A model, its parameters, and both towers' sequences of pictures and texts."""
    decoder, vision, text = CASES[name]
    decoder = DecoderConfig(**{"width": 8, "heads": 2, "layers": 2} | decoder)
    scan = {} if name == "prefix" else {"scan": False, "remat": "none"}
    config = clip_models.config(vision, text, decoder=decoder, **scan)
    graph, shapes = clip_models.split(config)
    params = clip_models.random_params(shapes)
    images = clip_models.images(config, n=len(TOKENS))

    @jax.jit
    def all_at_once(params, images, parallel):
        model = clip_models.model(graph, params)
        image = model.visual.run(model.visual.embed(images), with_sequence=True).sequence
        text = model.text.run(model.text.embed(TOKENS), TOKENS, with_sequence=True).sequence
        hidden = model.decoder(image, text, jnp.asarray(TOKENS), parallel=parallel)
        return image, model.decoder.logits(hidden)

    return config, graph, params, images, all_at_once


def quick(*names):
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", quick("coca", "cappa"))
def test_the_decoder_is_its_reference(name):
    config, _, params, images, all_at_once = prepared(name)
    parallel = np.array([False, True, True, False]) if config.decoder.mask_token else None
    _, got = all_at_once(params, images, parallel)
    double = clip_models.double(params)
    expected = decoder_reference.all_logits(double, images, TOKENS, config=config, parallel=parallel)
    assert got.shape == expected.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", quick("coca", "prefix"))
def test_word_by_word_is_all_at_once(name):
    _, graph, params, images, all_at_once = prepared(name)
    image, expected = all_at_once(params, images, None)

    @jax.jit
    def one_by_one(params, image):
        model = clip_models.model(graph, params)
        cache = model.decoder.start(image, model.text, length=TOKENS.shape[1])
        first = model.decoder.first

        def step(cache, position):
            previous = jnp.take(jnp.asarray(TOKENS), jnp.maximum(position - 1, 0), axis=1)
            logits, cache = model.decoder.next(cache, previous, position, model.text)
            return cache, logits

        return jnp.swapaxes(jax.lax.scan(step, cache, jnp.arange(first, TOKENS.shape[1]))[1], 0, 1)

    got = one_by_one(params, image)
    real = TOKENS[:, -got.shape[1] :] != clip_models.PAD  # a text tower that masks padding sees it here
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "model.decoder.heads=3: must divide"),
        ({"block_norm": "post"}, "model.decoder.block_norm=.post."),
        ({"attend": "prefix"}, "model.decoder.inputs=.tower."),
        ({"mask_token": True}, "model.decoder.inputs=.tower."),
        ({"inputs": "ids", "attend": "prefix", "mask_token": True}, "model.decoder.mask_token=True"),
        ({"attention": "cudnn"}, "model.decoder.attention=.cudnn."),
    ],
)
def test_decoders_that_cannot_be_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**{"width": 8, "heads": 2} | options)


def test_a_decoder_on_the_text_tower_needs_a_causal_one():
    with pytest.raises(ConfigError, match=r"model\.decoder\.inputs='tower': needs a causal text tower"):
        clip_models.config(text={"no_causal_mask": True}, decoder=DecoderConfig(width=8, heads=2))
