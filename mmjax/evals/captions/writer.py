"""What writes captions for an evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class CaptionWriter(NamedTuple):
    """A model's decoder with one way to choose words."""

    write: Callable[[Any, dict[str, jax.Array]], jax.Array]  # pure: (params, {modality: u8[B, H, W, C]}) -> i32[B, L]
    decode: Callable[[np.ndarray], list[str]]  # the texts of i32[n, L]


MakeWriter = Callable[..., CaptionWriter]
"""``make_writer(method="beam", beams=4)``: the options are those of ``mmjax.inference.decoding.DecodingConfig``."""
