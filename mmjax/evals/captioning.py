"""Captions that the model writes itself: against references, and against what pictures are known to show."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from mmjax.core.config import Ge
from mmjax.data.scenes import graph
from mmjax.evals.captions.metrics import score_captions
from mmjax.evals.common.base import Base, OpenSource, open_split
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.pairs import count_unreadable

_OF_REFERENCES = ("cider", "bleu_4", "rouge_l", "unique_captions", "vocabulary")
_NAMED = (*graph.ATTRIBUTES, "relation")


class Evaluator(Base):
    """``cider``, ``bleu_4`` and ``rouge_l`` of the decoder's captions beside the examples' own.

    ``unique_captions`` is the fraction that differ from all before, ``vocabulary`` the number of different words.

    Where examples have a ``scene``, as those of the source ``scenes``, captions are read for what they claim about it:
    ``attribute_accuracy`` is the fraction of all claims that are true, ``accuracy_KIND`` that of shapes, colors,
    textures, sizes, places, relations, the background, and absence, if any are claimed; ``all_true`` the fraction of
    captions that claim something, and nothing false; ``attributes_named`` the fraction of the scenes' shapes, colors,
    textures, sizes and relations that captions name rightly. The things of a caption are matched to those of the scene
    as well as possible, so ``attribute_accuracy_other_image``, of the same captions with the next example's scene, is
    not zero.

    It needs a model with ``model.decoder``.
    """

    needs_head: ClassVar[str | None] = "caption"
    headline = (
        *("cider", "bleu_4", "attribute_accuracy", "attributes_named", "attribute_accuracy_other_image"),
        "num_unreadable",
    )
    over_all = _OF_REFERENCES

    def __init__(
        self,
        open_source: OpenSource,
        *,
        split: str = "val",
        source: dict[str, Any] | None = None,
        beams: Annotated[int, Ge(1)] = 1,
        max_length: Annotated[int, Ge(1)] | None = None,
    ):
        """Opens the split.

        Args:
            open_source: Opens a split of the experiment's data.
            split: The split to measure on.
            source: Options for ``open_source``.
            beams: Beginnings that beam search keeps; 1: the most probable word each time.
            max_length: Tokens of a caption at most; None: as many as the model's context holds.
        """
        self.split = open_split(open_source, split, source)
        self._decoding: dict[str, Any] = {"method": "beam", "beams": beams} if beams > 1 else {"method": "greedy"}
        if max_length is not None:
            self._decoding["max_length"] = max_length

    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters."""
        items = embedder.read(self.split.source, key=self.split.key).items
        captions = embedder.captions(self.split.source, key=self.split.key, **self._decoding)
        summary, _ = score_captions(captions, [item["captions"] for item in items])
        metrics = {name: float(summary[name]) for name in _OF_REFERENCES}
        if all("scene" in item for item in items):
            metrics |= judge(captions, [item["scene"] for item in items])
        num_unreadable = count_unreadable(embedder, self.split)
        return metrics | {"num_examples": float(len(items)), "num_unreadable": float(num_unreadable)}


def judge(captions: Sequence[str], scenes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How true each caption is of its scene, for the names see ``Evaluator``."""
    graphs = [graph.from_json(scene)[0] for scene in scenes]
    claims = [graph.claims(caption) for caption in captions]
    true = [graph.true_kinds(scene, own) for scene, own in zip(graphs, claims, strict=True)]
    others = [graph.true_kinds(scene, own) for scene, own in zip([*graphs[1:], *graphs[:1]], claims, strict=True)]
    claimed = sum((own.kinds for own in claims), collections.Counter[str]())
    hit, hit_other = (sum(each, collections.Counter[str]()) for each in (true, others))
    nameable = sum(len(graph.ATTRIBUTES) * len(s.things) + (s.relation is not None) for s in graphs)
    whole = [own.count > 0 and own.count == right.total() for own, right in zip(claims, true, strict=True)]
    total = max(claimed.total(), 1)
    return {
        "attribute_accuracy": hit.total() / total,
        "attribute_accuracy_other_image": hit_other.total() / total,
        "attributes_named": sum(hit[name] for name in _NAMED) / max(nameable, 1),
        "all_true": sum(whole) / max(len(captions), 1),
        **{f"accuracy_{kind}": hit[kind] / claimed[kind] for kind in graph.KINDS if claimed[kind]},
    }
