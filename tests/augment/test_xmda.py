import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.augment.common.base import Features, Similarity, TokenMask, TowerInfo
from mmjax.augment.common.schedules import Schedule
from mmjax.augment.xmda import Augmentation
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Provenance
from support import features as support_features

TOWERS = TowerInfo(
    image_width=4,
    text_width=6,
    embed_dim=5,
    image_layers=2,
    text_layers=2,
    vocab_size=9,
    eos_id=8,
    pad_id=0,
    num_prefix_tokens=1,
)
N, PATCHES, LENGTH, EXTRA = 8, 6, 7, 1
WORDS = np.array([5, 3, 1, 0, 4, 2, 5, 3])  # of each caption; one has none
PADDED = 2  # the last examples
FREE = (np.arange(LENGTH) > 0) & (np.arange(LENGTH) <= WORDS[:, None])
ROWS = np.arange(N) < N - PADDED
USABLE = ROWS & (WORDS > 0)
RAMP = Schedule(value=1.0, shape="linear", final=0.0, over=10)  # at step s: 1 - s/10


def ids(seed=0):
    random = np.random.default_rng(seed)
    words = random.integers(1, 8, size=(N, LENGTH))
    row = np.where(FREE, words, 0)
    row[np.arange(N), WORDS + 1] = TOWERS.eos_id
    row[:, 0] = 7
    return jnp.asarray(row, jnp.int32)


def tokens(seed=0, *, views=1, texts=1, scale=1.0, dtype=jnp.float32, padded=PADDED):
    """Token sequences of both sides; the captions' further rows are other sequences of the same lengths."""
    random = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(scale * random.normal(size=shape), dtype)  # noqa: E731
    source = np.arange(50, 50 + N)
    source[N - padded :] = -1
    text = make(N, texts, LENGTH, TOWERS.text_width).reshape(N * texts, LENGTH, -1)
    return Features(
        image=make(N * views, EXTRA + PATCHES, TOWERS.image_width),
        text=text,
        image_source=Provenance.from_ids(jnp.asarray(np.tile(source, views), jnp.int32)),
        text_source=Provenance.from_ids(jnp.asarray(np.repeat(source, texts), jnp.int32)),
        token_mask=TokenMask.from_ids(jnp.repeat(ids(), texts, axis=0), eos_id=TOWERS.eos_id),
        examples=N,
        num_prefix_tokens=EXTRA,
    )


def pooled(clean, answer, params):
    """What is left of the network: a linear map of each side's mean token; unit embeddings of clean rows and views."""

    def embed(x, kernel):
        return unit(jnp.einsum("ntd,de->ne", x.astype(jnp.float32), kernel))

    def of(image, text, image_source, text_source):
        return dataclasses.replace(
            clean,
            image=embed(image, params["image"]),
            text=embed(text, params["text"]),
            image_source=image_source,
            text_source=text_source,
            token_mask=None,
        )

    views = [
        of(
            clean.image if v.image is None else v.image,
            clean.text if v.text is None else v.text,
            v.image_source or clean.image_source,
            v.text_source or clean.text_source,
        )
        for v in answer.views
    ]
    return of(clean.image, clean.text, clean.image_source, clean.text_source), views


def rest(seed=0):
    random = np.random.default_rng(seed + 7)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return {"image": draw(4, 5), "text": draw(6, 5), "scale": jnp.float32(1.2)}


@functools.lru_cache
def made(**options):
    return Augmentation(towers=TOWERS, rngs=nnx.Rngs(0), **options)


def whole(module, learned, clean, params, seed, step):
    """All terms that are added to a loss, the terms one by one, metrics and the answer at the tap."""
    module = nnx.merge(nnx.graphdef(module), learned)
    key, other = jax.random.split(jax.random.key(seed))
    answer = module.augment(clean, key=key, step=step)
    rows, views = pooled(clean, answer, params)
    terms, metrics = module.compare(
        rows, views, similarity=Similarity(scale=jnp.exp(params["scale"])), key=other, step=step
    )
    terms = {**answer.terms, **terms}
    assert all(v.role == "consistency" for v in answer.views)
    shown = {
        side: (getattr(v, side), getattr(v, f"{side}_source"), v.ids)
        for side, v in zip(module.sides, answer.views, strict=True)
    }
    return sum(terms.values()), (terms, {**answer.metrics, **metrics}, shown)


