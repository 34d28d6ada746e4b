"""Hides tokens of captions: the text side's counterpart of random erasing, and word dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, get_args

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenFormat, add_special_tokens, strip_special_tokens
from mmjax.data.transforms.base import Stage

Mode = Literal["mask", "random", "delete"]


class Transform:
    """Changes each body token of each caption with some probability; the frame and hard negatives are never touched.

    ``mask`` writes ``mask_id``; ``random`` any id but those of the frame, each as likely (so perhaps the same);
    ``delete`` takes the token out and moves up what follows, one token staying in any case.

    Args:
      frame: the tokenizer's.
      probability: for a token.
      mode: see above.
      mask_id: the id that hides a token; for ``mask`` alone.
    """

    stage: ClassVar[Stage] = "batch"

    def __init__(
        self, *, token_format: TokenFormat, probability: float = 0.15, mode: Mode = "delete", mask_id: int | None = None
    ):
        self._mode = choose(mode, get_args(Mode), path="mode")
        if not 0 <= probability <= 1:
            raise ConfigError(f"probability={probability}: set it between 0 and 1")
        if (mode == "mask") != (mask_id is not None):
            raise ConfigError(f"mask_id={mask_id}: mode={mode!r}; 'mask' needs one, the other modes have none")
        special = {token_format.bos_id, token_format.eos_id, token_format.pad_id} - {None}
        if mask_id is not None and (mask_id in special or not 0 <= mask_id < token_format.vocab_size):
            raise ConfigError(
                f"mask_id={mask_id}: must be an id of the vocabulary of {token_format.vocab_size}, but no special one; "
                "use mode='delete' or 'random' where the tokenizer has no token for it"
            )
        self._token_format, self._probability, self._mask_id = token_format, probability, mask_id
        self._special = sorted(i for i in special if i is not None)
        if mode == "random" and token_format.vocab_size <= len(self._special):
            raise ConfigError(f"mode='random': the vocabulary of {token_format.vocab_size} has no ids but the frame's")

    def partners(self, *, batch_size: int, group: int, host_rows: range) -> Mapping[int, int]:
        """None: each row is changed by itself."""
        return {}

    def __call__(self, rows: BatchRows, random: Callable[[int], np.random.Generator]) -> BatchRows:
        """The rows with their captions' tokens changed."""
        count, captions, length = rows.tokens.shape[0], rows.captions, rows.tokens.shape[2]
        generators = [random(int(number)) for number in rows.numbers]
        texts = strip_special_tokens(rows.tokens[:, :captions].reshape(-1, length), self._token_format)
        width = texts.ids.shape[1]
        hit = np.stack([g.random((captions, width)) for g in generators]).reshape(-1, width) < self._probability
        tokens = rows.tokens.copy()
        if self._mode == "delete":
            spared = np.stack([g.random(captions) for g in generators]).ravel()
            place = (spared * texts.length).astype(int)
            # Of a body that would vanish one token, any of them, stays.
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
        """Uniform over the vocabulary without the frame's ids."""
        ids = random.integers(self._token_format.vocab_size - len(self._special), size=shape)
        for special in self._special:  # in rising order: each moves up what is not below it
            ids += ids >= special
        return ids
