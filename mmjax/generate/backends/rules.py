"""No models: rules and lists of words for roles that can do with them, for trials and as a baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import lookup
from mmjax.data.negatives import rules
from mmjax.generate.backend import Decoding, Entity, Failure, TextRequest

_FRAMES = (
    *("a picture of {}", "a photo that shows {}", "{}, seen in a picture"),
    *("this is {}", "here one sees {}", "an image with {}"),
)
_JOINS = re.compile(r"^(.+?) (?:and|beside|next to|near|with) (.+)$", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*")
_KINDS = {"promptmix_modify": ("color", "size", "material", "action", "state")}


class Writer:
    """Rewrites captions (``laclip_rewrite``) in other frames, and changes words of them (``promptmix_modify``).

    Glosses (``xmda_translate``) become a caption as they are, in small letters.
    """

    model, revision = "rules.writer", "1"

    def write(
        self,
        requests: Sequence[TextRequest],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies a request; a Failure for other prompts, and where no rule applies."""
        return [self._write(one, decoding.n, seed) for one, seed in zip(requests, seeds, strict=True)]

    def _write(self, request: TextRequest, count: int, seed: int) -> list[str] | Failure:
        caption = " ".join(str(request.values.get("caption", "")).split()).rstrip(".")
        random = np.random.default_rng(seed)
        if request.task == "laclip_rewrite" and caption:
            return [_reframed(caption, random) for _ in range(count)]
        if request.task == "xmda_translate" and caption:
            return [caption.lower()] * count
        if request.task in _KINDS:
            changed = [_changed(caption, _KINDS[request.task], random) for _ in range(count)]
            return [text for text in changed if text] or Failure("no word of the caption is in a list")
        return Failure(f"the backend rules does not know the prompt {request.task!r}; use a language model")


class EntityTagger:
    """Finds names of a list; without one, words with a capital inside a sentence.

    Args:
      path: a csv, tsv or jsonl table of ``name`` and ``kind``.
      kind: what names without a list, or without a kind there, are called.
    """

    model, revision = "rules.entitytagger", "1"

    def __init__(self, *, path: str | None = None, kind: str = "PERSON"):
        self._kind = kind
        self._kinds = None if path is None else _read(path, kind)
        names = sorted(self._kinds or (), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)") if names else _NAME

    def entities(self, texts: Sequence[str]) -> list[list[Entity] | Failure]:
        """The names of each text, from left to right."""
        return [self._entities(text) for text in texts]

    def _entities(self, text: str) -> list[Entity]:
        matches = [match for match in self._pattern.finditer(text) if self._kinds or not _begins(text, match)]
        return [Entity(match.start(), match.end(), (self._kinds or {}).get(match[0], self._kind)) for match in matches]


class MaskFiller:
    """Fills masks with single words of a list, whatever stands around them; the temperature changes nothing.

    Args:
      names: the words.
      path: or a csv, tsv or jsonl table of ``name``, of which those of one word are taken.
    """

    model, revision = "rules.maskfiller", "1"

    def __init__(self, *, names: tuple[str, ...] = (), path: str | None = None):
        listed = [*names, *(_read(path, "") if path is not None else ())]
        self._names = [name for name in dict.fromkeys(listed) if len(name.split()) == 1]
        if not self._names:
            raise ConfigError(f"names={names!r}: needs words to fill in; list some, or name a table with path")

    def fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str | Failure]:
        """Each text with every ``[MASK]`` replaced."""
        results: list[str | Failure] = []
        for text, seed in zip(texts, seeds, strict=True):
            random = np.random.default_rng(seed)
            while "[MASK]" in text:
                text = text.replace("[MASK]", self._names[int(random.integers(len(self._names)))], 1)
            results.append(text)
        return results


def _reframed(caption: str, random: np.random.Generator) -> str:
    match = _JOINS.match(caption)
    if match is not None and random.random() < 0.5:
        caption = f"{match[2]} and {match[1]}"
    return _FRAMES[int(random.integers(len(_FRAMES)))].format(caption)


def _changed(caption: str, kinds: Sequence[str], random: np.random.Generator) -> str | None:
    for number in random.permutation(len(kinds)).tolist():
        if changed := rules.replace_words(caption, kinds[number], random):
            return changed
    return None


def _begins(text: str, match: re.Match[str]) -> bool:
    """Whether a single word begins a sentence, where a capital says nothing."""
    before = text[: match.start()].rstrip()
    return " " not in match[0] and (not before or before[-1] in ".!?:")


def _read(path: str, kind: str) -> dict[str, str]:
    rows = [row for _, row in lookup.rows(path, option="path")]
    names = {str(row["name"]).strip(): str(row.get("kind") or kind) for row in rows if row.get("name")}
    if not names:
        raise ConfigError(f"path={path!r}: holds no names; it needs a column 'name'")
    return names
