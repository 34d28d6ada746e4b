"""How good captions are as training data, kind by kind: varied, not repeated, close to their source, and true."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.printable import printable
from mmjax.evals.captions.diversity import measure_diversity
from mmjax.evals.captions.overlap import bleu, cider, rouge_l
from mmjax.evals.captions.ptb_tokens import tokenize

_MOST_FREQUENT = 5
_LINES = (
    ("images", "images", "{:,.0f}"), ("captions", "captions", "{:,.0f}"), ("per image", "per_image", "{:.2f}"),
    ("words (median)", "length_median", "{:.0f}"), ("words (5 % to 95 %)", "length_range", "{}"),
    ("empty", "empty", "{:.1%}"),
    ("vocabulary", "vocabulary", "{:,.0f}"), *((f"unique {n}-grams", f"unique_{n}", "{:,.0f}") for n in (2, 3, 4)),
    *((f"  of all {n}-grams", f"distinct_{n}", "{:.1%}") for n in (2, 4)),
    ("repeat another image's", "shared", "{:.1%}"), ("repeat their own image's", "repeated", "{:.1%}"),
    ("equal to a source caption", "copies", "{:.1%}"), ("words not in source captions", "new_words", "{:.1%}"),
    ("BLEU-4 to source captions", "bleu_4", "{:.3f}"), ("ROUGE-L", "rouge_l", "{:.3f}"), ("CIDEr-D", "cider", "{:.3f}"),
    ("true", "true", "{:.1%}"),
    ("CLIPScore", "clip_score", "{:.3f}"), ("  of another image's caption", "clip_score_shuffled", "{:.3f}"),
    ("RefCLIPScore", "ref_clip_score", "{:.3f}"),
)  # fmt: skip
"""Title, key and format of each line of the text."""


def measure_quality(
    groups: Mapping[str, Sequence[Sequence[str]]],
    *,
    source: str,
    is_true: Callable[[int, str], bool] | None = None,
    clip_scores: Mapping[str, Mapping[str, float]] | None = None,
    identify: Callable[[str], str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Statistics of each kind of captions, as JSON values.

    Captions are compared as lists of words, without case and punctuation. ``shared`` is the fraction of captions that
    an earlier image has as well, ``repeated`` that of an image's captions that repeat one of its own. Of other kinds,
    beside the source's captions of the same image: ``copies``, which are equal to one; ``new_words``, the
    fraction of words that none of them has; and ``bleu_4``, ``rouge_l`` and ``cider``, with these as references.

    Args:
        groups: the captions of each image by kind; every kind has the same images, perhaps without captions of some.
        source: the kind that others are compared with.
        is_true: whether a caption of the image of that index is true, where that is known.
        clip_scores: further numbers of kinds: ``clip_score``, ``clip_score_shuffled`` and ``ref_clip_score``.
        identify: the language of a text, for ``languages``, the fractions of the most frequent ones.
    """
    tokens = {name: [[tokenize(text) for text in texts] for texts in each] for name, each in groups.items()}
    result = {}
    for name, each in tokens.items():
        flat = [caption for several in each for caption in several]
        summary: dict[str, Any] = {"images": sum(map(bool, each)), **measure_diversity(flat)}
        if flat:
            lengths = np.array([len(caption) for caption in flat])
            low, high = np.percentile(lengths, [5, 95])
            summary |= {
                "per_image": len(flat) / summary["images"],
                "length_median": float(np.median(lengths)),
                "length_range": f"{low:.0f} to {high:.0f}",
                "empty": float((lengths == 0).mean()),
                **_repeats(each),
            }
            if name != source and source in tokens:
                summary |= _compare(each, tokens[source])
            if is_true is not None:
                truths = [is_true(row, text) for row, texts in enumerate(groups[name]) for text in texts]
                summary["true"] = float(np.mean(truths))
            if identify is not None:
                codes = collections.Counter(identify(text) for texts in groups[name] for text in texts)
                summary["languages"] = [[code, n / len(flat)] for code, n in codes.most_common(_MOST_FREQUENT)]
            summary |= (clip_scores or {}).get(name, {})
        result[name] = summary
    return result


def format_quality(summary: Mapping[str, Any]) -> str:
    """``{"groups": …}`` of ``measure_quality`` as a table with a column for each kind."""
    groups: Mapping[str, Mapping[str, Any]] = summary["groups"]
    rows = [["", *groups]]
    for title, key, form in _LINES:
        if any(key in group for group in groups.values()):
            rows.append([title, *(form.format(group[key]) if key in group else "" for group in groups.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    for name, group in groups.items():
        if group.get("most_frequent"):
            often = ", ".join(f"{printable(text)!r} {count:,}" for text, count in group["most_frequent"])
            lines.append(f"most frequent of {name}: {often}")
        if group.get("languages"):
            lines.append(f"languages of {name}: " + ", ".join(f"{code} {f:.1%}" for code, f in group["languages"]))
    if unreadable := summary.get("unreadable"):
        lines.append(f"{unreadable:,} examples could not be read; mmjax data inspect without --captions says why")
    return "\n".join(lines)


def _repeats(each: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """How many captions occur before: with an earlier image, or of their own one."""
    images: collections.Counter[str] = collections.Counter()
    shared = repeated = total = 0
    for several in each:
        own = [" ".join(caption) for caption in several]
        total += len(own)
        repeated += len(own) - len(set(own))
        shared += sum(text in images for text in own)
        images.update(set(own))
    frequent = [[text, count] for text, count in images.most_common(_MOST_FREQUENT) if count > 1]
    return {"shared": shared / total, "repeated": repeated / total, "most_frequent": frequent}


def _compare(each: Sequence[Sequence[Sequence[str]]], sources: Sequence[Sequence[Sequence[str]]]) -> dict[str, float]:
    """Captions beside the source's of the same image; those of images without any are left out."""
    pairs = [(caption, refs) for several, refs in zip(each, sources, strict=True) if refs for caption in several]
    if not pairs:
        return {}
    candidates, references = [caption for caption, _ in pairs], [refs for _, refs in pairs]
    new = [sum(word not in vocabulary for word in c) for c, refs in pairs for vocabulary in [set().union(*refs)]]
    return {
        "copies": float(np.mean([caption in refs for caption, refs in pairs])),
        "new_words": sum(new) / max(sum(map(len, candidates)), 1),
        "bleu_4": float(bleu(candidates, references)[0][-1]),
        "rouge_l": float(rouge_l(candidates, references).mean()),
        "cider": float(cider(candidates, references).mean()),
    }
