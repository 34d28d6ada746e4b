"""All metrics of captions that need no model, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.evals.captions.diversity import measure_diversity
from mmjax.evals.captions.overlap import bleu, cider, rouge_l
from mmjax.evals.captions.ptb_tokens import tokenize


def score_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """BLEU, ROUGE-L, CIDEr-D and diversity of captions against references.

    They equal those of the COCO evaluation (pycocoevalcap), which are fractions: papers show them times 100. METEOR and
    SPICE are left out: the first is a Java program with 60 MB of paraphrases, the second one with a parser.

    Args:
        candidates: One caption an image.
        references: The references of each image, at least one.

    Returns:
        Numbers of the whole (``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider``, and those of ``measure_diversity``), and
        those of each caption f64[n], by name.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates and references for {len(references)}; give one of each an image"
        )
    if missing := [row for row, each in enumerate(references) if isinstance(each, str) or not len(each)]:
        raise ValueError(f"references[{missing[0]}]={references[missing[0]]!r}: expected a list of at least one text")
    tokens = [tokenize(caption) for caption in candidates]
    refs = [[tokenize(reference) for reference in each] for each in references]
    whole, by_caption = bleu(tokens, refs)
    each = {f"bleu_{n + 1}": by_caption[:, n] for n in range(by_caption.shape[1])} if len(tokens) else {}
    each |= {"rouge_l": rouge_l(tokens, refs), "cider": cider(tokens, refs)}
    summary = {name: float(np.mean(values)) if len(values) else 0.0 for name, values in each.items()}
    summary |= {f"bleu_{n + 1}": float(value) for n, value in enumerate(whole)}
    return summary | measure_diversity(tokens), each
