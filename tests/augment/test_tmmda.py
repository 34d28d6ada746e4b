"""TMMDA against its equations: what is mixed in and where, what each loss moves, and what a view is."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.augment import tmmda
from mmjax.augment.common.base import Features, Similarity, TokenMask, TowerInfo
from mmjax.augment.common.schedules import Schedule
from mmjax.augment.common.token_mixing import align_by_position
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Provenance
from support import features as support_features

TOWERS = TowerInfo(
    image_width=8,
    text_width=6,
    embed_dim=8,
    image_layers=2,
    text_layers=3,
    vocab_size=10,
    eos_id=9,
    pad_id=0,
    num_prefix_tokens=2,
)
LENGTH, TOKENS = 8, 7  # of texts, of images
STILL = {"dropout": 0.0, "noise": 0.0}


def features(seed=0, *, lengths=(5, 3, 6, 1, 0, 4), views=1, texts=1, ids=None, dtype=jnp.float32, scale=1.0):
    """An example for each caption of so many words; the other captions have one word more."""
    random = np.random.default_rng(seed)
    n = len(lengths)
    words = np.zeros((n, texts, LENGTH), np.int32)
    for i, length in enumerate(lengths):
        for j in range(texts):
            count = min(length + j, LENGTH - 2)
            words[i, j, : count + 2] = [8, *random.integers(1, 8, count), 9]
    ids = np.arange(50, 50 + n) if ids is None else np.asarray(ids)
    draw = lambda *shape: jnp.asarray(scale * random.normal(size=shape), dtype)  # noqa: E731
    return Features(
        image=draw(n * views, TOKENS, 8),
        text=draw(n * texts, LENGTH, 6),
        image_source=Provenance.from_ids(jnp.asarray(np.tile(ids, views), jnp.int32)),
        text_source=Provenance.from_ids(jnp.asarray(np.repeat(ids, texts), jnp.int32)),
        token_mask=TokenMask.from_ids(jnp.asarray(words.reshape(n * texts, LENGTH)), eos_id=9),
        examples=n,
        num_prefix_tokens=2,
    )


@functools.lru_cache
def _made(options):
    return nnx.split(tmmda.Augmentation(towers=TOWERS, rngs=nnx.Rngs(0), **({"heads": 2} | dict(options))))


def made(**options):
    with jax.ensure_compile_time_eval():  # the same numbers, whether asked for inside a jitted function or not
        return nnx.merge(*_made(tuple(options.items())))


class Recorder:
    """A generator that changes nothing and keeps what it was given."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, x, key, *, dropout):
        self.seen.append(x)
        return x


@functools.partial(jax.jit, static_argnums=(0,))
def _mixes(foreign, f, key, step):
    noise = Schedule(value=0.5, start=1)
    module = made(foreign=foreign, first=0.4, second=0.3, dropout=0.0, noise=noise)
    seen = {"text": [], "image": []}
    for side in seen:
        getattr(module, side).generator = Recorder(seen[side])
    module.augment(f, key=key, step=step)
    return {side: found[0] for side, found in seen.items()}


def mixes(f, key=0, *, foreign="own", step=0):
    """What goes into the generators of both towers, without noise at step 0."""
    found = _mixes(foreign, f, jax.random.key(key), jnp.int32(step))
    return {side: np.asarray(x, np.float64) for side, x in found.items()}


def normalized(x):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x / spread, spread


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def js(a, b):
    p, q = softmax(np.asarray(a, np.float64)), softmax(np.asarray(b, np.float64))
    m = (p + q) / 2
    return 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum(-1)


def sequences(f):
    """By side: normalized tokens, and which are words or patches of an example."""
    n, rows = f.examples, np.asarray(f.image_source.valid)[:, None]
    free = {
        "text": np.asarray(f.token_mask.content)[:n] & rows[:n],
        "image": rows & (np.arange(TOKENS) >= f.num_prefix_tokens),
    }
    return {"text": normalized(f.text[:n])[0], "image": normalized(f.image)[0]}, free


