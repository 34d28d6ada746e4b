"""``model.caption`` against the decoder run anew over all words at each step; and what a user sees of it."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.tokenizer import load as load_tokenizer
from mmjax.experiment import DataConfig
from mmjax.inference.loading import _abstract
from mmjax.inference.model import Model
from mmjax.models.config import with_tokenizer
from mmjax.models.joint_config import DecoderConfig
from support import clip_models, pictures
from support.models_in_use import CAPTIONS
from support.towers import Source

CASES = {
    "ids": ({"inputs": "ids", "cross_mlp": False}, {}),
    "tower": ({}, {"attentional_pool": "shared", "attn_pooler_queries": 4, "attn_pooler_heads": 3}),
    "prefix": ({"inputs": "ids", "attend": "prefix"}, {}),
}
PICTURES = [pictures.photograph(20, 30, seed=i) for i in range(5)]


@functools.cache
def prepared(name):
    decoder, vision = CASES[name]
    tokenizer = load_tokenizer("word", context_length=7, captions=CAPTIONS)
    decoder = DecoderConfig(**{"width": 8, "heads": 2, "layers": 1} | decoder)
    unknown = {"layers": 1, "vocab_size": None, "pad_id": None, "eos_id": None}
    config = clip_models.config({"layers": 1} | vision, unknown, decoder=decoder, scan=False, remat="none")
    config = with_tokenizer(config, tokenizer)
    graphs, shapes = _abstract(config, ["visual", "text", "decoder"], dtype=jnp.float32, row_sharding=None)
    params = clip_models.random_params(shapes)
    model = Model(
        config, params, graphs, data=DataConfig(source={}), tokenizer=tokenizer, devices=jax.devices()[:1],
        batch_size=4, precision="float32",
    )  # fmt: skip

    @jax.jit
    def log_p(images, ids):
        visual, text, decoder = (clip_models.model(graphs[k], params[k]) for k in ("visual", "text", "decoder"))
        image = visual.run(visual.embed(images), with_sequence=True).sequence
        words = text.run(text.embed(ids), ids, with_sequence=True).sequence
        logits = decoder.logits(decoder(image, words, ids))
        return jax.nn.log_softmax(jnp.pad(logits, ((0, 0), (decoder.first, 0), (0, 0))))

    return model, log_p


def greedy_without_cache(model, log_p):
    """Every step runs everything over all the words so far."""
    tokenizer = model._tokenizer
    prepared = {"image": np.stack([model._read(picture, 0) for picture in PICTURES])}
    ids = np.full((len(PICTURES), tokenizer.context_length), tokenizer.pad_id, np.int32)
    ids[:, 0] = tokenizer.bos_id
    total, ended = np.zeros(len(ids)), np.zeros(len(ids), bool)
    for position in range(1, ids.shape[1]):
        row = np.array(log_p(prepared, ids))[:, position]
        row[:, [tokenizer.pad_id, tokenizer.bos_id]] = -np.inf
        word = np.where(ended, tokenizer.pad_id, row.argmax(1))
        total += np.where(ended, 0, row.max(1))
        ids[:, position] = word
        ended |= word == tokenizer.eos_id
    return ids, total, prepared


@pytest.mark.parametrize("name", ["ids", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tower", "prefix"))])
def test_captions_are_those_of_a_decoder_without_cache(name):
    model, log_p = prepared(name)
    ids, total, rows = greedy_without_cache(model, log_p)
    texts = model.caption(PICTURES)
    assert texts == model._tokenizer.decode(ids) and all(re.fullmatch(r"[a-z ]*|.*<unk>.*", text) for text in texts)
    tokens, got = model.captioner()(model.params, rows, jnp.arange(len(ids)))
    np.testing.assert_array_equal(tokens[:, 0], ids)
    np.testing.assert_allclose(got[:, 0], total, rtol=1e-5)


def test_draws_do_not_depend_on_batches_and_come_in_any_number():
    model, _ = prepared("ids")
    options = {"method": "sample", "temperature": 2.0, "seed": 3}
    several = model.captions(PICTURES, count=3, **options)  # in batches of 4 and 1
    assert [len(each) for each in several] == [3] * len(PICTURES) and any(len(set(each)) > 1 for each in several)
    assert model.captions(PICTURES[:1], count=3, **options) == several[:1]
    assert model.captions(PICTURES, count=3, **options | {"seed": 4}) != several
    assert sum(key[0] == 3 for key in model._captioners) == 1  # compiled once for all seeds


@pytest.mark.parametrize("name", ["ids", pytest.param("tower", marks=pytest.mark.slow)])
def test_a_prompt_is_how_texts_begin_and_the_rest_follows_from_it(name):
    model, log_p = prepared(name)
    [text] = model.caption(PICTURES[:1], prompt="a blue", max_length=2)
    tokenizer, rows = model._tokenizer, {"image": model._read(PICTURES[0], 0)[None]}
    ids = tokenizer(["a blue"])
    for place in (3, 4):  # the two words after start and prompt
        row = np.array(log_p(rows, ids))[0, place]
        row[[tokenizer.pad_id, tokenizer.bos_id]] = -np.inf
        ids[0, place:] = tokenizer.pad_id
        ids[0, place] = row.argmax()
        if ids[0, place] == tokenizer.eos_id:
            break
    assert text.startswith("a blue") and text == tokenizer.decode(ids[:, :5])[0]
    with pytest.raises(ConfigError, match="prompt='a zebra': has words that the model's tokenizer does not know"):
        model.caption(PICTURES, prompt="a zebra")
    with pytest.raises(ConfigError, match="prompt='a dog a dog a dog': the model's context holds 0 tokens"):
        model.caption(PICTURES, prompt="a dog a dog a dog")


def test_draws_are_those_of_a_pictures_number():
    model, _ = prepared("ids")
    options = {"count": 2, "method": "sample", "temperature": 2.0}
    there = model.captions(PICTURES, numbers=[7, 8, 2**31 - 1, 7, 0], **options)
    assert (
        model.captions(PICTURES[2:3], numbers=[2**31 - 1], **options)
        == there[2:3]
        != model.captions(PICTURES[2:3], **options)
    )


def test_evaluators_see_the_same_captions():
    model, _ = prepared("ids")
    examples = Source({"id": i, "image": picture, "captions": ["?"]} for i, picture in enumerate(PICTURES))
    bound = model.embedder().bind(model.params)
    assert bound.captions(model.view(examples), method="greedy") == model.caption(PICTURES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "beams"}, r"caption\.method='beams'.*greedy"),
        ({"top_q": 1}, r"caption\.top_q"),
        ({"count": 2}, r"count=2: several texts for a picture need method='sample'"),
        ({"min_length": 9}, r"min_length=9: the model's context holds 5 tokens"),
        ({"beams": 0, "method": "beam"}, r"caption\.beams=0"),
        ({"beams": 4}, r"beams=4: is for method='beam', not 'greedy'; set the method"),
        ({"length_penalty": 0.5}, r"length_penalty=0\.5: is for method='beam'"),
        ({"top_k": 3, "method": "beam"}, r"top_k=3: is for method='sample', not 'beam'"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    model, _ = prepared("ids")
    with pytest.raises(ConfigError, match=message):
        model.captions(PICTURES, **{"count": 1} | options)


def test_a_model_without_a_decoder_is_named():
    model = copy.copy(prepared("ids")[0])
    model._graphs = {name: graph for name, graph in model._graphs.items() if name != "decoder"}
    with pytest.raises(ConfigError, match="the model has no decoder; load one that was trained with"):
        model.caption(PICTURES)
