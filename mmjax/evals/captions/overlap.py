"""BLEU, ROUGE-L and CIDEr-D of captions, with the conventions of the COCO evaluation."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np

Tokens = Sequence[str]
_ORDERS = 4  # n-grams of 1 to 4 tokens
_TINY, _SMALL = 1e-15, 1e-9  # of the reference implementation, against divisions by zero
_BETA = 1.2  # of ROUGE-L: recall counts more than precision
_SIGMA = 6.0  # of CIDEr-D's penalty of lengths


def count_ngrams(tokens: Tokens, orders: int = _ORDERS) -> collections.Counter[tuple[str, ...]]:
    """How often each sequence of 1 to ``orders`` tokens occurs.

    >>> count_ngrams(["a", "cat", "a"], orders=2)
    Counter({('a',): 2, ('cat',): 1, ('a', 'cat'): 1, ('cat', 'a'): 1})
    """
    return collections.Counter(
        tuple(tokens[start : start + n]) for n in range(1, orders + 1) for start in range(len(tokens) - n + 1)
    )


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[np.ndarray, np.ndarray]:
    """BLEU-1 to BLEU-4 (Papineni et al. 2002) of the whole, f64[4], and of each caption, f64[n, 4].

    The whole is not the mean: matches and lengths are summed first. The length of the references is that which is
    nearest to the candidate's, the shorter of two.
    """
    matches, totals = np.zeros((len(candidates), _ORDERS)), np.zeros((len(candidates), _ORDERS))
    lengths = np.zeros((len(candidates), 2))
    for row, (tokens, refs) in enumerate(zip(candidates, references, strict=True)):
        most: collections.Counter[tuple[str, ...]] = collections.Counter()
        for ref in refs:
            most |= count_ngrams(ref)
        for ngram, count in count_ngrams(tokens).items():
            matches[row, len(ngram) - 1] += min(count, most[ngram])
        totals[row] = [max(len(tokens) - n, 0) for n in range(_ORDERS)]
        lengths[row] = len(tokens), min((abs(len(ref) - len(tokens)), len(ref)) for ref in refs)[1]
    whole = _bleu(matches.sum(axis=0), totals.sum(axis=0), *lengths.sum(axis=0))
    return whole, np.array([_bleu(m, t, *ends) for m, t, ends in zip(matches, totals, lengths, strict=True)])


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """ROUGE-L (Lin 2004) of each caption, f64[n]: from its best precision and its best recall over the references."""
    scores = np.zeros(len(candidates))
    for row, (tokens, refs) in enumerate(zip(candidates, references, strict=True)):
        # A caption without tokens has one empty word there.
        common = [(_longest_common(tokens or [""], ref or [""]), max(len(ref), 1)) for ref in refs]
        precision = max(length for length, _ in common) / max(len(tokens), 1)
        recall = max(length / ref_length for length, ref_length in common)
        if precision and recall:
            scores[row] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) of each caption, f64[n]; what papers call CIDEr.

    With ``g_n`` the counts of n-grams times log(images / images whose references have it)::

        10 · mean_n mean_ref exp(-(l - l_ref)² / 2σ²) · min(g_n, g_n,ref) · g_n,ref / (|g_n| |g_n,ref|)

    As in the reference implementation lengths count pairs of tokens, and candidates are no images of their own. A
    collection of one image has a score of 0, because none of its tokens is rare.
    """
    refs = [[count_ngrams(ref) for ref in each] for each in references]
    images: collections.Counter[tuple[str, ...]] = collections.Counter()
    for each in refs:
        images.update(set().union(*each))
    log_images = math.log(max(len(refs), 1))

    def weigh(counts: collections.Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], np.ndarray]:
        """The weights of n-grams, and the length of their vector for each n."""
        weights = {ngram: count * (log_images - math.log(max(images[ngram], 1))) for ngram, count in counts.items()}
        squares = np.zeros(_ORDERS)
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, np.sqrt(squares)

    scores = np.zeros(len(candidates))
    for row, (tokens, counts, lists) in enumerate(zip(candidates, refs, references, strict=True)):
        weights, norm = weigh(count_ngrams(tokens))
        for ref, ref_tokens in zip(counts, lists, strict=True):
            ref_weights, ref_norm = weigh(ref)
            products = np.zeros(_ORDERS)
            for ngram in weights.keys() & ref_weights.keys():
                products[len(ngram) - 1] += min(weights[ngram], ref_weights[ngram]) * ref_weights[ngram]
            norms = norm * ref_norm
            cosines = np.divide(products, norms, out=np.zeros(_ORDERS), where=norms > 0)
            apart = max(len(tokens) - 1, 0) - max(len(ref_tokens) - 1, 0)
            scores[row] += cosines.mean() * math.exp(-(apart**2) / (2 * _SIGMA**2)) / len(counts)
    return 10 * scores


def _bleu(matches: np.ndarray, totals: np.ndarray, length: float, ref_length: float) -> np.ndarray:
    precisions = (matches + _TINY) / (totals + _SMALL)
    ratio = (length + _TINY) / (ref_length + _SMALL)
    return np.cumprod(precisions) ** (1 / np.arange(1, _ORDERS + 1)) * math.exp(min(0.0, 1 - 1 / ratio))


def _longest_common(first: Tokens, second: Tokens) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        above_left = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = above_left + 1 if word == other else max(above, row[place - 1])
            above_left = above
    return row[-1]