def lent(f, *, partner=False):
    """By side: what the other side offers for each place, not a number where it has nothing."""
    (tokens, free), offered, module = sequences(f), {}, made()
    for side, giver in (("text", "image"), ("image", "text")):
        x, there = linear(getattr(module, side).projection, tokens[giver]), free[giver]
        if partner:
            ids = np.asarray(f.image_source.ids)
            x, there = x[::-1], there[::-1] & (ids != ids[::-1])
        got, found = align_by_position(jnp.float32(x), jnp.asarray(there), onto=jnp.asarray(free[side]))
        offered[side] = np.where(np.asarray(found)[..., None], got, np.nan)
    return offered


@pytest.mark.parametrize("foreign", ["own", "other"])
def test_every_token_is_one_of_its_own_or_of_the_other_modality(foreign):
    ids, lengths = [1, 2, 3, 4, 9, -1, 2, 8], (5, 3, 6, 1, 0, 4, 2, 6)
    f = features(lengths=lengths, ids=ids)
    (tokens, free), offered = sequences(f), lent(f, partner=foreign == "other")
    taken = {side: np.zeros(x.shape[:2], int) for side, x in tokens.items()}
    for key in range(8):
        for side, got in mixes(f, key, foreign=foreign).items():
            kept = np.isclose(got, tokens[side], atol=1e-5).all(-1)
            swapped = np.isclose(got, offered[side], atol=1e-5).all(-1)
            assert (kept ^ swapped).all()
            assert not (swapped & ~free[side]).any()
            taken[side] += swapped
    for side, counts in taken.items():
        may = ~np.isnan(offered[side][..., 0])
        assert (counts[may] > 0).mean() > 0.9 and not counts[~may].any()
    if foreign == "other":  # partners that are padding or show the same example lend nothing
        for row in (1, 2, 5, 6):
            assert not taken["text"][row].any() and not taken["image"][row].any()
    assert taken["text"].any() and taken["image"].any()


def test_one_draw_is_for_all_modalities_unless_that_would_pair_them():
    f = features(lengths=(6,) * 8)
    where = {}
    for foreign in ("own", "other"):
        tokens, got = sequences(f)[0], mixes(f, 3, foreign=foreign)
        where[foreign] = [~np.isclose(got[s], tokens[s], atol=1e-5).all(-1)[:, 2:7] for s in ("text", "image")]
    np.testing.assert_array_equal(*where["own"])
    assert 0.2 < (where["other"][0] == where["other"][1]).mean() < 0.8


def test_with_three_modalities_each_receives_both_others_in_cyclic_order():
    f = features(lengths=(6,) * 8, views=2)
    halves = [dataclasses.replace(f, image=f.image[at], image_source=f.text_source) for at in (slice(8), slice(8, 16))]
    offered, (tokens, _) = [lent(half) for half in halves], sequences(f)
    text, images, to_image = tokens["text"], np.split(tokens["image"], 2), offered[0]["image"]
    to_text = [each["text"] for each in offered]
    sources = {
        "l": (text, *to_text),
        "v": (images[0], images[1], to_image),
        "a": (images[1], to_image, images[0]),
    }
    got = mixes(f, 1)
    got = {"l": got["text"], "v": got["image"][:8], "a": got["image"][8:]}
    which = {}
    for name, parts in sources.items():
        matches = np.stack([np.isclose(got[name], part, atol=1e-5).all(-1) for part in parts])
        assert (matches.sum(0) == 1).all()
        which[name] = matches.argmax(0)[:, 2:7]
        assert all((which[name] == k).mean() > 0.1 for k in range(3))
    np.testing.assert_array_equal(which["l"], which["v"])
    np.testing.assert_array_equal(which["l"], which["a"])


MIXED = 1  # the step from which tokens are mixed
OPTIONS = {**STILL, "first": Schedule(value=0.4, start=MIXED), "adversarial": 0.3, "jsd": 0.7, "second": 0.0}


@jax.jit
def answer(f, step):
    """The view, the terms and the metrics of both sides, with nothing dropped and no noise."""
    found = made(**OPTIONS).augment(f, key=jax.random.key(0), step=jnp.int32(step))
    (view,) = found.views
    return {"image": view.image, "text": view.text}, found.terms, found.metrics


