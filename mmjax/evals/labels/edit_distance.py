"""How sequences of labels differ: the fewest insertions, deletions and substitutions between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Edits(NamedTuple):
    """The edits that make a hypothesis of a reference, as few as possible; of equally few the most substitutions."""

    substitutions: int
    deletions: int
    insertions: int


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The edits from ``reference`` to ``hypothesis`` (Levenshtein 1966).

    >>> count_edits("a red ring".split(), "a blue ring left".split())
    Edits(substitutions=1, deletions=0, insertions=1)
    """
    # One number orders paths by their edits, then by substitutions: these cost a little less than an edit.
    numbers = {label: number for number, label in enumerate(dict.fromkeys((*reference, *hypothesis)))}
    columns = np.array([numbers[label] for label in hypothesis], np.int64)
    edit = len(reference) + len(hypothesis) + 1
    ahead = edit * np.arange(len(columns) + 1)
    cost = ahead  # of making a hypothesis's first labels of no label
    for label in reference:
        above = cost[1:] + edit
        diagonal = cost[:-1] + np.where(columns == numbers[label], 0, edit - 1)
        best = np.concatenate([[cost[0] + edit], np.minimum(above, diagonal)])
        cost = np.minimum.accumulate(best - ahead) + ahead  # insertions run along a row
    edits = -(-int(cost[-1]) // edit)
    substitutions = edits * edit - int(cost[-1])
    rest, difference = edits - substitutions, len(hypothesis) - len(reference)
    return Edits(substitutions, (rest - difference) // 2, (rest + difference) // 2)
