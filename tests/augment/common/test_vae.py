"""The networks of pairs: what sees what, that nothing else does, and their divergence from the normal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.augment.common.layers import TransformerLayer, apply_dropout
from mmjax.augment.common.vae import AttentionVae, MlpVae, hidden_widths, kl_to_normal, sample_normal
from support import features


def test_divergence_from_the_normal():
    zeros, ones = jnp.zeros((5, 4)), jnp.ones((5, 4))
    assert kl_to_normal(zeros, zeros) == 0
    np.testing.assert_allclose(kl_to_normal(ones, zeros), 0.5)
    np.testing.assert_allclose(kl_to_normal(ones[:, None].repeat(2, 1), zeros[:, None].repeat(2, 1)), 1.0)
    mean, log_variance = np.array([0.3, -1.2]), np.array([0.5, -0.7])
    x = mean + np.random.default_rng(0).normal(size=(200_000, 2)) * np.exp(log_variance / 2)
    log_ratio = (-0.5 * (log_variance + (x - mean) ** 2 / np.exp(log_variance)) + 0.5 * x**2).sum(1)
    got = 2 * kl_to_normal(jnp.float32(mean)[None], jnp.float32(log_variance)[None])
    assert abs(got - log_ratio.mean()) < 3 * log_ratio.std() / np.sqrt(len(x))


@pytest.mark.parametrize(
    ("d", "want"),
    [
        (1024, [821, 618, 415, 212]),
        (1536, [1231, 926, 621, 316]),
        (4096, [3279, 2462, 1645, 828]),
        (128, [104, 80, 56]),
    ],
)
def test_hidden_widths(d, want):
    got = hidden_widths(d, z_dim=8, layers=4)
    assert got[: len(want)] == want and len(got) <= 4


def test_noise_is_the_given_one_and_its_mean_is_the_mean():
    mean, log_variance = jnp.float32([[0.5, -1.0]]), jnp.float32([[0.2, -0.4]])
    key = jax.random.key(4)
    want = mean + jax.random.normal(key, (1, 2)) * jnp.exp(0.5 * log_variance)
    np.testing.assert_allclose(sample_normal(mean, log_variance, key), want, rtol=1e-6)
    many = sample_normal(*(x.repeat(50_000, 0) for x in (mean, log_variance)), key)
    np.testing.assert_allclose(many.mean(0), mean[0], atol=4 * 1.2 / np.sqrt(50_000))


def test_residuals_are_on_average_those_of_the_mean_where_the_decoder_is_linear():
    network, f = vae("mlp", z_dim=2), features.features(n=2)
    assert not network.decoder and not network.encoder  # 14, and half way to 2 there is no room for another width
    many = jax.vmap(lambda key: network(f.image, f.text, key, dropout=0.0)[0])
    image, text = (np.asarray(x) for x in jax.jit(many)(jax.random.split(jax.random.key(0), 5_000)))
    code = network.mean(jnp.concatenate([f.image, f.text], axis=1))
    for got, want in ((image, network.last(code)[:, :6]), (text, network.last(code)[:, 6:])):
        assert got.std(0).min() > 0.01  # and each time with noise of its own
        np.testing.assert_allclose(got.mean(0), want, atol=(4 * got.std(0) / np.sqrt(5_000)).max())


def test_dropout_keeps_the_mean():
    out = apply_dropout(jnp.ones((200, 200)), jax.random.key(0), rate=0.3)
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.7)}
    np.testing.assert_allclose(out.mean(), 1, atol=0.02)


def vae(kind, **options):
    size = {"z_dim": 3, "layers": 1, "rngs": nnx.Rngs(0)} | options
    network = MlpVae((6, 8), **size) if kind == "mlp" else AttentionVae((6, 8), width=8, heads=2, hidden=8, **size)
    graph, state = nnx.split(network)
    random = np.random.default_rng(1)
    state = jax.tree.map(lambda x: x + jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype), state)
    return nnx.merge(graph, state)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_pair_sees_itself_alone_and_both_of_its_sides(kind):
    network, f = vae(kind), features.features(n=4)

    def sides(image, text):
        return network(image, text, jax.random.key(2), dropout=0.0)[0]

    jacobian = jax.jit(jax.jacobian(sides, argnums=(0, 1)))(f.image, f.text)
    for by_side in jacobian:
        for block in by_side:  # [B, D, B, D']
            across = np.abs(np.asarray(block)).sum((1, 3))
            assert (across[~np.eye(4, dtype=bool)] == 0).all()
            assert (np.diag(across) > 1e-4).all()


VALID = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)


@functools.cache
def attended():
    """Four pairs of three image tokens and up to five text tokens, and the network that takes them."""
    random, network = np.random.default_rng(0), vae("attention")
    image, text = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 3, 6), (4, 5, 8)))
    run = lambda image, text: network(image, text, jax.random.key(2), dropout=0.0, valid=jnp.asarray(VALID))  # noqa: E731
    return image, text, jax.jit(run)


def test_vectors_are_sequences_of_one_token():
    network, f = vae("attention"), features.features(n=4)
    run = jax.jit(functools.partial(network, dropout=0.2))
    alone = run(f.image, f.text, jax.random.key(2))
    long = run(f.image[:, None], f.text[:, None], jax.random.key(2), valid=jnp.ones((4, 1), bool))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-5, atol=1e-6), long, alone)


def test_padding_is_neither_seen_nor_changed_nor_counted():
    image, text, run = attended()
    answer = run(image, text)
    poisoned = jnp.where(VALID[..., None], text, 1e3)
    jax.tree.map(np.testing.assert_array_equal, run(image, poisoned), answer)
    by_image, by_text = map(np.asarray, answer[0])
    assert (by_text[~VALID] == 0).all() and (by_text[VALID] != 0).any(axis=-1).all()
    assert (by_image != 0).any(axis=-1).all()


def test_every_token_of_a_pair_sees_all_of_that_pair_alone():
    image, text, run = attended()
    jacobian = jax.jit(jax.jacobian(lambda *x: run(*x)[0], argnums=(0, 1)))(image, text)
    there = [np.ones((4, 3), bool), VALID]
    for side, by_side in zip(there, jacobian, strict=True):
        for source, block in zip(there, by_side, strict=True):  # [B, tokens, D, B, tokens, D]
            moved = np.abs(np.asarray(block)).sum((2, 5)) > 1e-7
            np.testing.assert_array_equal(moved, np.einsum("bt,cs,bc->btcs", side, source, np.eye(4, dtype=bool)) > 0)


def test_the_divergence_is_a_sum_over_tokens_that_count():
    random = np.random.default_rng(0)
    mean, log_variance = random.normal(size=(2, 4, 5, 3))
    terms = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance))
    got = kl_to_normal(jnp.float32(mean), jnp.float32(log_variance), where=jnp.asarray(VALID))
    np.testing.assert_allclose(got, terms[VALID].sum() / (4 * 3), rtol=1e-5)


def test_an_encoder_attends_to_what_is_seen():
    layer = TransformerLayer(4, heads=2, hidden=4, rngs=nnx.Rngs(0))
    x, key = jax.random.normal(jax.random.key(0), (2, 5, 4)), jax.random.key(1)

    @jax.jit
    def run(x, seen):
        return layer(x, key, dropout=0.0, mask=seen), layer(x, key, dropout=0.0), layer(x[:, :3], key, dropout=0.0)

    masked, _, short = run(x, jnp.arange(5)[None].repeat(2, 0) < 3)
    np.testing.assert_allclose(masked[:, :3], short, rtol=1e-5, atol=1e-6)
    masked, whole, _ = run(x, jnp.ones((2, 5), bool))
    np.testing.assert_allclose(masked, whole, rtol=1e-5, atol=1e-6)
