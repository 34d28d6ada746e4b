"""A tokenizer that remembers the texts of a small source, so that each is tokenized once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_CACHED_TEXTS = 1 << 17  # about 70 MB at 77 tokens, in each worker process


class TokenCache:
    """A tokenizer that remembers the first ``_CACHED_TEXTS`` different texts."""

    def __init__(self, tokenizer: Callable[[Sequence[str]], np.ndarray]):
        self._tokenizer = tokenizer
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Ids of ``texts``: i32[n, L]."""
        new = list({text: None for text in texts if text not in self._known})
        fresh = dict(zip(new, self._tokenizer(new), strict=True)) if new else {}
        if len(self._known) < _CACHED_TEXTS:
            self._known.update(fresh)
        return np.array([fresh[text] if text in fresh else self._known[text] for text in texts], np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}