def test_all_of_it_is_its_equations():
    """The whole in float64, but for what is mixed: see the tests of that."""
    f, module = features(ids=[1, 2, -1, 4, 5, 6], views=2), made(**OPTIONS)
    view, terms, metrics = answer(f, 0)
    tokens, free = sequences(f)
    valid = {"text": np.asarray(f.token_mask.valid), "image": np.ones((12, TOKENS), bool)}
    gan, divergences = [], []
    for side, x in (("text", f.text), ("image", f.image)):
        nets, t, there = getattr(module, side), tokens[side], free[side]
        new = linear(nets.generator.fc2, np.tanh(linear(nets.generator.fc1, t)))
        logit = lambda z, d=nets.discriminator: linear(d.fc2, np.maximum(linear(d.fc1, z), 0))[..., 0]  # noqa: E731
        soft = lambda z: np.log1p(np.exp(z))  # noqa: E731
        gan.append(soft(-logit(t))[there].mean() + soft(logit(new))[there].mean())
        divergences.append(js(t, new)[there].mean())
        np.testing.assert_allclose(metrics[f"{side}_real_accuracy"], (logit(t)[there] > 0).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"{side}_fake_accuracy"], (logit(new)[there] < 0).mean(), rtol=1e-5)
        ratio = np.sqrt((new[there] ** 2).mean() / (t[there] ** 2).mean())
        np.testing.assert_allclose(metrics[f"{side}_fake_length"], ratio, rtol=1e-4)
        assert metrics[f"{side}_mixed_fraction"] == 0
        a = nets.attention
        heads = lambda z: z.reshape(*z.shape[:2], 2, -1).swapaxes(1, 2)  # noqa: E731
        q, k, v = heads(linear(a.query, t)), heads(linear(a.key, new)), heads(linear(a.value, new))
        logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        weights = softmax(np.where(valid[side][:, None, None], logits, -np.inf))
        added = linear(a.out, (weights @ v).swapaxes(1, 2).reshape(*t.shape[:2], -1))
        want = np.asarray(x, np.float64) + normalized(x)[1] * added
        np.testing.assert_allclose(view[side], np.where(valid[side][..., None], want, x), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(view[side])[~valid[side]], np.asarray(x)[~valid[side]])
    counts = np.array([1, 2]) / 3  # a modality counts once, whatever its length
    np.testing.assert_allclose(terms["adversarial"], 0.3 * counts @ gan, rtol=1e-5)
    np.testing.assert_allclose(terms["jsd"], 0.7 * counts @ divergences, rtol=1e-4)
    assert min(divergences) > 0 and max(divergences) < math.log(2)


def test_padding_is_in_no_loss():
    f = features(ids=[1, 2, -1, 4, 5, 6], views=2)
    view, terms, metrics = answer(f, MIXED)
    assert metrics["text_mixed_fraction"] > 0.2 and metrics["image_mixed_fraction"] > 0.2
    valid, other = np.asarray(f.token_mask.valid), np.asarray(f.text).copy()
    other[~valid] = 7 * np.arange(6)
    new, same_terms, same_metrics = answer(dataclasses.replace(f, text=jnp.asarray(other)), MIXED)
    jax.tree.map(np.testing.assert_array_equal, (terms, metrics), (same_terms, same_metrics))
    np.testing.assert_array_equal(np.asarray(view["text"])[valid], np.asarray(new["text"])[valid])
    other = np.asarray(f.image).copy()
    other[2] = 5 * other[2] + np.arange(8)  # of an example that is padding
    _, same_terms, _ = answer(dataclasses.replace(f, image=jnp.asarray(other)), MIXED)
    jax.tree.map(np.testing.assert_array_equal, terms, same_terms)


def test_it_is_a_function_of_its_key_and_noise_goes_into_the_generator():
    f = features(lengths=(6,) * 8)
    plain, one, again, other = (mixes(f, key, step=step) for key, step in ((1, 0), (1, 1), (1, 1), (2, 1)))
    for side in one:
        np.testing.assert_array_equal(one[side], again[side])
        assert (one[side] != other[side]).mean() > 0.99
        noise = one[side] - plain[side]
        assert abs(noise.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * noise.size)
        assert abs(noise.mean()) < 4 * 0.5 / math.sqrt(noise.size)


