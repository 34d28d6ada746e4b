"""COCO-Order and Flickr30k-Order: captions against the same words in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.benchmarks.common import base
from mmjax.data.source import UnreadableEntry
from mmjax.data.storage import filesystem

_DRAWS = 8  # until an order differs from the caption's; short captions have few

Shuffle = Callable[[list[str], np.random.Generator], list[str]]


class Source(base.BenchmarkSource):
    """ARO's tests of word order (Yuksekgonul et al. 2023, arXiv:2210.01936) from a list of captioned pictures.

    The authors shuffle ALBEF's lists (``coco_karpathy_test.json``, ``flickr30k_test.json``; [{image, caption: [...]}])
    again in each run, with a part-of-speech tagger. Here shuffles are drawn from ``seed``, and are the same in each
    run: ``shuffle_trigrams`` (groups of three words change places), ``shuffle_within_trigrams``, and with
    ``content_words`` ``shuffle_nouns_adj`` and ``shuffle_other_words``. Captions are cleaned as BLIP's: lower case, no
    punctuation, at most 30 words. An order that equals the caption is left out. A list [{image, caption_options:
    [true, false, …]}] is taken as it is.

    Args:
      split: the benchmark has one, whatever its name.
      path: the list.
      image_root: the folder that its images are named from.
      content_words: a file with the nouns and adjectives of the captions, one a line.
      seed: of the shuffles.
      modalities: one name, for the pictures.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        image_root: str,
        content_words: str | None = None,
        seed: int = 0,
        modalities: tuple[str, ...] = ("image",),
    ):
        shuffles: dict[str, Shuffle] = {"shuffle_trigrams": _trigrams, "shuffle_within_trigrams": _within_trigrams}
        if content_words is not None:
            words = _read_words(content_words)
            shuffles["shuffle_nouns_adj"] = _only(lambda word: word in words)
            shuffles["shuffle_other_words"] = _only(lambda word: word not in words)
        rows = _rows(filesystem.local_path(path), filesystem.local_path(image_root), shuffles, seed)
        super().__init__(rows, path=path, modalities=modalities)


def _rows(path: str, root: str, shuffles: dict[str, Shuffle], seed: int) -> Iterator[base.Row | UnreadableEntry]:
    def make(number: Any, entry: Any) -> list[base.Row]:
        image = filesystem.join(root, entry["image"])
        if "caption_options" in entry:
            options = entry["caption_options"]
            true, *others = (base.text_of(options, i) for i in range(len(options)))
            return _against(image, true, {f"option_{i}": text for i, text in enumerate(others, 1)}, str(number))
        captions = [entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"]
        made = []
        for i in range(len(captions)):
            true, rng = base.text_of(captions, i, norm="blip"), np.random.default_rng((seed, number, i))
            shuffled = {kind: " ".join(_another(shuffle, true.split(), rng)) for kind, shuffle in shuffles.items()}
            made += _against(image, true, shuffled, f"{number} {i}")
        return made

    return base.rows_of(path, base.entries_of(path, list), make)


def _against(image: str, true: str, others: dict[str, str], group: str) -> list[base.Row]:
    return [
        base.Row(image, (true,), {"negatives": (kind, true, false), "groups": group})
        for kind, false in others.items()
        if false != true
    ]


def _another(shuffle: Shuffle, words: list[str], rng: np.random.Generator) -> list[str]:
    for _ in range(_DRAWS):
        if (shuffled := shuffle(words, rng)) != words:
            return shuffled
    return words


def _trigrams(words: list[str], rng: np.random.Generator) -> list[str]:
    groups = _in_threes(words)
    return [word for i in rng.permutation(len(groups)) for word in groups[i]]


def _within_trigrams(words: list[str], rng: np.random.Generator) -> list[str]:
    return [group[i] for group in _in_threes(words) for i in rng.permutation(len(group))]


def _only(chosen: Callable[[str], bool]) -> Shuffle:
    """Shuffles the chosen words among their places."""

    def shuffle(words: list[str], rng: np.random.Generator) -> list[str]:
        places = [i for i, word in enumerate(words) if chosen(word)]
        shuffled = list(words)
        for place, i in zip(places, rng.permutation(len(places)), strict=True):
            shuffled[place] = words[places[i]]
        return shuffled

    return shuffle


def _in_threes(words: list[str]) -> list[list[str]]:
    return [words[i : i + 3] for i in range(0, len(words), 3)]


def _read_words(path: str) -> Set[str]:
    try:
        words = filesystem.read(filesystem.local_path(path)).decode().lower().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"content_words={path!r}: cannot be read ({error}); name a text file") from None
    return frozenset(words)
