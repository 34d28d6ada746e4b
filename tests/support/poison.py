"""Batches that spoil the loss: a factor on the loss of the batches of given numbers, NaN among them."""

import os
import signal

import jax.numpy as jnp
import numpy as np

from mmjax.data.pipeline import Batches
from mmjax.objectives.contrastive import Objective

_read, _loss = Batches.__getitem__, Objective.__call__


def prepare(patch=setattr):
    """Makes the contrastive loss proportional to the largest weight of an image, which is 1 in a clean batch."""

    def loss(self, image, text, *, image_source, **others):
        value, metrics = _loss(self, image, text, image_source=image_source, **others)
        return value * jnp.max(image_source.weight), metrics

    patch(Objective, "__call__", loss)


def put(factors, patch=setattr, *, fatal=(), terminating=None):
    """Batches whose number is in ``factors`` get these as weights.

    To make one of ``fatal`` fails; the one of number ``terminating`` sends this process a SIGTERM.
    """

    def batch(self, number):
        if number in fatal:
            raise RuntimeError(f"batch {number} kills")
        if number == terminating:
            os.kill(os.getpid(), signal.SIGTERM)
        arrays = _read(self, number)
        return arrays | {"image_weight": arrays["image_weight"] * np.float32(factors.get(number, 1.0))}

    patch(Batches, "__getitem__", batch)
