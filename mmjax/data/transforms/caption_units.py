"""CS-CLIP (arXiv:2602.23906): besides its caption, a sample gets entities and relations of it, each with a foil."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np

from mmjax.core.config import Ge
from mmjax.data.negatives.units import KINDS
from mmjax.data.sample import Sample
from mmjax.data.transforms.common.base import Probability, Stage


class Transform:
    """Puts units of an example behind its first sampled caption, and their foils among its negatives, for ``cs_clip``.

    Units come with the data: negatives of the kinds ``entity`` and ``relation``, whose true caption is the unit and
    whose false one is its foil. ``mmjax data negatives --method=units`` writes such a table, and ``data.negatives``
    joins it; other negatives of the example are foils of the whole caption, of which one is taken. So with
    ``units=3``, ``data.captions_per_image=4`` and ``data.negatives_per_image=4``.

    Units are drawn without repeats. An entity may get a second one: "a red hat" becomes "a red hat and a dog", its foil
    "a blue hat and a dog". The released code draws units with repeats, and fills up with copies if there are too few;
    here the caption's further rows are then padding.

    Args:
      units: how many.
      relations: the probability that a unit is a relation, as long as there are units of both kinds.
      context: the probability that an entity gets a second one.
    """

    stage: ClassVar[Stage] = "sample"

    def __init__(self, *, units: Annotated[int, Ge(0)] = 3, relations: Probability = 0.5, context: Probability = 0.5):
        self._units, self._relations, self._context = units, relations, context

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample with one caption, its units, and one negative of each."""
        caption, negatives = sample.captions[0], sample.fields.get("negatives", ())
        whole = [entry for entry in negatives if entry[0] not in KINDS]
        made = [whole[int(random.integers(len(whole)))]] if whole else []
        made = [(kind, caption, false) for kind, _, false in made]
        foils: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
        for kind, unit, false in negatives:
            if kind in KINDS and unit != caption:
                foils[kind].setdefault(unit, []).append(false)
        entities, captions = list(foils["entity"]), [caption]
        while len(captions) <= self._units and any(foils.values()):
            kind = KINDS[int(random.random() < self._relations)]
            kind = kind if foils[kind] else next(other for other in KINDS if foils[other])
            unit = list(foils[kind])[int(random.integers(len(foils[kind])))]
            options = foils[kind].pop(unit)
            true, false = unit, options[int(random.integers(len(options)))]
            others = [entity for entity in entities if entity not in (true, false)]
            if kind == "entity" and others and random.random() < self._context:
                other, first = others[int(random.integers(len(others)))], bool(random.integers(2))
                both = tuple(f"{x} and {other}" if first else f"{other} and {x}" for x in (true, false))
                true, false = both if both[0] not in captions else (true, false)
            captions.append(true)
            made.append((kind, true, false))
        sample.captions, sample.weights = captions, None
        sample.fields["negatives"] = made
        return sample
