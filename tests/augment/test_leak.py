"""Whether a term can be lowered on pairs that have nothing in common: if so, it gives their answers away."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mmjax import plugins
from mmjax.augment import base
from mmjax.augment.base import Augmented, Features, View
from mmjax.train.augmenting import Augmentations
from mmjax.types import Provenance
from support import features

ROWS, STEPS = 64, 300
CHANCE = math.log(ROWS)
OPTIONS = {"m2mix": {"modes": ("m2", "v", "l", "vl")}, "lemda": {"z_dim": 2, "layers": 1}}


class Leaky(base.Base):
    """A view whose texts hold some coordinates of their own images: what must not be done."""

    def augment(self, clean, *, key, step):
        swapped = jax.random.bernoulli(key, 0.15, clean.text.shape)
        return Augmented(views=[View(text=jnp.where(swapped, clean.image, clean.text))])


def lowest(augmentations):
    """The mean of each term's last losses after training linear towers on noise that is new at each step."""
    learned = augmentations.initial()
    random = jax.random.split(jax.random.key(0), 2)
    towers = {side: jax.random.normal(k, (10, w)) for side, k, w in zip(("image", "text"), random, (6, 8), strict=True)}
    params = {"head": features.head_params(), "towers": towers}
    own = augmentations.optimizer(learned) if learned else optax.identity()
    tx = optax.adam(3e-2)
    source = Provenance.of(jnp.arange(ROWS, dtype=jnp.int32))

    def loss(params, learned, key, step):
        # With a constant among the inputs, towers can put the two modalities in different places.
        noise = jax.random.normal(key, (2, ROWS, 10)).at[:, :, 0].set(1.0)
        pooled = Features(
            image=noise[0] @ params["towers"]["image"],
            text=noise[1] @ params["towers"]["text"],
            image_source=source,
            text_source=source,
            examples=ROWS,
        )
        return features.added(augmentations, learned, params["head"], pooled, step=step)

    def update(carry, step):
        params, learned, state, own_state = carry
        key = jax.random.fold_in(jax.random.key(1), step)
        grads, metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, learned, key, step)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads[0], state, params)
            own_updates, own_state = own.update(grads[1], own_state, learned)
        carry = optax.apply_updates(params, updates), optax.apply_updates(learned, own_updates), state, own_state
        return carry, metrics

    start = params, learned, tx.init(params), own.init(learned)
    _, metrics = jax.jit(lambda c: jax.lax.scan(update, c, jnp.arange(STEPS)))(start)
    means = {m.split("/")[-1]: float(v[-100:].mean()) for m, v in metrics.items()}
    terms = {m: v for m, v in means.items() if m in ("task", "m2", "v", "l", "vl")}
    assert terms
    return {m: v / 2 if m == "m2" else v for m, v in terms.items()}  # m2 is a sum over both directions


@pytest.mark.parametrize("name", plugins.names("mmjax.augment"))
def test_noise_stays_at_chance(name):
    for term, value in lowest(features.made(name, **OPTIONS.get(name, {}))).items():
        assert value > CHANCE - 0.02, (term, value)


def test_a_text_with_parts_of_its_own_image_is_found_out():
    module = Leaky(weight=1.0)
    leaky = Augmentations(
        graphs={"x": nnx.graphdef(module)}, modules={"x": module}, create=lambda: {"x": module}, seed=0
    )
    assert lowest(leaky)["task"] < CHANCE - 0.1
