"""Tables of fixed positions: angles that turn the patches of an image, and sines and cosines that are added."""

from __future__ import annotations

import numpy as np

from mmjax.models.config import VisionConfig


def rotary_angles(config: VisionConfig) -> np.ndarray:
    """By how much each patch turns each pair of a head's numbers: f64[grid², head_width/2].

    Frequencies are ``10000^(-k/(head_width/4))``; the first half of the pairs is for one coordinate, the second for
    the other (Heo et al., arXiv:2403.13298).
    """
    quarter = config.head_width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    places = np.arange(config.grid) + config.rope_offset
    if config.rope_grid is not None:
        places = places / config.grid * config.rope_grid
    row, column = (x.reshape(-1, 1) for x in np.meshgrid(places, places, indexing="ij"))
    first, second = (row, column) if config.rope == "row_column" else (column, row)
    return np.concatenate([first * frequencies, second * frequencies], axis=1)


def sin_cos_positions(grid: int, width: int, *, class_token: bool) -> np.ndarray:
    """Fixed position embeddings f32[grid² (+1), width]: sines and cosines of column and row; zeros for the class token.

    Frequencies are ``10000^(-k/(width/4))``, as in masked autoencoders (He et al., arXiv:2111.06377).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    waves = []
    for coordinate in (column, row):
        angles = coordinate.reshape(-1, 1) * frequencies
        waves += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(waves, axis=1)
    if class_token:
        table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)
