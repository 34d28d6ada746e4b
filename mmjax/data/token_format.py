"""The format of token rows, ``BOS? body EOS pad*``: how to take the special tokens off and put them on again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TokenFormat(NamedTuple):
    """A tokenizer's special tokens and sizes: what a transform needs to keep rows ``BOS? body EOS pad*``."""

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    context_length: int


class TokenBodies(NamedTuple):
    """Texts without special tokens: row r is ``ids[r]`` where ``present[r]``, in that order."""

    ids: np.ndarray  # i32[n, W]
    present: np.ndarray  # bool[n, W]

    @property
    def length(self) -> np.ndarray:
        """i64[n]: how many tokens each row has."""
        return self.present.sum(axis=1)

    def concatenate(self, other: TokenBodies) -> TokenBodies:
        """Each row followed by the same row of ``other``."""
        return TokenBodies(*(np.concatenate(pair, axis=1) for pair in zip(self, other, strict=True)))

    def keep(self, kept: np.ndarray) -> TokenBodies:
        """Without the tokens where ``kept`` bool[n, W] is False."""
        return self._replace(present=self.present & kept)


def strip_special_tokens(tokens: np.ndarray, token_format: TokenFormat) -> TokenBodies:
    """What lies between BOS and the first EOS of rows i32[n, L]; the pad id may equal EOS, and EOS may equal BOS."""
    ids = tokens[:, token_format.bos_id is not None :]
    return TokenBodies(ids, ~np.logical_or.accumulate(ids == token_format.eos_id, axis=1))


def add_special_tokens(texts: TokenBodies, token_format: TokenFormat, *, length: int) -> np.ndarray:
    """Rows i32[n, length] with one BOS and one EOS, truncated before EOS and padded after it."""
    start = int(token_format.bos_id is not None)
    room = length - start - 1
    order = np.argsort(~texts.present, axis=1, kind="stable")[:, :room]
    ids = np.take_along_axis(texts.ids, order, axis=1)
    kept = np.minimum(texts.length, room)
    out = np.full((len(ids), length), token_format.pad_id, np.int32)
    if token_format.bos_id is not None:
        out[:, 0] = token_format.bos_id
    np.copyto(out[:, start : start + ids.shape[1]], ids, where=np.arange(ids.shape[1]) < kept[:, None])
    out[np.arange(len(out)), start + kept] = token_format.eos_id
    return out


def choose_tokens(present: np.ndarray, draws: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Draws ``count`` [n] tokens of each row without replacement.

    Args:
      present: bool[n, W], the tokens to draw from.
      draws: f64[n, W], uniform numbers in [0, 1); the smallest ones win.
      count: how many tokens of each row.

    Returns:
      bool[n, W], True where a token was drawn.
    """
    order = np.argsort(np.where(present, draws, 2.0), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return present & (rank < count[:, None])
