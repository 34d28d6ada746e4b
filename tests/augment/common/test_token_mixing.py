"""Tokens of one modality brought to the length of another and mixed in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.token_mixing import align_by_position, mix_tokens, shares_example_with_partner
from mmjax.core.types import Provenance


def nearest(other, free, onto):
    """Place by place: the free token of the other at the same relative place, or nothing."""
    out = np.full((*onto.shape, other.shape[-1]), np.nan)
    for b in range(len(onto)):
        places, targets = np.flatnonzero(free[b]), np.flatnonzero(onto[b])
        for rank, place in enumerate(targets):
            if len(places):
                out[b, place] = other[b, places[math.floor((rank + 0.5) / len(targets) * len(places) + 1e-9)]]
    return out


@jax.jit
def align(other, free, onto):
    return align_by_position(other, free, onto=onto)


def test_alignment_is_by_relative_place_among_what_is_free():
    random = np.random.default_rng(0)
    for case in range(4):
        other, onto = random.normal(size=(6, 7, 3)), random.random((6, 5)) < (0.9, 0.5, 0.2, 0)[case]
        free = random.random((6, 7)) < (0.8, 0.3, 1, 0.5)[case]
        got, there = align(jnp.float32(other), jnp.asarray(free), jnp.asarray(onto))
        want = nearest(other, free, onto)
        np.testing.assert_array_equal(there, ~np.isnan(want[..., 0]))
        np.testing.assert_allclose(np.asarray(got)[there], want[there], rtol=1e-6)
    assert align._cache_size() == 1  # shapes are fixed whatever is free
    whole = jnp.ones((2, 7), bool)
    x = jnp.arange(14.0).reshape(2, 7, 1)
    np.testing.assert_array_equal(align(x, whole, whole)[0], x)


@jax.jit
def mix(own, others, u, first, second, free):
    return mix_tokens(own, others, u, probabilities=(first, second), content=free)


@pytest.mark.parametrize("others", [1, 2, 3])
def test_the_mix_is_the_papers_for_a_given_draw(others):
    random = np.random.default_rng(others)
    shape, (first, second) = (40, 9), np.float32([0.2, 0.25])
    u = random.random(shape).astype(np.float32)
    u[0, :4] = 1 - first, second, 0, 2 * second  # at the limits
    own, *rest = random.normal(size=(others + 1, *shape, 3)).astype(np.float32)
    there, free = random.random((others, *shape)) < 0.8, random.random(shape) < 0.7
    free[0] = there[:, 0] = True
    got, source = mix(own, list(zip(rest, there, strict=True)), u, first, second, free)
    for place in np.ndindex(shape):
        v, which = u[place], 0
        if v > 1 - first:
            which = 1
        elif v < second and others > 1:
            which = 2
        elif second <= v < 2 * second and others > 2:
            which = 3
        which = which if free[place] and (which == 0 or there[which - 1][place]) else 0
        assert source[place] == which
        np.testing.assert_array_equal(got[place], own[place] if which == 0 else rest[which - 1][place])


def test_places_are_replaced_as_often_as_the_options_say():
    n, key = 20_000, jax.random.key(0)
    zeros, there = jnp.zeros((n, 2, 1)), jnp.ones((n, 2), bool)
    free = jnp.asarray([[True, False]]) & there
    u = jax.random.uniform(key, (n, 2))
    _, source = mix(zeros, [(zeros, there)] * 2, u, jnp.float32(0.15), jnp.float32(0.3), free)
    assert not np.any(source[:, 1])
    for which, p in enumerate((0.55, 0.15, 0.3)):
        assert abs(np.mean(source[:, 0] == which) - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_nobody_is_their_own_partner():
    np.testing.assert_array_equal(
        shares_example_with_partner(Provenance.from_ids(jnp.arange(5))), [False, False, True, False, False]
    )
    ids = jnp.asarray([[0, 7], [1, -1], [3, -1], [2, 7]], jnp.int32)
    weight = jnp.asarray([[0.5, 0.5], [1, 0], [1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(
        shares_example_with_partner(Provenance(ids=ids, weight=weight)), [True, False, False, True]
    )
