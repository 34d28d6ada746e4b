"""Features at a tap, and all that an augmentation adds to the loss, with a mean and a linear map for towers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.augment.common.base import Features, TokenMask, TowerInfo
from mmjax.core.sphere import unit
from mmjax.core.types import Batch, Provenance
from mmjax.models.block_stack import TowerOutput
from mmjax.models.vision.frames import mean_of_valid
from mmjax.objectives import contrastive
from mmjax.train.augmentation import Augmentations

TOWERS = TowerInfo(
    image_width=6,
    text_width=8,
    embed_dim=8,
    image_layers=2,
    text_layers=2,
    vocab_size=12,
    eos_id=2,
    pad_id=0,
    num_prefix_tokens=1,
)


def features(seed=0, *, n=8, texts=1, views=1, widths=(6, 8), dtype=jnp.float32, scale=1.0, padded=0):
    """``n`` examples with ``texts`` rows of text and ``views`` of images each; the last ``padded`` are padding."""
    random = np.random.default_rng(seed)
    ids = np.arange(100, 100 + n)
    ids[n - padded :] = -1
    make = lambda rows, width: jnp.asarray(scale * random.normal(size=(rows, width)), dtype)  # noqa: E731
    return Features(
        image=make(n * views, widths[0]),
        text=make(n * texts, widths[1]),
        image_source=Provenance.from_ids(jnp.asarray(np.tile(ids, views), jnp.int32)),
        text_source=Provenance.from_ids(jnp.asarray(np.repeat(ids, texts), jnp.int32)),
        examples=n,
    )


def sequences(seed=0, *, tokens=5, words=4, **how):
    """The same with sequences: images of a class token and patches, texts of 0 to ``words`` words in 7 places."""
    flat = features(seed, **how)
    random = np.random.default_rng(seed + 500)
    rows = flat.text.shape[0]
    ids = np.full((rows, 7), TOWERS.pad_id)
    ids[:, 0] = 1
    for row, n in zip(ids, random.integers(0, words + 1, rows), strict=True):
        row[1 : n + 1], row[n + 1] = random.integers(3, TOWERS.vocab_size, n), TOWERS.eos_id

    def spread(x, length):
        noise = random.normal(size=(x.shape[0], length, x.shape[1])) * how.get("scale", 1.0)
        return x[:, None] + jnp.asarray(noise, x.dtype)

    return dataclasses.replace(
        flat,
        image=spread(flat.image, tokens),
        text=spread(flat.text, 7),
        token_mask=TokenMask.from_ids(jnp.asarray(ids, jnp.int32), eos_id=TOWERS.eos_id),
        num_prefix_tokens=TOWERS.num_prefix_tokens,
    )


def fitting(augmentations, *args, **how):
    """Features for the only augmentation's tap."""
    [module] = augmentations.modules.values()
    return sequences(*args, **how) if module.tap.startswith("tokens") else features(*args, **how)


class Head:
    """What comes after the taps: a mean over the sequence, a linear map for each side, and the scale."""

    class Tower:
        def __init__(self, kernel):
            self.kernel = kernel

        def pool(self, tokens, ids=None, *, start=0, valid=None):
            if ids is None:
                return mean_of_valid(tokens, valid).astype(tokens.dtype)
            valid = TokenMask.from_ids(ids, eos_id=TOWERS.eos_id).valid[..., None]
            total = jnp.sum(jnp.where(valid, tokens.astype(jnp.float32), 0.0), axis=1)
            return (total / jnp.sum(valid, axis=1, dtype=jnp.float32)).astype(tokens.dtype)

        def run(self, tokens, ids=None, *, start=0, with_sequence=False, valid=None):
            return TowerOutput(self.pool(tokens, ids, start=start, valid=valid), {}, tokens if with_sequence else None)

        def project(self, x):
            return (x.astype(jnp.float32) @ self.kernel).astype(jnp.float32)

    def __init__(self, params):
        self.visual, self.text = Head.Tower(params["visual"]), Head.Tower(params["text"])
        self.logit_scale, self.logit_bias = _Whole(params["logit_scale"]), None


class _Whole:
    def __init__(self, value):
        self.value = value

    def __getitem__(self, _):
        return self.value


def head_params(seed=0):
    random = np.random.default_rng(seed + 1000)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return {"visual": draw(6, 8), "text": draw(8, 8), "logit_scale": jnp.float32(1.5)}


def made(name, **options):
    """The augmentation ``name`` among no others."""
    return Augmentations.from_config([(name, options)], towers=TOWERS, seed=3)


def module(name, **options):
    return made(name, **options).create()[name]


def added(augmentations, learned, params, at_tap, *, step=0):
    """The loss that augmentations add at these features, pooled or sequences, and their metrics."""
    head = Head(params)
    objective = contrastive.Objective()
    pooled = at_tap
    if at_tap.token_mask is not None:
        image, text = head.visual.pool(at_tap.image), head.text.pool(at_tap.text, at_tap.token_mask.ids)
        pooled = dataclasses.replace(at_tap, image=image, text=text, token_mask=None)
    value, _ = objective(
        unit(head.visual.project(pooled.image)),
        unit(head.text.project(pooled.text)),
        image_source=pooled.image_source,
        text_source=pooled.text_source,
        scale=jnp.exp(params["logit_scale"]),
    )
    return augmentations.loss(
        learned,
        dict.fromkeys(augmentations.taps, at_tap) | {"pooled": pooled},
        make_model=Head,
        model_params=params,
        objective=objective,
        clean_loss=value,
        step=jnp.asarray(step, jnp.int32),
    )


def gradients(augmentations, learned, params, pooled, *, step=0):
    """Value, metrics, and gradients by learned parameters, head, and pooled features of both sides."""
    call = _compiled(_ById(augmentations))
    (value, metrics), grads = call(learned, params, pooled.image, pooled.text, pooled, jnp.asarray(step, jnp.int32))
    return value, metrics, grads


class _ById:
    """A key for a cache: the object itself, which has no hash."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return self.value is other.value


@functools.lru_cache
def _compiled(by_id):
    augmentations = by_id.value

    def loss(learned, params, image, text, pooled, step):
        return added(augmentations, learned, params, replaced(pooled, image, text), step=step)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


def replaced(f, image, text):
    return dataclasses.replace(f, image=image, text=text)


def batch(images):
    """A batch of these pictures u8[B, H, W, C], each with one text."""
    rows = len(images)
    source = Provenance.from_ids(jnp.arange(rows, dtype=jnp.int32))
    tokens = jnp.zeros((rows, 4), jnp.int32)
    return Batch(images={"image": images}, tokens=tokens, image_source=source, text_source=source)
