"""MixGen (arXiv:2206.08358): blends two pictures and concatenates their captions.

A mixed row i is combined with its partner j, which itself stays as it is::

    x_i ← λ x_i + (1 - λ) x_j          t_i ← t_i t_j

Pixels are mixed as uint8 and rounded half up. Partners are taken as they were before mixing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError, Ge
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenBodies, TokenFormat, add_special_tokens, choose_tokens, strip_special_tokens
from mmjax.data.transforms.common.base import Alpha, Fraction, Stage

Variant = Literal["default", "a", "b", "c", "d", "e"]
Scope = Literal["global", "local"]

_RANDOM_RATIO: tuple[Variant, ...] = ("a", "d", "e")  # λ comes from a Beta distribution


class Transform:
    """Mixes some rows with others, by one of the paper's variants.

    =========== ========================= ============================================== ===========
    ``variant`` picture                   caption                                        λ
    =========== ========================= ============================================== ===========
    default     mixed                     both                                           ``mix``
    a           mixed                     both                                           Beta(α, α)
    b           mixed                     one of the two, drawn evenly                   ``mix``
    c           one of the two            both                                           none
    d           mixed                     λ n_i of n_i and (1 - λ) n_j of n_j tokens     Beta(α, α)
    e           mixed                     half of all n_i + n_j tokens                   Beta(α, α)
    =========== ========================= ============================================== ===========

    Tokens in d and e are drawn at random and keep their order; counts are rounded half up, and at least one token
    stays. A joined text has one BOS and one EOS, and is truncated before EOS. If the partner has fewer captions, its
    first one is used. Padding stays padding, and hard negatives of a mixed row become padding, because they may no
    longer be false.

    Each mixed row lists two sources, its own first. Weights of pictures are (λ, 1 - λ), in c (1, 0) or (0, 1). Weights
    of captions are (½, ½) in default, a and c, (1, 0) or (0, 1) in b, (λ, 1 - λ) in d, and in e proportional to the
    kept fraction of each text; truncation does not change them. The paper's labels use the first source alone, as the
    objective's ``targets="identity"`` does.

    With ``scope="global"``, M rows of the global batch, spread over pairs of neighboring groups, are mixed with the
    same member of the other group. So the batch does not depend on the number of processes, and twins are not mixed
    with each other. ``scope="local"`` is the layout of the released code: among each process's rows, row k < M is
    mixed with row k + M. Where M is more than the half that can have a partner of its own, up to the paper's M = B, a
    row's partner is the same member of the next group (local: the next row), which may be mixed itself, and behind the
    last one comes the first. The released code for M = B mixes in place, and so mixes rows that were mixed before.

    Args:
      token_format: the tokenizer's.
      variant: a row of the table.
      num: M, instead of ``fraction``.
      fraction: M as a fraction of the rows, rounded half up; 0.25 if neither is set.
      scope: whether M counts rows of the ``global`` batch or of each process (``local``).
      mix: λ where it is fixed; 0.5 if left out.
      alpha: α where λ is random; 0.1 if left out.
    """

    stage: ClassVar[Stage] = "batch"
    published_targets: ClassVar[str] = "identity"

    def __init__(
        self,
        *,
        token_format: TokenFormat,
        variant: Variant = "default",
        num: Annotated[int, Ge(0)] | None = None,
        fraction: Fraction | None = None,
        scope: Scope = "global",
        mix: Fraction | None = None,
        alpha: Alpha | None = None,
    ):
        self._token_format = token_format
        self._variant, self._scope = variant, scope
        self.joins_captions = variant in ("default", "a", "c")
        if num is not None and fraction is not None:
            raise ConfigError(f"num={num}: fraction={fraction} sets the same number; leave one of them out")
        if mix is not None and variant in (*_RANDOM_RATIO, "c"):
            raise ConfigError(f"mix={mix}: variant={variant!r} has no fixed ratio; leave it out")
        if alpha is not None and variant not in _RANDOM_RATIO:
            raise ConfigError(f"alpha={alpha}: variant={variant!r} draws no ratio; leave it out, or use variant='a'")
        self._num = num
        self._fraction = 0.25 if fraction is None else fraction
        self._mix = 0.5 if mix is None else mix
        self._alpha = 0.1 if alpha is None else alpha

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """Mixed row to its partner, for those of ``host_rows`` that are mixed."""
        if self._scope == "local":
            size = len(host_rows)
            count = self._count(size, groups=size, unit="rows in a process")
            step = count if 2 * count <= size else 1
            return {host_rows.start + k: host_rows.start + (k + step) % size for k in range(count)}
        slots = group * (batch_size // group // 2)
        count = self._count(batch_size, groups=batch_size // group, unit=f"rows in groups of {group}")
        if count > slots:
            mixed = (k * batch_size // count for k in range(count))
            return {row: (row + group) % batch_size for row in mixed if row in host_rows}
        pairs = {}
        for k in range(count):
            pair, member = divmod(k * slots // count, group)
            row = 2 * pair * group + member
            if row in host_rows:
                pairs[row] = row + group
        return pairs

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """Mixes the rows that have a partner; afterwards all rows list two sources."""
        if rows.image_ids.shape[1] > 1 or rows.text_ids.shape[2] > 1:
            raise ConfigError("data.transforms: mixgen got rows that another transform mixed; keep one of them")
        new = {
            "image_ids": _with_second(rows.image_ids, -1),
            "image_weight": _with_second(rows.image_weight, 0),
            "text_ids": _with_second(rows.text_ids, -1),
            "text_weight": _with_second(rows.text_weight, 0),
            "tokens": rows.tokens.copy(),
        }
        mixed = np.flatnonzero(rows.partner >= 0)
        if not mixed.size:
            return rows.replace(**new)
        partner = rows.partner[mixed]
        own, other = rows.tokens[mixed, : rows.captions], rows.tokens[partner, : rows.captions]
        # If the partner has fewer captions, its first one is used.
        other = np.where(rows.text_ids[partner, : rows.captions] >= 0, other, other[:, :1])
        ratio, texts, text_ratio = self._mix_texts(own, other, [random(int(number)) for number in rows.numbers[mixed]])
        new["image_ids"][mixed, 1] = rows.image_ids[partner, 0]
        new["image_weight"][mixed] = _pair(ratio)
        present = rows.text_ids[mixed, : rows.captions] >= 0
        new["tokens"][mixed, : rows.captions] = np.where(present, texts, own)
        new["text_ids"][mixed, : rows.captions, 1:] = np.where(present, rows.image_ids[partner][:, None], -1)
        new["text_weight"][mixed, : rows.captions] = np.where(present, _pair(text_ratio), 0)
        empty = TokenBodies(np.zeros((1, 0), np.int32), np.zeros((1, 0), bool))
        new["tokens"][mixed, rows.captions :] = add_special_tokens(empty, self._token_format, length=own.shape[-1])
        new["text_ids"][mixed, rows.captions :] = -1
        images = {name: blend(pixels, mixed, partner, ratio) for name, pixels in rows.images.items()}
        return rows.replace(images=images, **new)

    def _count(self, size: int, *, groups: int, unit: str) -> int:
        count = math.floor(self._fraction * size + 0.5) if self._num is None else self._num
        limit = size if groups > 1 else 0
        if count > limit:
            option = f"fraction={self._fraction}" if self._num is None else f"num={self._num}"
            raise ConfigError(f"{option}: of {size} {unit} at most {limit} can be mixed; use less")
        return count

    def _mix_texts(
        self, own: np.ndarray, other: np.ndarray, random: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ratios f32[M] of the pictures, texts i32[M, C, L] and their ratios f32[M, C], from captions i32[M, C, L]."""
        rows, count, length = own.shape
        first, second = (strip_special_tokens(x.reshape(-1, length), self._token_format) for x in (own, other))
        ratio = np.full(rows, self._mix)
        text_ratio = np.full((rows, count), 0.5)
        if self._variant in _RANDOM_RATIO:
            ratio = np.array([g.beta(self._alpha, self._alpha) for g in random])
        elif self._variant == "c":
            ratio = np.array([float(g.random() < 0.5) for g in random])
        both = first.concatenate(second)
        if self._variant == "b":
            own = np.array([g.random() < 0.5 for g in random])
            text_ratio = np.repeat(own[:, None].astype(float), count, axis=1)
            kept = np.repeat(own, count)[:, None]
            both = first.keep(kept).concatenate(second.keep(~kept))
        elif self._variant in ("d", "e"):
            draws = np.stack([g.random((count, both.ids.shape[1])) for g in random]).reshape(both.ids.shape)
            if self._variant == "d":
                both = subsample(first, second, draws, mix_ratio=np.repeat(ratio, count))
                text_ratio = np.repeat(ratio[:, None], count, axis=1)
            else:
                both, kept_ratio = halve(first, second, draws)
                text_ratio = kept_ratio.reshape(rows, count)
        texts = add_special_tokens(both, self._token_format, length=length).reshape(rows, count, length)
        return ratio.astype(np.float32), texts, text_ratio.astype(np.float32)


