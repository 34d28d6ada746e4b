"""The bodies of framed texts ``BOS? body EOS pad*``, and frames around new bodies; all rows at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmjax.data.sample import Frame


class Bodies(NamedTuple):
    """Texts without their frame: row r is ``ids[r]`` where ``present[r]``, in that order."""

    ids: np.ndarray  # i32[n, W]
    present: np.ndarray  # bool[n, W]

    @property
    def length(self) -> np.ndarray:
        """i64[n]: how many tokens."""
        return self.present.sum(axis=1)

    def then(self, other: Bodies) -> Bodies:
        """Each row followed by the same row of ``other``."""
        return Bodies(*(np.concatenate(pair, axis=1) for pair in zip(self, other, strict=True)))

    def keep(self, kept: np.ndarray) -> Bodies:
        """Without the tokens where ``kept`` bool[n, W] is False."""
        return self._replace(present=self.present & kept)


def bodies(tokens: np.ndarray, frame: Frame) -> Bodies:
    """What lies between BOS and the first EOS of rows i32[n, L]; padding may be EOS, or EOS be BOS, as well."""
    ids = tokens[:, frame.bos_id is not None :]
    return Bodies(ids, ~np.logical_or.accumulate(ids == frame.eos_id, axis=1))


def framed(texts: Bodies, frame: Frame, *, length: int) -> np.ndarray:
    """Rows i32[n, length] of the bodies with one BOS and one EOS, cut so that EOS stays, then padding."""
    start = int(frame.bos_id is not None)
    room = length - start - 1
    order = np.argsort(~texts.present, axis=1, kind="stable")[:, :room]
    ids = np.take_along_axis(texts.ids, order, axis=1)
    kept = np.minimum(texts.length, room)
    out = np.full((len(ids), length), frame.pad_id, np.int32)
    if frame.bos_id is not None:
        out[:, 0] = frame.bos_id
    np.copyto(out[:, start : start + ids.shape[1]], ids, where=np.arange(ids.shape[1]) < kept[:, None])
    out[np.arange(len(out)), start + kept] = frame.eos_id
    return out


def chosen(present: np.ndarray, draws: np.ndarray, count: np.ndarray) -> np.ndarray:
    """bool[n, W]: in each row, those ``count`` [n] of the present places whose uniform ``draws`` [n, W] are least."""
    order = np.argsort(np.where(present, draws, 2.0), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return present & (rank < count[:, None])
