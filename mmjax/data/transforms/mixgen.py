"""MixGen (arXiv:2206.08358): two pictures blended, their captions joined.

A row i that is mixed takes up its partner j, which itself stays as it is::

    x_i ← λ x_i + (1 - λ) x_j          t_i ← t_i t_j

Pixels are mixed as uint8 and rounded half up; every row is made of unmodified ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenBodies, TokenFormat, add_special_tokens, choose_tokens, strip_special_tokens
from mmjax.data.transforms.base import Stage

Variant = Literal["default", "a", "b", "c", "d", "e"]
Scope = Literal["global", "local"]

_DRAWN: tuple[Variant, ...] = ("a", "d")  # λ comes from a Beta distribution


class Transform:
    """Mixes a part of the rows with others, after the paper's table of variants.

    =========== ========================= ============================================== ===========
    ``variant`` picture                   caption                                        λ
    =========== ========================= ============================================== ===========
    default     mixed                     both                                           ``mix``
    a           mixed                     both                                           Beta(α, α)
    b           mixed                     one of the two, either as likely               ``mix``
    c           one of the two, either    both                                           none
    d           mixed                     of n_i and n_j tokens λ n_i and (1 - λ) n_j    Beta(α, α)
    e           mixed                     half of all n_i + n_j tokens                   ``mix``
    =========== ========================= ============================================== ===========

    Tokens in d and e are drawn at random and keep their order; counts are rounded half up, and one token stays at
    least. A joined text has one BOS and one EOS, and is cut before EOS. Where the partner has fewer captions its first
    is taken; a text row that is padding stays so. Hard negatives of a mixed row are no longer false in the way they
    were made, and become padding.

    Sources written, the row's own first: pictures weigh (λ, 1 - λ), in c (1, 0) or (0, 1); captions weigh (½, ½) in
    default, a and c, (1, 0) or (0, 1) in b, (λ, 1 - λ) in d, and in e in proportion to the part of each that is left.
    Tokens cut for want of room are not counted. The paper's labels are the first sources alone: the objective's
    ``targets="identity"``.

    With ``scope="global"`` M rows of the global batch, spread over pairs of neighboring groups, are mixed with the
    same member of the other group: so the batch is the same however many processes make it, and twins are not mixed
    with each other. ``scope="local"`` is the layout of the released code in each process's own rows: row k < M is mixed
    with row k + M.

    Args:
      frame: the tokenizer's.
      variant: a row of the table.
      num: M; ``fraction`` is then left out.
      fraction: M is this part of the rows, rounded half up; 0.25 where neither is given.
      scope: ``global`` or ``local``; M counts rows of the global batch, or of each process's.
      mix: λ where it is fixed; 0.5 where it is not given.
      alpha: α where λ is drawn; 0.1 where it is not given.
    """

    stage: ClassVar[Stage] = "batch"

    def __init__(
        self,
        *,
        token_format: TokenFormat,
        variant: Variant = "default",
        num: int | None = None,
        fraction: float | None = None,
        scope: Scope = "global",
        mix: float | None = None,
        alpha: float | None = None,
    ):
        self._token_format = token_format
        self._variant = choose(variant, get_args(Variant), path="variant")
        self._scope = choose(scope, get_args(Scope), path="scope")
        if num is not None and fraction is not None:
            raise ConfigError(f"num={num}: fraction={fraction} says the same in another way; leave one of them out")
        if num is not None and num < 0:
            raise ConfigError(f"num={num}: a number of rows; set it to 0 or more")
        if fraction is not None and not 0 <= fraction <= 0.5:
            raise ConfigError(f"fraction={fraction}: each mixed row needs a partner of its own; set it from 0 to 0.5")
        if mix is not None and variant in (*_DRAWN, "c"):
            raise ConfigError(f"mix={mix}: variant={variant!r} has no fixed share; leave it out")
        if mix is not None and not 0 <= mix <= 1:
            raise ConfigError(f"mix={mix}: the share of a row's own picture; set it between 0 and 1")
        if alpha is not None and variant not in _DRAWN:
            raise ConfigError(f"alpha={alpha}: variant={variant!r} draws no share; leave it out, or use variant='a'")
        if alpha is not None and not 0 < alpha < math.inf:
            raise ConfigError(f"alpha={alpha}: must be greater than 0; the paper has 0.1")
        self._num = num
        self._fraction = 0.25 if fraction is None else fraction
        self._mix = 0.5 if mix is None else mix
        self._alpha = 0.1 if alpha is None else alpha

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Mixed row to its partner, for those of ``host_rows``."""
        if self._scope == "local":
            count = self._count(len(host_rows), most=len(host_rows) // 2, of="rows in a process")
            return {host_rows.start + k: host_rows.start + k + count for k in range(count)}
        slots = group * (batch_size // group // 2)
        count = self._count(batch_size, most=slots, of=f"rows in groups of {group}")
        pairs = {}
        for k in range(count):
            pair, member = divmod(k * slots // count, group)
            row = 2 * pair * group + member
            if row in host_rows:
                pairs[row] = row + group
        return pairs

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """Mixes the rows that have a partner; all rows have room for two sources from now on."""
        if rows.image_ids.shape[1] > 1 or rows.text_ids.shape[2] > 1:
            raise ConfigError("data.transforms: mixgen is given rows that are mixed already; keep one that mixes rows")
        new = {
            "image_ids": _with_second(rows.image_ids, -1),
            "image_weight": _with_second(rows.image_weight, 0),
            "text_ids": _with_second(rows.text_ids, -1),
            "text_weight": _with_second(rows.text_weight, 0),
            "tokens": rows.tokens.copy(),
        }
        at = np.flatnonzero(rows.partner >= 0)
        if not at.size:
            return rows.replace(**new)
        by = rows.partner[at]
        own, other = _captions(rows, at), _captions(rows, by)
        # A caption that the partner does not have is its first.
        other = np.where(rows.text_ids[by, : rows.captions] >= 0, other, other[:, :1])
        share, texts, text_share = self._mixed(own, other, [random(int(number)) for number in rows.numbers[at]])
        new["image_ids"][at, 1] = rows.image_ids[by, 0]
        new["image_weight"][at] = _two(share)
        there = rows.text_ids[at, : rows.captions] >= 0
        new["tokens"][at, : rows.captions] = np.where(there, texts, own)
        new["text_ids"][at, : rows.captions, 1:] = np.where(there, rows.image_ids[by][:, None], -1)
        new["text_weight"][at, : rows.captions] = np.where(there, _two(text_share), 0)
        nothing = TokenBodies(np.zeros((1, 0), np.int32), np.zeros((1, 0), bool))
        new["tokens"][at, rows.captions :] = add_special_tokens(nothing, self._token_format, length=own.shape[-1])
        new["text_ids"][at, rows.captions :] = -1
        images = {name: blended(pixels, at, by, share) for name, pixels in rows.images.items()}
        return rows.replace(images=images, **new)

    def _count(self, size: int, *, most: int, of: str) -> int:
        count = math.floor(self._fraction * size + 0.5) if self._num is None else self._num
        if count > most:
            option = f"fraction={self._fraction}" if self._num is None else f"num={self._num}"
            raise ConfigError(f"{option}: of {size} {of} at most {most} can be mixed with others; use less")
        return count

    def _mixed(
        self, own: np.ndarray, other: np.ndarray, random: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shares f32[M] of the pictures, texts i32[M, C, L], and their shares f32[M, C]; of captions [M, C, L]."""
        rows, count, length = own.shape
        first, second = (strip_special_tokens(x.reshape(-1, length), self._token_format) for x in (own, other))
        share = np.full(rows, self._mix)
        text_share = np.full((rows, count), 0.5)
        if self._variant in _DRAWN:
            share = np.array([g.beta(self._alpha, self._alpha) for g in random])
        elif self._variant == "c":
            share = np.array([float(g.random() < 0.5) for g in random])
        both = first.concatenate(second)
        if self._variant == "b":
            stays = np.array([g.random() < 0.5 for g in random])
            text_share = np.repeat(stays[:, None].astype(float), count, axis=1)
            kept = np.repeat(stays, count)[:, None]
            both = first.keep(kept).concatenate(second.keep(~kept))
        elif self._variant in ("d", "e"):
            draws = np.stack([g.random((count, both.ids.shape[1])) for g in random]).reshape(both.ids.shape)
            if self._variant == "d":
                both = thinned(first, second, draws, share=np.repeat(share, count))
                text_share = np.repeat(share[:, None], count, axis=1)
            else:
                both, left = halved(first, second, draws)
                text_share = left.reshape(rows, count)
        texts = add_special_tokens(both, self._token_format, length=length).reshape(own.shape)
        return share.astype(np.float32), texts, text_share.astype(np.float32)


def blended(pixels: np.ndarray, at: np.ndarray, by: np.ndarray, share: np.ndarray) -> np.ndarray:
    """u8[n, H, W, C] in which rows ``at`` are ``share · own + (1 - share) · row by``, rounded half up."""
    out = pixels.copy()
    # One row at a time in buffers of its own size: these stay in the processor's cache.
    gray = np.empty(pixels.shape[1:], np.uint8)
    one, two = (np.empty(pixels.shape[1:], np.float32) for _ in range(2))
    for i, j, mix in zip(at.tolist(), by.tolist(), share.tolist(), strict=True):
        a, b = pixels[i], pixels[j]
        if mix == 0.5:  # (a + b + 1) / 2 without leaving uint8
            np.bitwise_xor(a, b, out=gray)
            np.right_shift(gray, 1, out=gray)
            np.bitwise_or(a, b, out=out[i])
            np.subtract(out[i], gray, out=out[i])
        elif mix in (0, 1):
            out[i] = a if mix else b
        else:
            np.multiply(a, np.float32(mix), out=one)
            np.multiply(b, np.float32(1 - mix), out=two)
            np.add(one, two, out=one)
            np.add(one, np.float32(0.5), out=one)
            np.copyto(out[i], one, casting="unsafe")
    return out


def thinned(first: TokenBodies, second: TokenBodies, draws: np.ndarray, *, share: np.ndarray) -> TokenBodies:
    """Both, with ``share`` [n] of the first's tokens and the rest's share of the second's; ``draws`` f64[n, V + W]."""
    counts = [np.floor(s * text.length + 0.5) for s, text in ((share, first), (1 - share, second))]
    # Both round to nothing only where one has no tokens at all: then the other keeps one.
    short = counts[0] + counts[1] == 0
    width = first.ids.shape[1]
    for text, count in ((first, counts[0]), (second, counts[1])):
        np.maximum(count, 1, out=count, where=short & (text.length > 0))
    kept = (
        choose_tokens(first.present, draws[:, :width], counts[0]),
        choose_tokens(second.present, draws[:, width:], counts[1]),
    )
    return first.keep(kept[0]).concatenate(second.keep(kept[1]))


def halved(first: TokenBodies, second: TokenBodies, draws: np.ndarray) -> tuple[TokenBodies, np.ndarray]:
    """Half of both's tokens, and f64[n]: the kept part of the first, as a share of the kept parts of both."""
    both = first.concatenate(second)
    half = both.keep(choose_tokens(both.present, draws, np.floor(0.5 * both.length + 0.5)))
    width = first.ids.shape[1]
    parts = [
        kept.sum(axis=1) / np.maximum(text.length, 1)
        for kept, text in ((half.present[:, :width], first), (half.present[:, width:], second))
    ]
    total = parts[0] + parts[1]
    return half, np.where(total > 0, parts[0] / np.where(total > 0, total, 1), 0.5)


def _captions(rows: BatchRows, at: np.ndarray) -> np.ndarray:
    return rows.tokens[at, : rows.captions]


def _with_second(x: np.ndarray, value: int) -> np.ndarray:
    return np.concatenate([x, np.full_like(x, value)], axis=-1)


def _two(share: np.ndarray) -> np.ndarray:
    return np.stack([share, 1 - share], axis=-1)
