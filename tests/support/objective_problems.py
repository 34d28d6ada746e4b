"""Random problems for objectives, and an objective's value and gradients on them."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Provenance


def problem(seed, *, n=6, m=9, k=2, d=5, padding=True):
    """Random unit rows with shared sources, mixes, negatives of zero weight and padding; scale and bias."""
    rng = np.random.default_rng(seed)

    def rows(count):
        z = rng.normal(size=(count, d))
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    def sources(count):
        ids = rng.integers(0, 5, (count, k)).astype(np.int32)
        weight = rng.dirichlet(np.ones(k), count)
        weight[1] = 0.0  # a negative for all
        if padding:
            ids[-1], weight[-1] = -1, 0.0
        return ids, weight.astype(np.float32)

    return rows(n), rows(m), sources(n), sources(m), 3.0 + rng.random(), rng.normal()


def arguments(problem_):
    """Embeddings, scale and bias as float32, and both sides' provenance."""
    image, text, *sources, scale, bias = problem_
    values = tuple(jnp.float32(x) for x in (image, text, scale, bias))
    return values, tuple(Provenance(ids=jnp.asarray(ids), weight=jnp.asarray(weight)) for ids, weight in sources)


def computing(objective):
    """The function of ``arguments`` that gives loss, metrics and the four gradients; not yet jitted."""

    def loss(image, text, scale, bias, sources):
        return objective(image, text, image_source=sources[0], text_source=sources[1], scale=scale, bias=bias)

    def call(values, sources):
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*values, sources)

    return call


def computed(objective, problem_):
    """The loss and its gradients by images, texts, scale and bias."""
    (value, _), gradients = computing(objective)(*arguments(problem_))
    return value, gradients


def hard_problem(seed, *, n=5, captions=2, negatives=2, d=4):
    """Images with captions and hard negatives of their own, some of them padding, and an image's hard negative."""
    rng = np.random.default_rng(seed)

    def rows(count):
        z = rng.normal(size=(count, d))
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    ids, each = np.arange(n), captions + negatives
    text_ids = np.repeat(ids, each).astype(np.int32)
    text_weight = np.tile([1.0] * captions + [0.0] * negatives, n).astype(np.float32)
    image_ids, image_weight = np.append(ids, 1).astype(np.int32), np.append(np.ones(n), 0).astype(np.float32)
    for row in (captions - 1, 2 * each - 1, *range(3 * each - negatives, 3 * each)):  # a caption, one negative, two
        text_ids[row], text_weight[row] = -1, 0
    order, images = rng.permutation(n * each), rng.permutation(n + 1)
    image, text = (image_ids[images][:, None], image_weight[images][:, None]), (text_ids[order], text_weight[order])
    return rows(n + 1), rows(n * each), image, (text[0][:, None], text[1][:, None]), 3.0 + rng.random(), rng.normal()
