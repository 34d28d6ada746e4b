"""Whether a term can be lowered on pairs that have nothing in common: if so, it gives their answers away."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

from mmjax.augment.common import base
from mmjax.augment.common.base import Augmented, Base, Features, TokenMask, View
from mmjax.core import plugins
from mmjax.core.types import Provenance
from mmjax.train.augmentation import Augmentations
from support import features

ROWS, STEPS = 64, 300
CHANCE = math.log(ROWS)
OPTIONS = {"m2mix": {"modes": ("m2", "v", "l", "vl")}, "lemda": {"z_dim": 3, "layers": 1}}


class Leaky(base.Base):
    """A view whose texts hold some coordinates of their own images: what must not be done."""

    def augment(self, clean, *, key, step):
        swapped = jax.random.bernoulli(key, 0.15, clean.text.shape)
        return Augmented(views=[View(text=jnp.where(swapped, clean.image, clean.text))])


def lowest(augmentations):
    """The mean of each term's last losses after training linear towers on noise that is new at each step."""
    states = augmentations.init_states()
    random = jax.random.split(jax.random.key(0), 2)
    towers = {side: jax.random.normal(k, (10, w)) for side, k, w in zip(("image", "text"), random, (6, 8), strict=True)}
    params = {"head": features.head_params(), "towers": towers}
    tx = optax.adam(3e-2)
    source = Provenance.from_ids(jnp.arange(ROWS, dtype=jnp.int32))

    sequences = any(module.tap.startswith("tokens") for module in augmentations.modules.values())
    shape = (2, ROWS, 5, 10) if sequences else (2, ROWS, 10)
    ids = jnp.tile(jnp.asarray([[1, 5, 6, 7, features.TOWERS.eos_id]], jnp.int32), (ROWS, 1))
    token_mask = TokenMask.from_ids(ids, eos_id=features.TOWERS.eos_id) if sequences else None

    def loss(params, learned, key, step):
        # With a constant among the inputs, towers can put the two modalities in different places.
        noise = jax.random.normal(key, shape).at[..., 0].set(1.0)
        at_tap = Features(
            image=noise[0] @ params["towers"]["image"],
            text=noise[1] @ params["towers"]["text"],
            image_source=source,
            text_source=source,
            token_mask=token_mask,
            examples=ROWS,
            num_prefix_tokens=features.TOWERS.num_prefix_tokens,
        )
        return features.added(augmentations, learned, params["head"], at_tap, step=step)

    def update(carry, step):
        params, state, states = carry
        learned = {name: own.params for name, own in states.items()}
        key = jax.random.fold_in(jax.random.key(1), step)
        grads, metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, learned, key, step)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads[0], state, params)
        states, _ = augmentations.update(grads[1], states)
        return (optax.apply_updates(params, updates), state, states), metrics

    start = params, tx.init(params), states
    _, metrics = jax.jit(lambda c: jax.lax.scan(update, c, jnp.arange(STEPS)))(start)
    means = {m.split("/")[-1]: float(v[-100:].mean()) for m, v in metrics.items()}
    terms = {m: v for m, v in means.items() if m in ("task", "m2", "v", "l", "vl")}
    return {m: v / 2 if m == "m2" else v for m, v in terms.items()}  # m2 is a sum over both directions


def with_views(name):
    """What only takes tokens away has nothing of the other side to add."""
    return issubclass(plugins.load("mmjax.augment", name, path="augment").Augmentation, Base)


ATTENTION = {"kind": "attention", "tap": "tokens@0", "z_dim": 3, "layers": 1, "width": 8, "heads": 2, "hidden": 8}
CASES = [
    # The two that compile longest are slow.
    pytest.param(name, OPTIONS.get(name, {}), marks=pytest.mark.slow if name in ("m2mix", "tmmda") else ())
    for name in plugins.names("mmjax.augment")
    if with_views(name)
] + [
    ("mixup", {"tap": "tokens@0"}),
    pytest.param("lemda", ATTENTION, marks=pytest.mark.slow),
    pytest.param("tmmda", {"foreign": "other"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_noise_stays_at_chance(name, options):
    augmentations = features.made(name, **options)
    found = lowest(augmentations)
    for term, value in found.items():
        assert value > CHANCE - 0.02, (term, value)
    # What compares within a pair adds no such term: it could not tell a pair's answer from its own.
    assert found or name in ("tmmda", "xmda")


def test_a_text_with_parts_of_its_own_image_is_found_out():
    module = Leaky(weight=1.0)
    leaky = Augmentations(
        modules={"x": module}, sequence_dropouts={}, create=lambda: {"x": module}, towers=features.TOWERS, seed=0
    )
    assert lowest(leaky)["task"] < CHANCE - 0.1
