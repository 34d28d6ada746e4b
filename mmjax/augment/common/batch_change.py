"""The base classes of augmentations that change the batch itself, before the towers see it."""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mmjax.core.config import ConfigError
from mmjax.core.types import Batch, Metrics

MOST_ROWS = 64
"""Of a group, if the batch divides into groups: neighbors then lie on one device, and no pictures are sent."""


class BatchChange(abc.ABC):
    """Changes what the towers see of the clean rows; captions, targets and the rest of the step stay as they are.

    It makes no views, adds no loss and has no parameters that are trained.
    """

    @abc.abstractmethod
    def change(self, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Batch, Metrics]:
        """The batch that the towers see, and metrics.

        A pure function of its arguments: equal keys and steps give equal batches.

        Args:
            batch: the whole batch.
            key: the random key of this augmentation and step.
            step: i32[], traced.
        """


class PixelChange(BatchChange):
    """Changes pictures."""

    def change(self, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Batch, Metrics]:
        """The batch with the pictures of ``change_pixels``."""
        images, metrics = self.change_pixels(batch.images, valid=batch.image_source.valid, key=key, step=step)
        return dataclasses.replace(batch, images=images), metrics

    def change_pixels(
        self, images: Mapping[str, jax.Array], *, valid: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """The pictures that the towers see, and metrics.

        A pure function of its arguments: equal keys and steps give equal pictures.

        Args:
            images: u8[B, H, W, C] of each modality.
            valid: bool[B], False for padding.
            key: the random key of this augmentation and step.
            step: i32[], traced.
        """
        return dict(images), {}


def parse_ratio(ratio: str, *, path: str) -> float:
    """The fraction of changed rows in ``UNCHANGED:CHANGED``, such as ``1:3`` for 0.75."""
    match = re.fullmatch(r"(\d+):(\d+)", ratio)
    unchanged, changed = map(int, match.groups()) if match else (0, 0)
    if not changed:
        raise ConfigError(f"{path}={ratio!r}: expected unchanged to changed rows, as '1:1', '16:1' or '0:1'")
    return changed / (unchanged + changed)


def group_rows(rows: int, fraction: float) -> tuple[int, int]:
    """The rows of a group and how many of them, from the first on, are changed.

    Groups are as small as the fraction allows and have up to ``MOST_ROWS`` rows; a batch that does not divide into
    such groups is one. A row has a neighbor in its group unless it is the only one of the batch.

    >>> group_rows(4096, 0.75), group_rows(8, 1 / 3), group_rows(127, 0.5), group_rows(8, 1.0)
    ((4, 3), (8, 3), (127, 64), (2, 2))
    """
    size = max(n for n in range(1, min(rows, MOST_ROWS) + 1) if rows % n == 0)
    size = size if 2 * size >= min(rows, MOST_ROWS) else rows
    count = round(size * fraction)
    common = math.gcd(size, count)
    if common == size > 1:
        common = size // 2 if size % 2 == 0 else 1
    return size // common, count // common


def change_leading_rows(
    x: jax.Array, fraction: float, change: Callable[[jax.Array, int], jax.Array], *, path: str
) -> jax.Array:
    """The first rows of each group changed; the others keep their bits.

    Args:
        x: [B, ...].
        fraction: of rows that are changed, rounded to what a group can have.
        change: of groups [B/n, n, ...] and a count m, the changed first m rows of each group: [B/n, m, ...].
        path: of the option that sets the fraction, for errors.
    """
    size, count = group_rows(x.shape[0], fraction)
    if not count:
        raise ConfigError(f"{path}: changes no row of {x.shape[0]}; raise batch_size or the fraction of changed rows")
    groups = x.reshape(-1, size, *x.shape[1:])
    changed = jax.lax.stop_gradient(change(groups, count))
    return jnp.concatenate([changed, groups[:, count:]], axis=1).reshape(x.shape)
