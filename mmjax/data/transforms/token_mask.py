"""Masks, replaces or deletes random tokens of captions, as random erasing does with pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenFormat, add_special_tokens, strip_special_tokens
from mmjax.data.transforms.common.base import Probability, Stage

Mode = Literal["mask", "random", "delete"]


class Transform:
    """Changes each token of each caption with some probability, except special tokens and hard negatives.

    ``mask`` writes ``mask_id``. ``random`` writes an id drawn uniformly from the vocabulary without special tokens.
    ``delete`` removes the token and closes the gap, but keeps at least one token.

    Args:
      token_format: the tokenizer's.
      probability: of changing a token.
      mode: ``mask``, ``random`` or ``delete``.
      mask_id: the id that masks a token; only for ``mask``.
    """

    stage: ClassVar[Stage] = "batch"

    def __init__(
        self,
        *,
        token_format: TokenFormat,
        probability: Probability = 0.15,
        mode: Mode = "delete",
        mask_id: int | None = None,
    ):
        self._mode = mode
        if (mode == "mask") != (mask_id is not None):
            raise ConfigError(f"mask_id={mask_id}: mode={mode!r}; 'mask' needs one, the other modes must have none")
        special = {token_format.bos_id, token_format.eos_id, token_format.pad_id} - {None}
        if mask_id is not None and (mask_id in special or not 0 <= mask_id < token_format.vocab_size):
            raise ConfigError(
                f"mask_id={mask_id}: must be an id of the vocabulary of {token_format.vocab_size}, but no special one; "
                "use mode='delete' or 'random' where the tokenizer has no token for it"
            )
        self._token_format, self._probability, self._mask_id = token_format, probability, mask_id
        self._special = sorted(i for i in special if i is not None)
        if mode == "random" and token_format.vocab_size <= len(self._special):
            raise ConfigError(f"mode='random': all {token_format.vocab_size} ids are special; use another tokenizer")

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """None: rows are changed independently."""
        return {}

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """The rows with some of the captions' tokens changed."""
        count, captions, length = rows.tokens.shape[0], rows.captions, rows.tokens.shape[2]
        generators = [random(int(number)) for number in rows.numbers]
        texts = strip_special_tokens(rows.tokens[:, :captions].reshape(-1, length), self._token_format)
        width = texts.ids.shape[1]
        hit = np.stack([g.random((captions, width)) for g in generators]).reshape(-1, width) < self._probability
        tokens = rows.tokens.copy()
        if self._mode == "delete":
            # If all tokens of a text would be deleted, one of them, drawn uniformly, stays.
            draws = np.stack([g.random(captions) for g in generators]).ravel()
            place = (draws * texts.length).astype(int)
            hit &= ~((hit | ~texts.present).all(axis=1)[:, None] & (np.arange(width) == place[:, None]))
            changed = add_special_tokens(texts.keep(~hit), self._token_format, length=length)
        else:
            new: np.ndarray | int = int(self._mask_id or 0)
            if self._mode == "random":
                new = np.stack([self._ids(g, (captions, width)) for g in generators]).reshape(-1, width)
            changed = add_special_tokens(
                texts._replace(ids=np.where(hit & texts.present, new, texts.ids)), self._token_format, length=length
            )
        present = (rows.text_ids[:, :captions, 0] >= 0)[..., None]
        tokens[:, :captions] = np.where(present, changed.reshape(count, captions, length), tokens[:, :captions])
        return rows.replace(tokens=tokens)

    def _ids(self, random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Ids drawn uniformly from the vocabulary without special tokens."""
        ids = random.integers(self._token_format.vocab_size - len(self._special), size=shape)
        for special in self._special:  # in ascending order, so that each skips one id
            ids += ids >= special
        return ids