def test_the_gan_moves_no_tower_and_the_enhanced_rows_do():
    f = features()
    module = made()

    @jax.jit
    def grads(image, text):
        def losses(image, text):
            found = module.augment(
                dataclasses.replace(f, image=image, text=text), key=jax.random.key(0), step=jnp.int32(0)
            )
            view = found.views[0]
            return jnp.stack([sum(found.terms.values()), jnp.sum(view.image**2) + jnp.sum(view.text**2)])

        return jax.jacrev(losses, argnums=(0, 1))(image, text)

    for found in grads(f.image, f.text):
        assert not np.any(found[0]) and np.any(found[1])


def test_the_spread_that_scales_the_attention_is_a_constant():
    f, module = features(), made()
    for side in ("text", "image"):
        getattr(module, side).attention = lambda x, keys, *, valid: jnp.ones_like(x)

    def total(image, text):
        found = module.augment(dataclasses.replace(f, image=image, text=text), key=jax.random.key(0), step=jnp.int32(0))
        return jnp.sum(found.views[0].image) + jnp.sum(found.views[0].text)

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(f.image, f.text):
        np.testing.assert_allclose(gradient, np.ones(gradient.shape), rtol=1e-6)


def own_contrast(new, old, ids, scale):
    total = []
    for i in np.flatnonzero(ids >= 0):
        keys = [j for j in range(len(ids)) if j == i or (ids[j] >= 0 and ids[j] != ids[i])]
        logits = scale * old[keys] @ new[i]
        total.append(np.log(np.exp(logits).sum()) - scale * old[i] @ new[i])
    return np.mean(total)


def test_the_comparison_is_its_equations():
    ids, scale = np.array([1, 2, 3, 2, 5, -1]), 6.0
    f = features(ids=ids, views=2, texts=2)
    random = np.random.default_rng(7)
    rows = lambda n: (z := random.normal(size=(n, 5))) / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    image, text, new_image, new_text = rows(12), rows(12), rows(12), rows(6)
    clean = dataclasses.replace(f, image=jnp.float32(image), text=jnp.float32(text))
    view = dataclasses.replace(f, image=jnp.float32(new_image), text=jnp.float32(new_text))
    module = made(contrast=0.5, cross_similarity=2.0)

    @jax.jit
    def compared(clean_image, clean_text, image, text, scale):
        return module.compare(
            dataclasses.replace(clean, image=clean_image, text=clean_text),
            [dataclasses.replace(view, image=image, text=text)],
            similarity=Similarity(scale=scale),
            key=jax.random.key(0),
            step=jnp.int32(0),
        )

    arguments = clean.image, clean.text, view.image, view.text, jnp.float32(scale)
    terms, _ = compared(*arguments)
    firsts, valid = text[::2], ids >= 0
    parts = [(new_text, firsts, image, np.tile(valid, 2))]
    parts += [(new_image[at], image[at], text, np.repeat(valid, 2)) for at in (slice(6), slice(6, 12))]
    contrast = np.mean([own_contrast(new, old, ids, scale) for new, old, _, _ in parts])
    change = np.mean(
        [js(scale * new[valid] @ a[there].T, scale * old[valid] @ a[there].T).mean() for new, old, a, there in parts]
    )
    np.testing.assert_allclose(terms["contrast"], 0.5 * contrast, rtol=1e-5)
    np.testing.assert_allclose(terms["cross_similarity"], 2 * change, rtol=1e-4)
    grads = jax.jit(jax.grad(lambda *a: sum(compared(*a)[0].values()), argnums=range(5)))(*arguments)
    assert not any(np.any(grads[i]) for i in (0, 1, 4)) and np.any(grads[2]) and np.any(grads[3])
    assert not np.any(grads[2][5]) and not np.any(grads[3][5])  # padding
    same = compared(clean.image, clean.text, clean.image, clean.text[::2], jnp.float32(scale))[0]
    np.testing.assert_allclose(same["cross_similarity"], 0, atol=1e-6)


