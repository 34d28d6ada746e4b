"""Generator and discriminator: what each loss moves, and that both can win."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.augment.common.gan import Discriminator, Generator, gan_losses


@functools.lru_cache
def player(kind, seed):
    return {"d": Discriminator, "g": Generator}[kind](4, rngs=nnx.Rngs(seed))


def losses_of(kind, d, real, new, where, dropout=0.0):
    return gan_losses(d, real, new, where=where, gan_loss=kind, key=jax.random.key(0), dropout=dropout)[0]


def merged(kind, params):
    return nnx.merge(nnx.graphdef(player(kind, 0)), nnx.State(params))


def test_what_each_players_loss_moves():
    real, new = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    where = jax.random.bernoulli(jax.random.key(2), 0.6, (3, 5))
    params = nnx.to_pure_dict(nnx.state(player("d", 0)))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def grads(kind, name, params, real, new):
        def loss(params, real, new):
            return losses_of(kind, merged("d", params), real, new, where, dropout=0.3)[name]

        return jax.grad(loss, argnums=(0, 1, 2))(params, real, new)

    reversed_ = grads("minimax", "adversarial", params, real, new)
    judged = grads("nonsaturating", "discriminator", params, real, new)
    deceived = grads("nonsaturating", "generator", params, real, new)
    zero = lambda tree: not any(np.any(leaf) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert zero(reversed_[1]) and zero(judged[1]) and zero(judged[2]) and zero(deceived[0]) and zero(deceived[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), reversed_[0], judged[0])
    outside = ~np.asarray(where)
    for found in (reversed_[2], deceived[2]):
        assert not np.any(np.asarray(found)[outside]) and np.any(np.asarray(found)[~outside])
    # Both kinds push a made token the same way: towards what the discriminator calls real.
    assert (np.sign(reversed_[2])[~outside] == np.sign(deceived[2])[~outside]).all()
    nothing = jax.tree.map(jnp.zeros_like, params)
    for kind in ("minimax", "nonsaturating"):
        value = losses_of(kind, merged("d", nothing), real, new, where)
        np.testing.assert_allclose(next(iter(value.values())), 2 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("gan_loss", ["minimax", "nonsaturating"])
def test_the_discriminator_learns_to_tell_and_the_generator_to_deceive(gan_loss):
    params = {kind: nnx.to_pure_dict(nnx.state(player(kind, 0))) for kind in ("d", "g")}
    where, tx = jnp.ones((4, 8), bool), optax.adam(3e-2)

    def loss(params, key):
        real = 1.0 + 0.3 * jax.random.normal(key, (4, 8, 4))
        new = merged("g", params["g"])(-real, key, dropout=0.0)
        terms, metrics = gan_losses(
            merged("d", params["d"]), real, new, where=where, gan_loss=gan_loss, key=key, dropout=0.0
        )
        return sum(terms.values()), 0.5 * (metrics["real_accuracy"] + metrics["fake_accuracy"])

    @jax.jit
    def trained(params, trains):
        def update(carry, i):
            params, state = carry
            grads, accuracy = jax.grad(loss, has_aux=True)(params, jax.random.key(i))
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            updates = {kind: jax.tree.map(lambda x, k=kind: x * trains[k], inner) for kind, inner in updates.items()}
            return (optax.apply_updates(params, updates), state), accuracy

        (params, _), accuracies = jax.lax.scan(update, (params, tx.init(params)), jnp.arange(80))
        return params, accuracies[-1]

    params, trained_d = trained(params, {"d": 1.0, "g": 0.0})
    _, trained_g = trained(params, {"d": 0.0, "g": 1.0})
    assert trained_d > 0.95 and trained_g < 0.6
