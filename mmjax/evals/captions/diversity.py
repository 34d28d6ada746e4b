"""How varied a collection of captions is: its vocabulary, and how many of its n-grams are unique."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.evals.captions.overlap import Tokens


def measure_diversity(captions: Sequence[Tokens], *, orders: int = 4) -> dict[str, float]:
    """Counts over all captions, as lists of tokens.

    ``tokens`` of all captions and ``vocabulary``, the different ones of them; ``unique_N``, how many different
    sequences of N tokens there are, and ``distinct_N``, their fraction of all (Li et al. 2016, arXiv:1510.03055);
    ``unique_captions``, the fraction of captions that differ from all before.

    >>> measure_diversity([["a", "cat"], ["a", "dog"], ["a", "cat"]], orders=2)["unique_2"]
    2
    """
    summary: dict[str, float] = {
        "captions": len(captions),
        "tokens": sum(map(len, captions)),
        "vocabulary": len({word for tokens in captions for word in tokens}),
        "unique_captions": len({tuple(tokens) for tokens in captions}) / max(len(captions), 1),
    }
    for n in range(1, orders + 1):
        unique = {tuple(tokens[i : i + n]) for tokens in captions for i in range(len(tokens) - n + 1)}
        total = sum(max(len(tokens) - n + 1, 0) for tokens in captions)
        summary |= {f"unique_{n}": len(unique), f"distinct_{n}": len(unique) / max(total, 1)}
    return summary