@pytest.mark.parametrize(("foreign", "role"), [("own", "consistency"), ("other", "task")])
@pytest.mark.parametrize("sides", ["both", "text", "image"])
def test_a_view_says_what_its_rows_are(sides, foreign, role):
    f, found = features(texts=2, views=2), []
    module = made(sides=sides, foreign=foreign)
    assert (module.text is None, module.image is None) == (sides == "image", sides == "text")

    def call(f):
        found.append(module.augment(f, key=jax.random.key(0), step=jnp.int32(0)).views)
        return found[0][0].image, found[0][0].text, found[0][0].ids, found[0][0].image_source, found[0][0].text_source

    image, text, ids, image_source, text_source = jax.eval_shape(call, f)
    assert [view.role for view in found[0]] == [role]
    assert (image is None) == (sides == "text") and (text is None) == (sides == "image")
    assert image is None or image.shape == f.image.shape
    assert image_source.ids.shape[0] == 12
    assert text_source.ids.shape[0] == (12 if text is None else 6)
    assert ids is None if text is None else (text.shape[0], *ids.shape) == (6, 6, LENGTH)


def test_labels_are_the_rows_own_and_texts_the_first_captions():
    f = features(texts=2, views=2)
    module = made(foreign="other")

    @jax.jit
    def call(f):
        view = module.augment(f, key=jax.random.key(0), step=jnp.int32(0)).views[0]
        return view.image_source, view.text_source, view.ids

    image_source, text_source, ids = call(f)
    jax.tree.map(np.testing.assert_array_equal, image_source, f.image_source)
    jax.tree.map(np.testing.assert_array_equal, text_source, jax.tree.map(lambda x: x[::2], f.text_source))
    np.testing.assert_array_equal(ids, f.token_mask.ids[::2])


def test_in_bfloat16_everything_is_finite():
    graph, state = nnx.split(made(foreign="other", adversary="nonsaturating", sides="text"))

    @jax.jit
    def call(state, text, f):
        def loss(state, text):
            g = dataclasses.replace(f, text=text)
            found = nnx.merge(graph, state).augment(g, key=jax.random.key(0), step=jnp.int32(0))
            view = found.views[0]
            assert view.text.dtype == jnp.bfloat16
            return jnp.mean(unit(view.text)) + sum(found.terms.values()), found.metrics

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, text)

    plain = features(dtype=jnp.bfloat16)
    cases = {
        "plain": plain,
        "large": features(dtype=jnp.bfloat16, scale=1e4),
        "zero": features(dtype=jnp.bfloat16, scale=0.0),
        "identical": dataclasses.replace(plain, image=jnp.ones_like(plain.image), text=jnp.ones_like(plain.text)),
        "padding": features(dtype=jnp.bfloat16, ids=[1, 2, 3, -1, -1, -1]),
        "all padding": features(dtype=jnp.bfloat16, ids=[-1] * 6),
        "no words": features(dtype=jnp.bfloat16, lengths=(0,) * 6),
    }
    for name, f in cases.items():
        (_, metrics), grads = call(state, f.text, f)
        for leaf in jax.tree.leaves((metrics, grads)):
            assert np.isfinite(np.asarray(leaf, np.float32)).all(), name
        if name == "all padding":
            assert metrics["text_mixed_fraction"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": "pooled"}, r"augment\.tmmda\.tap='pooled'"),
        ({"tap": "tokens@-3"}, r"augment\.tmmda\.tap='tokens@-3'"),
        ({"first": 1.5}, r"augment\.tmmda\.first=1\.5: must be between 0 and 1"),
        ({"noise": -1.0}, r"augment\.tmmda\.noise=-1\.0"),
        ({"dropout": 1.0}, r"augment\.tmmda\.dropout=1\.0"),
        ({"heads": 0}, r"augment\.tmmda\.heads=0"),
        ({"clip_norm": 0.0}, r"augment\.tmmda\.clip_norm=0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        support_features.made("tmmda", **options)


def test_more_than_all_tokens_cannot_be_replaced():
    module = made(first=0.5, second=Schedule(value=0.2, shape="linear", final=0.6, over=10))
    call = lambda f: jax.eval_shape(  # noqa: E731
        lambda f: module.augment(f, key=jax.random.key(0), step=jnp.int32(0)).terms, f
    )
    call(features())
    with pytest.raises(ConfigError, match=r"augment\.tmmda\.second=0\.6: with first=0\.5 and 2 other modalities"):
        call(features(views=2))