class Run:
    """One compiled function for each set of options, with gradients by parameters, features and the rest."""

    def __init__(self, **options):
        self.module = made(**options)
        self.learned = nnx.state(self.module)

        def call(learned, image, text, params, clean, seed, step):
            clean = dataclasses.replace(clean, image=image, text=text)
            return whole(self.module, learned, clean, params, seed, step)

        self.compiled = jax.jit(jax.value_and_grad(call, argnums=(0, 1, 2, 3), has_aux=True))

    def __call__(self, clean, *, seed=0, step=0, learned=None):
        learned = self.learned if learned is None else learned
        at = jnp.asarray(seed, jnp.int32), jnp.asarray(step, jnp.int32)
        (value, (terms, metrics, views)), grads = self.compiled(learned, clean.image, clean.text, rest(), clean, *at)
        return {"value": value, "terms": terms, "metrics": metrics, "views": views, "grads": grads}


@functools.lru_cache
def run(**options):
    return Run(**options)


@functools.lru_cache
def answers(**options):
    """What happens at the tap alone, compiled."""
    module = made(**options)

    def call(clean, seed, step):
        answer = module.augment(clean, key=jax.random.key(seed), step=step)
        return answer.terms, answer.metrics, [(v.image, v.text, v.ids) for v in answer.views]

    compiled = jax.jit(call)
    return lambda clean, seed=0, step=0: compiled(clean, jnp.int32(seed), jnp.int32(step))


OPEN = Schedule(value=1.0, stop=11)  # and closed from step 11 on
BOTH = {"sides": "both", "keep": RAMP, "assign": "hard", "feature": 0.5, "gate": OPEN}
SOFT = {"sides": "both", "keep": RAMP, "assign": "soft", "alignment": "transport", "gradient": "mixed", "iterations": 3}
CTC = {"alignment": "ctc", "keep": RAMP, "gate": 0.0, "recognized_below": 1e9}


def moved(view, clean):
    return np.any(np.asarray(view) != np.asarray(clean), axis=-1)


def sides(out, clean):
    """Replaced tokens among those that can be: patches of usable rows, words of usable rows."""
    image = moved(out["views"]["image"][0], clean.image)[:, EXTRA:][USABLE]
    text = moved(out["views"]["text"][0], clean.text)[USABLE][FREE[USABLE]]
    return image, text


def test_the_fraction_that_is_mixed_is_one_minus_keep():
    call, clean = run(**BOTH), tokens()
    for step, keep in ((4, 0.6), (9, 0.1)):
        image, text = [], []
        for seed in range(12):
            out = call(clean, seed=seed, step=step)
            for side, found, new in zip(("image", "text"), (image, text), sides(out, clean), strict=True):
                found.append(new.ravel())
                np.testing.assert_allclose(out["metrics"][f"{side}_mixed_fraction"], new.mean(), rtol=1e-5)
        for found in (image, text):
            drawn = np.concatenate(found)
            assert abs(drawn.mean() - (1 - keep)) < 4 * math.sqrt(keep * (1 - keep) / drawn.size)
        assert not np.array_equal(image[0][: text[0].size], text[0]) and not np.array_equal(image[0], image[1])


def test_what_the_token_ids_are_is_no_matter():
    call, clean = run(**BOTH), tokens()
    permuted = np.random.default_rng(5).permutation(np.arange(1, 8))
    ids = np.asarray(clean.token_mask.ids)
    ids = np.where(FREE, permuted[np.clip(ids - 1, 0, 6)], ids)
    renamed = dataclasses.replace(clean, token_mask=dataclasses.replace(clean.token_mask, ids=jnp.asarray(ids)))
    one, other = (call(x, step=4)["views"] for x in (clean, renamed))
    assert not np.array_equal(one["text"][2], other["text"][2])
    for side in ("image", "text"):
        np.testing.assert_array_equal(one[side][0], other[side][0])


