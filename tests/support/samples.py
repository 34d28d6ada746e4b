"""Samples and rows for tests of transforms."""

from __future__ import annotations

import numpy as np

from mmjax.core.config import bind
from mmjax.data.sample import BatchRows, Sample
from support.pictures import photograph


def sample(*, captions=("a red dot",), modalities=("image",), size=(20, 30), **fields) -> Sample:
    """One with another read-only picture for each modality: who writes to one fails."""
    images = {}
    for seed, name in enumerate(modalities):
        images[name] = photograph(*size, seed=seed)
        images[name].setflags(write=False)
    return Sample(id=3, key="k", captions=list(captions), images=images, fields=fields)


def rows(count: int, *, partner=None, modalities=("image",), size=(8, 10)) -> BatchRows:
    """Read-only rows of one caption each, numbered from 0, of unlike brightness and contrast."""
    random = np.random.default_rng(count)
    images = {}
    for name in modalities:
        low = random.integers(0, 128, (count, 1, 1, 3))
        images[name] = (low + random.integers(0, 127, (count, *size, 3)) * random.random((count, 1, 1, 3))).astype(
            np.uint8
        )
        images[name].setflags(write=False)
    ids = np.arange(count, dtype=np.int32)[:, None]
    return BatchRows(
        numbers=np.arange(count),
        partner=np.full(count, -1) if partner is None else np.asarray(partner),
        images=images,
        image_ids=ids,
        image_weight=np.ones((count, 1), np.float32),
        tokens=np.zeros((count, 1, 5), np.int32),
        text_ids=ids[:, None],
        text_weight=np.ones((count, 1, 1), np.float32),
        captions=1,
    )


def configured(transform, **options):
    """The transform as a configuration makes it: options are checked against its annotations."""
    injected = {
        name: options.pop(name) for name in ("token_format", "data_modalities", "image_size") if name in options
    }
    return transform(**bind(transform, options, path="", injected=injected))
