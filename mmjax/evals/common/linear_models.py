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
FOLDS = 5  # of the training images, to choose a penalty


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

    Of the grid the l2 is taken with the best accuracy in cross-validation by ``make_folds``, the largest one of equals.
    Leaving out single images, which has a closed form, would favor small penalties: the class of the image that is left
    out is then the smallest one. With one image a class the largest l2 is taken, which compares with class means.

    Args:
        x: f32[n, E].
        labels: i64[n].
        num_classes: How many classes there are.
        grid: Values of l2.
    """
    grid = sorted(grid)
    folds = make_folds(labels)
    if len(grid) > 1 and folds.max() > 0:
        hits = np.zeros(len(grid))
        for fold in range(folds.max() + 1):
            train, test = folds != fold, folds == fold
            models = _solve_ridge(x[train], labels[train], num_classes, grid)
            hits += [np.sum(model.predict(x[test]) == labels[test]) for model in models]
        grid = [grid[len(grid) - 1 - int(np.argmax(hits[::-1]))]]
    return _solve_ridge(x, labels, num_classes, grid[-1:])[0]


def make_folds(labels: np.ndarray) -> np.ndarray:
    """i64[n]: the fold of each image, from 0; each fold has as many of a class, or one more.

    There are ``FOLDS``, or fewer if a class has fewer images.
    """
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return place % min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))


def _solve_ridge(x: np.ndarray, labels: np.ndarray, num_classes: int, grid: Sequence[float]) -> list[Classifier]:
    mean, y = x.mean(0, dtype=np.float64), np.eye(num_classes)[labels]
    centered = x.astype(np.float64) - mean
    values, vectors = np.linalg.eigh(centered.T @ centered)
    values = values.clip(0)
    product = vectors.T @ (centered.T @ (y - y.mean(0)))
    scale = max(float(values.mean()), 1e-12)
    weights = [vectors @ (product / (values + l2 * scale)[:, None]) for l2 in grid]
    return [Classifier(w, y.mean(0) - mean @ w, l2) for w, l2 in zip(weights, grid, strict=True)]


def fit_logistic(x: np.ndarray, labels: np.ndarray, num_classes: int, *, grid: Sequence[float] = GRID) -> Classifier:
    """Multinomial logistic regression: the minimum of ``mean cross-entropy + l2/2 · ‖W‖²``, without penalty on biases.

    Features are divided by their root mean square. Of the grid the l2 is taken with the best accuracy on one fold of
    ``make_folds``; then all are used. The optimizer is SciPy's L-BFGS in double precision, as in the published linear
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
    l2, folds = max(grid), make_folds(labels)
    if len(grid) > 1 and folds.max() > 0:
        held_out = folds == 0
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
