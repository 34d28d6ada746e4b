"""Hard negatives of the sampled captions, made while training by lists of words."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmjax.core.config import ConfigError, choose
from mmjax.data.negatives.rules import KINDS, replace_words
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Stage


class Transform:
    """Adds false versions of a sample's captions, in which one word is exchanged for another of its list (SVLC).

    Each sampled caption gets one false version of each kind that it has a word of, another one each time it is seen;
    none is a caption of the example.
    ``data.negatives_per_image`` of them are sampled, together with negatives that the data has itself. Captions are
    taken as they are at this place of the chain, so this comes after transforms that change words.

    Args:
      kinds: of lists: color, material, size, action and state (``mmjax/data/negatives/lists``).
    """

    stage: ClassVar[Stage] = "sample"
    adds_negatives: ClassVar[bool] = True

    def __init__(self, *, kinds: tuple[str, ...] = KINDS):
        if not kinds or len(set(kinds)) < len(kinds):
            raise ConfigError(f"kinds={tuple(kinds)}: name one or more of {', '.join(KINDS)}, each once")
        self._kinds = tuple(choose(kind, KINDS, path="kinds") for kind in kinds)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with more ``negatives``."""
        negatives = list(sample.fields.get("negatives", ()))
        captions = (*sample.captions, *sample.fields.get("captions", ()))
        known = {text.casefold() for text in (*captions, *(false for _, _, false in negatives))}
        for caption in sample.captions:
            for kind in self._kinds:
                false = replace_words(caption, kind, random)
                if false is not None and false.casefold() not in known:
                    known.add(false.casefold())
                    negatives.append((f"replace_{kind}", caption, false))
        sample.fields["negatives"] = negatives
        return sample