def blend(pixels: np.ndarray, mixed: np.ndarray, partner: np.ndarray, mix_ratio: np.ndarray) -> np.ndarray:
    """u8[n, H, W, C] whose rows ``mixed`` are ``mix_ratio · own + (1 - mix_ratio) · partner``, rounded half up."""
    out = pixels.copy()
    # One row at a time: buffers of that size stay in the processor's cache.
    half = np.empty(pixels.shape[1:], np.uint8)
    one, two = (np.empty(pixels.shape[1:], np.float32) for _ in range(2))
    for i, j, ratio in zip(mixed.tolist(), partner.tolist(), mix_ratio.tolist(), strict=True):
        a, b = pixels[i], pixels[j]
        if ratio == 0.5:  # (a + b + 1) / 2 without leaving uint8
            np.bitwise_xor(a, b, out=half)
            np.right_shift(half, 1, out=half)
            np.bitwise_or(a, b, out=out[i])
            np.subtract(out[i], half, out=out[i])
        elif ratio in (0, 1):
            out[i] = a if ratio else b
        else:
            np.multiply(a, np.float32(ratio), out=one)
            np.multiply(b, np.float32(1 - ratio), out=two)
            np.add(one, two, out=one)
            np.add(one, np.float32(0.5), out=one)
            np.copyto(out[i], one, casting="unsafe")
    return out


