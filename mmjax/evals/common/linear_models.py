"""Linear classifiers on embeddings: ridge regression in closed form, and logistic regression by L-BFGS."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

GRID = tuple(10.0**exponent for exponent in range(-5, 3))
"""Strengths of the penalty that are tried."""

_ITERATIONS = 1000
_HELD_OUT = 5  # one of so many training images chooses the penalty of logistic regression


class Classifier(NamedTuple):
    """Scores ``x @ weights + bias``."""

    weights: np.ndarray  # f64[E, C]
    bias: np.ndarray  # f64[C]
    l2: float  # the penalty that was chosen

    def predict(self, x: np.ndarray) -> np.ndarray:
        """i64[n]: the class with the highest score."""
        return np.argmax(x @ self.weights + self.bias, axis=1)


def fit_ridge(x: np.ndarray, labels: np.ndarray, num_classes: int, *, grid: Sequence[float] = GRID) -> Classifier:
    """Least squares of one-hot labels with a penalty, solved exactly for all penalties by one eigendecomposition.

    With centered x and y::

        W = (XᵀX + λI)⁻¹ XᵀY,    λ = l2 · tr(XᵀX) / E

    Of the grid the l2 is taken with the least squared error of leaving one image out, which has a closed form too: the
    residual of image i is ``r_i / (1 - h_i)`` with its leverage h_i (Allen 1974). It needs no further images, so that
    it works for one image a class.

    Args:
        x: f32[n, E].
        labels: i64[n].
        num_classes: How many classes there are.
        grid: Values of l2.
    """
    mean, y = x.mean(0, dtype=np.float64), np.eye(num_classes)[labels]
    centered, target = x.astype(np.float64) - mean, y - y.mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    rotated = centered @ vectors
    product = rotated.T @ target
    scale = max(float(values.clip(0).mean()), 1e-12)
    best: tuple[float, float] | None = None
    for l2 in grid:
        inverse = 1 / (values.clip(0) + l2 * scale)
        leverage = (rotated**2) @ inverse + 1 / len(x)
        residual = (target - rotated @ (inverse[:, None] * product)) / np.maximum(1 - leverage, 1e-9)[:, None]
        error = float(np.mean(residual**2))
        if best is None or error < best[0]:
            best = error, l2
    assert best is not None
    weights = vectors @ (product / (values.clip(0) + best[1] * scale)[:, None])
    return Classifier(weights, y.mean(0) - mean @ weights, best[1])


def fit_logistic(x: np.ndarray, labels: np.ndarray, num_classes: int, *, grid: Sequence[float] = GRID) -> Classifier:
    """Multinomial logistic regression: the minimum of ``mean cross-entropy + l2/2 · ‖W‖²``, without penalty on biases.

    Features are divided by their root mean square. Of the grid the l2 is taken with the best accuracy on every fifth
    training image; then all are used. The optimizer is SciPy's L-BFGS in double precision, as in the published linear
    probes, over gradients that the device computes: its line search and its stopping rule are those that people compare
    with, and optax's would need as many evaluations.

    Args:
        x: f32[n, E].
        labels: i64[n].
        num_classes: How many classes there are.
        grid: Values of l2.
    """
    scale = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) or 1.0
    x = (x / scale).astype(np.float32)
    l2 = grid[0]
    if len(grid) > 1:
        held_out = np.arange(len(x)) % _HELD_OUT == 0
        best, start = -1.0, None
        for value in sorted(grid, reverse=True):  # from the smoothest, each starts from the one before
            model = _minimize(x[~held_out], labels[~held_out], num_classes, value, start)
            start = np.concatenate([model.weights, model.bias[None]])
            accuracy = float(np.mean(model.predict(x[held_out]) == labels[held_out]))
            if accuracy > best:
                best, l2 = accuracy, value
    model = _minimize(x, labels, num_classes, l2, None)
    return model._replace(weights=model.weights / scale)


def _minimize(x: np.ndarray, labels: np.ndarray, num_classes: int, l2: float, start: np.ndarray | None) -> Classifier:
    device = jax.device_put(x), jax.device_put(labels.astype(np.int32))
    shape = (x.shape[1] + 1, num_classes)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(shape)
        gradient, losses = jax.device_get(_cross_entropy(jax.device_put(parameters.astype(np.float32)), *device))
        penalized = parameters * (np.arange(len(parameters)) < len(parameters) - 1)[:, None]
        # In double precision: the line search compares losses that differ in their last digits.
        value = losses.mean(dtype=np.float64) + l2 / 2 * np.sum(penalized**2)
        return float(value), (gradient + l2 * penalized).ravel()

    start = np.zeros(shape) if start is None else start
    options = {"maxiter": _ITERATIONS, "gtol": 1e-6, "ftol": 1e-10}
    result: Any = optimize.minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    parameters = result.x.reshape(shape)
    return Classifier(parameters[:-1], parameters[-1], l2)


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def _cross_entropy(parameters: jax.Array, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of the mean over images, and f32[n], that of each."""
    scores = jnp.dot(x, parameters[:-1], precision=jax.lax.Precision.HIGHEST) + parameters[-1]
    losses = jax.nn.logsumexp(scores, axis=1) - jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return losses.mean(), losses