def test_at_keep_one_the_views_are_the_clean_features_and_nothing_is_lost():
    for options in (BOTH, SOFT):
        clean = tokens()
        out = run(**options)(clean, step=0)
        np.testing.assert_array_equal(out["views"]["image"][0], clean.image)
        np.testing.assert_array_equal(out["views"]["text"][0], clean.text)
        assert out["metrics"]["image_mixed_fraction"] == out["metrics"]["text_mixed_fraction"] == 0
        assert abs(out["value"]) < 1e-6  # clean rows and views are embedded by differently rounded programs


def linear(x, layer):
    return np.float64(x) @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])


def normed(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def aligned(own, brought, *, temperature=0.1, iterations=None):
    """Weights of one pair by the definition, in float64: attention, or transport after some iterations."""
    kernel = np.exp(normed(np.float64(own)) @ normed(brought).T / temperature)
    v = np.ones(kernel.shape[1])
    for _ in range(iterations or 0):
        u = 1 / len(own) / (kernel @ v)
        v = 1 / len(brought) / (kernel.T @ u)
    weights = kernel * v
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("options", [BOTH, SOFT], ids=["attention", "transport"])
def test_at_keep_zero_all_that_may_be_replaced_is_the_aligned_token(options):
    call, clean = run(**options), tokens()
    out = call(clean, step=10)
    image, text = (np.asarray(out["views"][side][0]) for side in ("image", "text"))
    assert np.all(sides(out, clean)[0]) and np.all(sides(out, clean)[1])
    entropies = {"image": [], "text": []}
    for i in np.flatnonzero(USABLE):
        free = FREE[i]
        patches, words = np.asarray(clean.image[i, EXTRA:]), np.asarray(clean.text[i])[free]
        for side, own, other, got in (
            ("image", patches, linear(words, call.module.into_image), image[i, EXTRA:]),
            ("text", words, linear(patches, call.module.into_text), text[i][free]),
        ):
            weights = aligned(own, other, iterations=options.get("iterations"))
            entropies[side].append(-(weights * np.log(weights)).sum(axis=1))
            if options["assign"] == "hard":
                weights = np.eye(len(other))[weights.argmax(axis=1)]
            np.testing.assert_allclose(got, weights @ other, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(text[i][~free], clean.text[i][~free])  # start, end, padding
    np.testing.assert_array_equal(image[:, :EXTRA], clean.image[:, :EXTRA])
    np.testing.assert_array_equal(image[~USABLE], clean.image[~USABLE])
    np.testing.assert_array_equal(text[~USABLE], clean.text[~USABLE])
    for side, rows in entropies.items():
        np.testing.assert_allclose(out["metrics"][f"{side}_entropy"], np.concatenate(rows).mean(), rtol=1e-3)


def cosine_distance(a, b):
    return 1 - np.sum(normed(np.float64(a)) * normed(np.float64(b)), axis=-1)


def js(a, b):
    p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
    m = (p + q) / 2
    return 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()


@pytest.mark.parametrize("options", [BOTH, SOFT], ids=["both", "mixed"])
def test_the_terms_are_those_of_the_equations_without_padding(options):
    call, clean = run(**options), tokens()
    out = call(clean, step=4)
    params = {k: np.float64(v) for k, v in rest().items()}
    embed = lambda x, side: normed(np.float64(x).sum(axis=1) @ params[side])  # noqa: E731
    image, text = (out["views"][side][0] for side in ("image", "text"))
    scale = np.exp(params["scale"])
    logits = lambda a, b: scale * (embed(a, "image") @ embed(b, "text").T)[ROWS][:, ROWS]  # noqa: E731
    known = logits(clean.image, clean.text)
    for side, mixed in (("image", logits(image, clean.text)), ("text", logits(clean.image, text))):
        rows = [js(x, y) for x, y in zip(mixed, known, strict=True)]
        columns = [js(x, y) for x, y in zip(mixed.T, known.T, strict=True)]
        want = (np.mean(rows) + np.mean(columns)) / 2
        np.testing.assert_allclose(out["metrics"][f"{side}_js"], want, rtol=1e-4)
        np.testing.assert_allclose(out["terms"][f"{side}_consistency"], 15 * want, rtol=1e-4)
        view, own = (np.asarray(x) for x in ((image, clean.image) if side == "image" else (text, clean.text)))
        distance = cosine_distance(view, own)[moved(view, own)].mean()
        np.testing.assert_allclose(out["terms"][f"{side}_feature"], options.get("feature", 0) * distance, rtol=1e-4)
    np.testing.assert_allclose(out["value"], sum(out["terms"].values()), rtol=1e-6)

    # Where an image is padding, neither value nor gradients know what is in it.
    changed = dataclasses.replace(clean, image=jnp.where(ROWS[:, None, None], clean.image, 3.0))
    other = call(changed, step=4)
    assert other["value"] == out["value"]
    assert not np.any(out["grads"][1][~ROWS]) and not np.any(out["grads"][2][~ROWS])
    assert out["grads"][3]["scale"] == 0


def test_the_clean_predictions_learn_or_not():
    """The two options agree in values, and the clean images learn in one of them alone; the mixed ones do in both."""
    clean = tokens()
    random = np.random.default_rng(0)
    rows = dataclasses.replace(
        clean,
        image=unit(jnp.asarray(random.normal(size=(N, 5)), jnp.float32)),
        text=unit(jnp.asarray(random.normal(size=(N, 5)), jnp.float32)),
        token_mask=None,
    )
    mixed = unit(rows.image + 0.3)

    def gradients(gradient):
        def loss(mixed, known):
            known, view = (dataclasses.replace(rows, image=x) for x in (known, mixed))
            at = {"key": jax.random.key(0), "step": jnp.int32(0)}
            terms, _ = made(gradient=gradient).compare(known, [view], similarity=Similarity(scale=jnp.float32(4)), **at)
            return terms["image_consistency"]

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(mixed, rows.image)

    flows, stopped = gradients("both"), gradients("mixed")
    assert flows[0] == stopped[0] > 0
    np.testing.assert_allclose(flows[1][0], stopped[1][0], atol=1e-6)
    assert np.any(stopped[1][0]) and np.any(flows[1][1]) and not np.any(stopped[1][1])


def test_no_gradient_goes_through_the_alignment():
    """Brought tokens get the gradient of a fixed weighted sum of themselves, own ones only that of what they keep."""
    clean, module = tokens(), made(**SOFT)
    step = jnp.asarray(10, jnp.int32)
    weight = np.random.default_rng(3).normal(size=clean.image.shape)

    def total(image, text):
        changed = dataclasses.replace(clean, image=image, text=text)
        view = module.augment(changed, key=jax.random.key(1), step=step).views[0]
        return jnp.sum(jnp.float32(weight) * view.image)

    by_image, by_text = jax.jit(jax.grad(total, argnums=(0, 1)))(clean.image, clean.text)
    np.testing.assert_array_equal(by_image[USABLE][:, EXTRA:], 0)
    for i in np.flatnonzero(USABLE):
        words = np.asarray(clean.text[i])[FREE[i]]
        weights = aligned(clean.image[i, EXTRA:], linear(words, module.into_image), iterations=3)
        want = weights.T @ weight[i, EXTRA:] @ np.float64(module.into_image.kernel[...]).T
        np.testing.assert_allclose(by_text[i][FREE[i]], want, rtol=1e-3, atol=1e-4)


def test_a_closed_gate_leaves_no_term_and_compiles_nothing_new():
    call, clean = run(**BOTH), tokens()
    out = call(clean, step=10)
    compiled = call.compiled._cache_size()
    assert out["metrics"]["gate"] == 1 and all(v > 0 for v in out["terms"].values())
    out = call(clean, step=11)
    assert out["metrics"]["gate"] == 0 and not any(out["terms"].values())
    assert not any(np.any(g) for g in jax.tree.leaves(out["grads"]))
    assert call.compiled._cache_size() == compiled


def test_the_gate_opens_for_a_fraction_of_the_steps():
    call, clean = answers(gate=0.3), tokens()
    gates = [float(call(clean, seed=seed)[1]["gate"]) for seed in range(200)]
    assert {*gates} == {0, 1} and abs(np.mean(gates) - 0.3) < 4 * math.sqrt(0.21 / 200)


def spelled(log_probs, labels):
    """Minus the logarithm of the probability of all paths that spell the labels, and the likeliest path's labels."""
    frames, blank = len(log_probs), TOWERS.vocab_size
    total, best = 0.0, (-np.inf, None)
    for path in itertools.product([blank, *sorted(set(labels))], repeat=frames):
        if [k for k, _ in itertools.groupby(path) if k != blank] == labels:
            value = sum(log_probs[t, k] for t, k in enumerate(path))
            total += np.exp(value)
            best = max(best, (value, path))
    return -np.log(total), best[1]


def test_ctc_aligns_frames_by_the_likeliest_spelling_and_is_learned():
    call, clean = run(**CTC), tokens()
    out = call(clean, step=10)
    losses = []
    for i in np.flatnonzero(USABLE):
        logits = linear(clean.image[i, EXTRA:], call.module.recognizer)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        words = linear(np.asarray(clean.text[i])[FREE[i]], call.module.into_image)
        loss, path = spelled(log_probs, np.asarray(clean.token_mask.ids[i])[FREE[i]].tolist())
        losses.append(loss)
        # Which word each frame shows: blanks take the nearest, of two the earlier.
        runs = [(k, len([*g])) for k, g in itertools.groupby(path)]
        word, shown = -1, []
        for k, length in runs:
            word += k != TOWERS.vocab_size
            shown += [word if k != TOWERS.vocab_size else None] * length
        named = [t for t, w in enumerate(shown) if w is not None]
        nearest = [shown[min(named, key=lambda s, t=t: (abs(s - t), s))] for t in range(PATCHES)]
        np.testing.assert_allclose(out["views"]["image"][0][i, EXTRA:], words[nearest], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["metrics"]["ctc"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(out["terms"]["recognition"], np.mean(losses), rtol=1e-4)
    assert np.any(out["grads"][0]["recognizer"]["kernel"][...]) and np.any(out["grads"][1])


def test_a_caption_that_cannot_be_spelt_is_left_alone():
    call, clean = run(**CTC), tokens()
    repeated = jnp.where(FREE, 3, clean.token_mask.ids)  # five words alike need nine frames
    clean = dataclasses.replace(clean, token_mask=dataclasses.replace(clean.token_mask, ids=repeated))
    out = call(clean, step=10)
    found = moved(out["views"]["image"][0], clean.image)[:, EXTRA:].any(axis=1)
    np.testing.assert_array_equal(found, USABLE & (2 * WORDS - 1 <= PATCHES))
    assert 0 < out["metrics"]["ctc"] < 100


def test_a_recognizer_good_enough_opens_the_gate():
    clean = tokens()
    out = run(**CTC)(clean, step=5)
    loss = float(out["metrics"]["ctc"])
    assert out["metrics"]["gate"] == 1
    terms, metrics, _ = answers(alignment="ctc", gate=0.0, recognized_below=0.9 * loss)(clean)
    assert metrics["gate"] == 0 and terms["recognition"] == pytest.approx(loss)


def test_each_modality_goes_with_the_first_caption():
    clean = tokens(views=2, texts=2)
    twice = jnp.tile(clean.image[:N], (2, 1, 1))  # another modality that looks the same
    further = clean.text.at[1::2].set(0.0)
    call = answers(sides="both", keep=0.0)
    image, text = call(dataclasses.replace(clean, image=twice))[2]
    assert image[0].shape == twice.shape and image[1] is None and text[0] is None
    assert text[1].shape == (2 * N, LENGTH, TOWERS.text_width)
    np.testing.assert_array_equal(text[2], np.tile(np.asarray(clean.token_mask.ids)[::2], (2, 1)))
    for x in (image[0], text[1]):
        np.testing.assert_array_equal(x[:N], x[N:])
        assert moved(x[:N], x[np.arange(N) - 1]).all()
    again = call(dataclasses.replace(clean, image=twice, text=further))[2]
    np.testing.assert_array_equal(again[0][0], image[0])
    other = call(clean)[2]
    np.testing.assert_array_equal(other[0][0][:N], image[0][:N])
    assert not np.array_equal(other[0][0][N:], image[0][N:])


def test_the_same_key_makes_the_same_views_and_others_do_not():
    call, clean = run(**BOTH), tokens()
    one, same, other = (call(clean, seed=s, step=4) for s in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["views"]["image"][0], other["views"]["image"][0])
    assert not np.array_equal(one["views"]["text"][0], other["views"]["text"][0])


@pytest.mark.parametrize(
    ("options", "dtype"),
    [(BOTH, jnp.float32), (SOFT, jnp.bfloat16), (CTC, jnp.float32)],
    ids=["attention", "transport", "ctc"],
)
def test_values_and_gradients_are_finite_at_the_extremes(options, dtype):
    call = run(**options)
    make = functools.partial(tokens, dtype=dtype)
    same = make()
    ones = dataclasses.replace(same, image=jnp.ones_like(same.image), text=jnp.ones_like(same.text))
    for clean in (make(scale=1e4), ones, make(padded=N), make(scale=0.0)):
        out = call(clean, step=5)
        assert all(view.dtype == dtype for view, *_ in out["views"].values())
        assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(out))


def test_an_infonce_of_the_mixed_pair_would_leak_where_these_terms_do_not():
    """Linear towers on pairs of noise, new at each step; the answer is in the mixed pair alone."""
    rows, steps = 32, 240
    module = made(keep=0.3, assign="soft", consistency=1.0)
    tx = optax.adam(3e-2)
    source = Provenance.from_ids(jnp.arange(rows, dtype=jnp.int32))
    text_ids = jnp.tile(jnp.asarray([[7, 1, 2, 3, 8]], jnp.int32), (rows, 1))

    def infonce(image, text):
        logits = 10.0 * image @ text.T
        both = jax.nn.log_softmax(logits, axis=1) + jax.nn.log_softmax(logits, axis=0)
        return -0.5 * jnp.mean(jnp.diagonal(both))

    def loss(trained, key, leak):
        learned, params = trained
        keys = jax.random.split(key, 3)
        clean = Features(
            image=jax.random.normal(keys[0], (rows, 4, 4)),
            text=jax.random.normal(keys[1], (rows, 5, 6)),
            image_source=source,
            text_source=source,
            token_mask=TokenMask.from_ids(text_ids, eos_id=8),
            examples=rows,
        )
        own = nnx.merge(nnx.graphdef(module), learned)
        answer = own.augment(clean, key=keys[2], step=jnp.asarray(0, jnp.int32))
        known, views = pooled(clean, answer, params)
        at = {"similarity": Similarity(scale=jnp.float32(10)), "key": keys[2], "step": jnp.int32(0)}
        terms, _ = own.compare(known, views, **at)
        task, leaky = infonce(known.image, known.text), infonce(views[0].image, known.text)
        return jnp.where(leak, leaky, task + sum(terms.values())), jnp.where(leak, leaky, task)

    def update(carry, key):
        trained, state, leak = carry
        grads, value = jax.grad(loss, has_aux=True)(trained, key, leak)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, trained)
        return (optax.apply_updates(trained, updates), state, leak), value

    @jax.jit
    def last(leak):
        trained = nnx.state(module), {k: v for k, v in rest().items() if k != "scale"}
        _, values = jax.lax.scan(update, (trained, tx.init(trained), leak), jax.random.split(jax.random.key(0), steps))
        return jnp.mean(values[-100:])

    assert last(jnp.asarray(True)) < math.log(rows) - 0.1
    assert last(jnp.asarray(False)) > math.log(rows) - 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": "pooled"}, r"augment\.xmda\.tap='pooled'"),
        ({"tap": "tokens@3"}, r"augment\.xmda\.tap='tokens@3'"),
        ({"keep": 1.5}, r"augment\.xmda\.keep=1\.5"),
        ({"gate": -0.1}, r"augment\.xmda\.gate=-0\.1"),
        ({"temperature": 0.0}, r"augment\.xmda\.temperature=0\.0"),
        ({"clip_norm": 0.0}, r"augment\.xmda\.clip_norm=0\.0"),
        ({"iterations": 0}, r"augment\.xmda\.iterations=0"),
        ({"alignment": "ctc", "sides": "both"}, r"augment\.xmda\.sides='both': alignment='ctc'"),
        ({"recognized_below": 5.0, "gate": 0.5}, r"augment\.xmda\.recognized_below=5\.0: only alignment='ctc'"),
        ({"recognized_below": 5.0, "alignment": "ctc"}, r"recognized_below=5\.0: changes nothing at gate=1"),
        ({"recognized_below": 0.0, "alignment": "ctc", "gate": 0.5}, r"recognized_below=0\.0: must be more than 0"),
    ],
)
def test_what_cannot_work_is_said_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        support_features.made("xmda", **options)