def subsample(first: TokenBodies, second: TokenBodies, draws: np.ndarray, *, mix_ratio: np.ndarray) -> TokenBodies:
    """``mix_ratio`` [n] of the first text's tokens and 1 - that of the second's, drawn by ``draws`` f64[n, V + W]."""
    counts = [np.floor(r * text.length + 0.5) for r, text in ((mix_ratio, first), (1 - mix_ratio, second))]
    # Both counts are 0 only if one text is empty; the other then keeps one token.
    short = counts[0] + counts[1] == 0
    width = first.ids.shape[1]
    for text, count in ((first, counts[0]), (second, counts[1])):
        np.maximum(count, 1, out=count, where=short & (text.length > 0))
    kept = (
        choose_tokens(first.present, draws[:, :width], counts[0]),
        choose_tokens(second.present, draws[:, width:], counts[1]),
    )
    return first.keep(kept[0]).concatenate(second.keep(kept[1]))


def halve(first: TokenBodies, second: TokenBodies, draws: np.ndarray) -> tuple[TokenBodies, np.ndarray]:
    """Half of all tokens of both, and f64[n]: the kept fraction of the first, relative to the sum of both fractions."""
    both = first.concatenate(second)
    half = both.keep(choose_tokens(both.present, draws, np.floor(0.5 * both.length + 0.5)))
    width = first.ids.shape[1]
    fractions = [
        kept.sum(axis=1) / np.maximum(text.length, 1)
        for kept, text in ((half.present[:, :width], first), (half.present[:, width:], second))
    ]
    total = fractions[0] + fractions[1]
    return half, np.where(total > 0, fractions[0] / np.where(total > 0, total, 1), 0.5)


def _with_second(x: np.ndarray, value: int) -> np.ndarray:
    return np.concatenate([x, np.full_like(x, value)], axis=-1)


def _pair(ratio: np.ndarray) -> np.ndarray:
    return np.stack([ratio, 1 - ratio], axis=-1)
