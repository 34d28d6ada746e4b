"""TMMDA on pairs that have nothing in common: no row may learn its answer from the tokens that are mixed in."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmjax.augment import tmmda
from mmjax.augment.common.base import Features, Similarity, TokenMask, TowerInfo
from mmjax.core.sphere import unit
from mmjax.core.types import Provenance
from mmjax.objectives.contrastive import Objective

TOWERS = TowerInfo(
    image_width=8,
    text_width=6,
    embed_dim=8,
    image_layers=2,
    text_layers=3,
    vocab_size=10,
    eos_id=9,
    pad_id=0,
    num_prefix_tokens=1,
)
ROWS, STEPS = 64, 200
CHANCE = math.log(ROWS)
NOISE = {"heads": 2, "dropout": 0.0, "noise": 0.0, "first": 0.5, "learning_rate": 2e-2, "jsd": 0.0, "adversarial": 0.01}


@functools.lru_cache
def trained_on_noise(**options):
    """Of ``on_view``, the factor on the loss of the view's rows: the last clean losses, and those of the view."""
    module = tmmda.Augmentation(towers=TOWERS, rngs=nnx.Rngs(0), **NOISE, **options)
    graph, state = nnx.split(module)
    ids = jnp.tile(jnp.asarray([8, 1, 2, 3, 4, 9], jnp.int32), (ROWS, 1))
    source, token_mask = Provenance.from_ids(jnp.arange(ROWS, dtype=jnp.int32)), TokenMask.from_ids(ids, eos_id=9)
    shapes = {"image": (10, 8), "text": (10, 6), "image_head": (8, 8), "text_head": (6, 8)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {name: 0.5 * jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}
    objective, scale = Objective(), jnp.float32(5.0)

    def embedded(params, side, tokens):
        return unit(jnp.mean(tokens, axis=1) @ params[f"{side}_head"])

    def loss(params, state, on_view, key, step):
        noise = jax.random.normal(key, (2, ROWS, 6, 10)).at[..., 0].set(1.0)
        f = Features(
            image=noise[0] @ params["image"],
            text=noise[1] @ params["text"],
            image_source=source,
            text_source=source,
            token_mask=token_mask,
            examples=ROWS,
            num_prefix_tokens=1,
        )
        plugin = nnx.merge(graph, state)
        found = plugin.augment(f, key=jax.random.fold_in(key, 1), step=step)
        clean = dataclasses.replace(f, image=embedded(params, "image", f.image), text=embedded(params, "text", f.text))
        view = {
            side: getattr(clean, side) if x is None else embedded(params, side, x)
            for side, x in (("image", found.views[0].image), ("text", found.views[0].text))
        }
        rows = dataclasses.replace(clean, **view)
        terms, _ = plugin.compare(clean, [rows], similarity=Similarity(scale=scale), key=key, step=step)
        call = lambda f: objective(f.image, f.text, image_source=source, text_source=source, scale=scale)[0]  # noqa: E731
        of_clean, of_view = call(clean), call(rows)
        total = of_clean + sum(found.terms.values()) + sum(terms.values()) + on_view * of_view
        return total, (of_clean, of_view)

    tx = optax.adam(2e-2)

    def update(on_view, carry, step):
        learned, state = carry
        key = jax.random.fold_in(jax.random.key(1), step)
        grads, values = jax.grad(loss, argnums=(0, 1), has_aux=True)(*learned, on_view, key, step)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, learned)
        return (optax.apply_updates(learned, updates), state), values

    @jax.jit
    def run(on_view):
        learned = params, state
        start = learned, tx.init(learned)
        return jax.lax.scan(functools.partial(update, on_view), start, jnp.arange(STEPS))[1]

    return lambda on_view: [float(v[-50:].mean()) for v in run(jnp.float32(on_view))]


def test_tokens_of_its_own_pair_tell_no_clean_row_its_answer():
    """They would tell those of the view, which is why it is no task."""
    run = trained_on_noise(foreign="own", sides="image")
    assert run(0.0)[0] > CHANCE - 0.02
    assert run(1.0)[1] < CHANCE - 0.1


def test_tokens_of_another_pair_give_no_answer_away():
    assert min(trained_on_noise(foreign="other")(1.0)) > CHANCE - 0.02
