"""Views of a source by its columns: the examples of a split or at the top of a score, and ids that examples share."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa

from mmjax.core.config import Between, ConfigError, Ge
from mmjax.data.formats.score_table import Compat, join_scores, top_scores
from mmjax.data.sample import Example, Unreadable
from mmjax.data.source import Source, SourceView
from mmjax.data.text import captions_of

_SHOWN = 8  # names of splits in an error

Policy = Literal["raw", "synthetic", "mixed", "filtered"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which examples and captions are kept. Larger scores are better; thresholds are those of the whole source.

    ``captions`` are the policies of "Improving Multimodal Datasets with Image Captioning" (arXiv:2307.10350):

    ``raw``        the source's captions; the examples whose raw score is at the top
    ``synthetic``  the synthetic captions; the examples whose synthetic score is at the top
    ``mixed``      raw captions where the raw score is at the top, synthetic ones for the others
    ``filtered``   the same, of the synthetic ones only those that score at least as high as the last raw one kept

    The top is ``top``, exactly floor(top · n) of the n examples that have such a score, ties in the order of their
    keys (with ``compat="datacomp"`` one more and its ties, see ``top_scores``); or all that score ``minimum`` or more;
    or, for raw and synthetic, everything, where neither is given. With top = 0 no raw caption is kept, and no synthetic
    score passes for ``filtered``. Without a synthetic caption, or a synthetic score that the policy needs, an example
    is dropped where it would have had it.

    ``scores`` is a table (parquet, csv, tsv, jsonl) of numbers, such as cosines by a model, by ``key`` or ``id``, or
    several joined by ``::``. Its columns can be named here as those of the source can, and come first. An example that
    it does not name, or that has no number there, has no score.

    The other options are DataComp's basic rules (arXiv:2304.14108), there 3 words, 6 characters, 200 pixels and 3.0;
    they hold for each of the captions that an example would have. 0 leaves a rule out.
    """

    captions: Policy = "raw"
    scores: str | None = None  # a file of further columns
    score: str | None = None  # the column of scores of the raw captions; 'score' if there is such a file
    synthetic: str | None = None  # the column of synthetic captions
    synthetic_score: str | None = None  # the column of their scores, of the same scorer
    top: Annotated[float, Between(0, 1)] | None = None  # a fraction
    compat: Compat | None = None  # 'datacomp': as many as DataComp's code takes
    minimum: float | None = None
    min_words: Annotated[int, Ge(0)] = 0
    min_characters: Annotated[int, Ge(0)] = 0
    min_side: Annotated[int, Ge(0)] = 0  # pixels; needs the columns of width and height
    max_aspect: float = 0.0  # of the longer side to the shorter; needs them too
    width: str = "width"
    height: str = "height"

    def __post_init__(self) -> None:
        if self.top is not None and self.minimum is not None:
            raise ConfigError(f"top={self.top}: minimum={self.minimum} decides the same; leave one of them out")
        if self.minimum is not None and math.isnan(self.minimum):
            raise ConfigError(f"minimum={self.minimum}: must be a number")
        if self.compat is not None and self.top is None:
            raise ConfigError(f"compat={self.compat!r}: says how many are at the top; set top, or leave it out")
        bounded = self.top is not None or self.minimum is not None
        if self.captions in ("mixed", "filtered") and not bounded:
            raise ConfigError(f"captions={self.captions!r}: which raw ones? set top (the paper: 0.3) or minimum")
        needs_score = bounded and self.captions != "synthetic"
        if self.scores is not None and needs_score and self.score is None:
            object.__setattr__(self, "score", "score")
        if self.scores is not None and not bounded:
            raise ConfigError(f"scores={self.scores!r}: nothing asks for it; set top or minimum, or leave it out")
        needed = {
            "score": needs_score,
            "synthetic": self.captions != "raw",
            "synthetic_score": self.captions == "filtered" or (bounded and self.captions == "synthetic"),
        }
        for name, is_needed in needed.items():
            value = getattr(self, name)
            if is_needed and value is None:
                raise ConfigError(f"{name}=None: captions={self.captions!r} needs it here; name the column")
            if value is not None and not is_needed:
                raise ConfigError(
                    f"{name}={value!r}: nothing asks for it with captions={self.captions!r}; set top or minimum, or "
                    "leave it out"
                )
        if self.max_aspect != 0 and not self.max_aspect >= 1:
            raise ConfigError(f"max_aspect={self.max_aspect}: a longer side to a shorter; set it to 1 or more, or to 0")


class FilteredSource(SourceView):
    """The examples of ``source`` that a selection keeps, in the source's order and with their ids.

    ``rows`` i64[n] are the examples' indices in the source, ``synthetic`` bool[n] says whose captions are replaced.
    """

    def __init__(self, source: Source, selection: Selection):
        if source.group != 1:
            raise ConfigError(
                f"selection: the source's examples come in groups of {source.group}, which a selection would "
                "split; take single ones"
            )
        if source.components:
            raise ConfigError("selection: the source is a mixture; give the selection to each of its sources")
        super().__init__(source if selection.scores is None else join_scores(source, selection.scores))
        self._selection = selection
        self.rows, self.synthetic = _select(self._source, selection)
        if not len(self.rows):
            raise ConfigError(f"selection: none of {len(source)} examples is kept; select more")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        example = self._source[int(self.rows[index])]
        if not self.synthetic[index]:
            return example
        name = str(self._selection.synthetic)
        if name not in example:
            raise Unreadable("no caption", f"its example has no {name!r}", key=str(example.get("key", example["id"])))
        return {**example, "captions": captions_of(example[name], str(example.get("key", example["id"])))}

    def column(self, name: str) -> np.ndarray:
        """A field of the kept examples, without reading pictures; ``captions`` as in the examples."""
        values = _column(self._source, name)[self.rows]
        if name != "captions" or not self.synthetic.any():
            return values
        exchanged = _column(self._source, str(self._selection.synthetic))[self.rows]
        out = np.empty(len(values), object)
        for row, (raw, other) in enumerate(zip(values, exchanged, strict=True)):
            out[row] = captions_of(_texts(other)) if self.synthetic[row] else raw
        return out

    def describe(self) -> str:
        """One line: how many examples are kept, with which captions, and how many have no score."""
        synthetic = int(self.synthetic.sum())
        line = (
            f"{len(self):,} of {len(self._source):,} examples selected: {len(self) - synthetic:,} with the source's "
            f"captions, {synthetic:,} with synthetic ones"
        )
        for name in filter(None, (self._selection.score, self._selection.synthetic_score)):
            if len(without := np.flatnonzero(np.isnan(_scores(self._source, name)))):
                line += f"; {len(without):,} have no {name!r}, such as {_keys(self._source)[without[0]]}"
        return line


class SplitRows(SourceView):
    """The examples of ``source`` whose ``split_column`` says ``split``."""

    def __init__(self, source: Source, split: str, split_column: str):
        if source.group != 1 or source.components:
            raise ConfigError(f"split_column={split_column!r}: groups and mixtures are not split; take single examples")
        super().__init__(source)
        splits = np.array(
            [str(value).strip() for value in _option_column(source, split_column=split_column).tolist()], object
        )
        self._rows = np.flatnonzero(splits == split)
        self.ignores_split = False
        if not len(self._rows):
            there = ", ".join(sorted(set(splits.tolist()))[:_SHOWN])
            raise ConfigError(f"split={split!r}: split_column={split_column!r} has no such split; there are {there}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._rows[self.check_index(index)])]

    def column(self, name: str) -> np.ndarray:
        """A field of the split's examples."""
        return _column(self._source, name)[self._rows]


class SharedIds(SourceView):
    """The examples of ``source``, with one id for all that have the same value in ``id_column``.

    Targets follow from ids, so these examples are positives of each other. One without a value is alone. Lists, such as
    ``captions``, are the same if all their elements are: pictures with the name of their class as the only caption are
    positives of each other.
    """

    def __init__(self, source: Source, id_column: str):
        super().__init__(source)
        cells = [_comparable(value) for value in _option_column(source, id_column=id_column).tolist()]
        values = pa.array(cells, from_pandas=True)  # NaN as null
        codes = values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        # The number of the first example with that value, below the number of examples as ids have to be.
        first = np.unique(codes, return_index=True)[1][np.unique(codes, return_inverse=True)[1]]
        self._ids = np.where(codes < 0, np.arange(len(codes)), first)
        self.rows_share_images = source.rows_share_images or len(np.unique(self._ids)) < len(codes)

    @property
    def id_limit(self) -> int:
        """The number of examples."""
        return len(self)

    def __getitem__(self, index: int) -> Example:
        return {**self._source[index], "id": int(self._ids[index])}

    def column(self, name: str) -> np.ndarray:
        """A field of all examples; ``id`` is the shared one."""
        return self._ids if name == "id" else self._source.column(name)


def _select(source: Source, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Indices i64[n] of the kept examples, and bool[n]: whether with synthetic captions."""
    size, policy = len(source), selection.captions
    raw, threshold = np.full(size, policy != "synthetic"), -math.inf
    if selection.score is not None:
        raw, threshold = _top(source, selection.score, selection)
    synthetic = np.zeros(size, bool)
    if selection.synthetic is not None:
        synthetic = np.array([_has_text(value) for value in _column(source, selection.synthetic)], bool)
    if selection.synthetic_score is not None:
        if policy == "filtered":
            # Comparison with NaN is False: what has no score is not taken.
            synthetic &= _scores(source, selection.synthetic_score) >= threshold
        else:
            synthetic &= _top(source, selection.synthetic_score, selection)[0]
    synthetic &= ~raw
    kept = (raw | synthetic) & _by_size(source, selection)
    if selection.min_words or selection.min_characters:
        _drop_short(source, selection, kept, synthetic)
    rows = np.flatnonzero(kept)
    return rows, synthetic[rows]


def _top(source: Source, name: str, selection: Selection) -> tuple[np.ndarray, float]:
    """bool[n]: whose score is at the top; and the least score that is."""
    scores = _scores(source, name)
    if selection.minimum is not None:
        return scores >= selection.minimum, selection.minimum
    assert selection.top is not None
    return top_scores(scores, selection.top, names=lambda: _keys(source), compat=selection.compat)


def _by_size(source: Source, selection: Selection) -> np.ndarray:
    if not selection.min_side and not selection.max_aspect:
        return np.ones(len(source), bool)
    width, height = (_scores(source, name) for name in (selection.width, selection.height))
    short, long = np.minimum(width, height), np.maximum(width, height)
    # Where a size is unknown (NaN), comparisons are False.
    fits = short >= max(selection.min_side, 1)
    return fits & (long <= selection.max_aspect * short) if selection.max_aspect else fits


def _drop_short(source: Source, selection: Selection, kept: np.ndarray, synthetic: np.ndarray) -> None:
    raw = _column(source, "captions")
    other = raw if selection.synthetic is None else _column(source, selection.synthetic)
    for row in np.flatnonzero(kept).tolist():
        kept[row] = all(
            len(text.split()) >= selection.min_words and len(text) >= selection.min_characters
            for text in _texts(other[row] if synthetic[row] else raw[row])
        )


def _column(source: Source, name: str) -> np.ndarray:
    values = source.column(name)
    if len(values) != len(source):
        raise ConfigError(f"selection: column {name!r} has {len(values)} values for {len(source)} examples")
    return values


def _option_column(source: Source, **option: str) -> np.ndarray:
    """The column that an option names, whose name errors begin with."""
    ((key, name),) = option.items()
    try:
        return _column(source, name)
    except ConfigError as error:
        raise ConfigError(f"{key}={name!r}: {error}") from None


def _scores(source: Source, name: str) -> np.ndarray:
    values = _column(source, name)
    if values.dtype.kind in "fiu":
        return values.astype(np.float64)
    try:
        return np.array([math.nan if value is None else value for value in values.tolist()], np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"selection: column {name!r} holds no numbers; name another") from None


def _keys(source: Source) -> np.ndarray:
    """What breaks ties: keys, or ids if the source has no keys."""
    try:
        return _column(source, "key")
    except ConfigError:
        return _column(source, "id")


def _texts(value: Any) -> list[str]:
    """The texts in a cell of a column: one, several, or None or NaN for none."""
    if isinstance(value, str):
        return [value]
    return [] if value is None or isinstance(value, float) else list(value)


def _comparable(value: Any) -> Any:
    """A number or text; of a list its JSON, and None for blank texts and empty lists."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return json.dumps([str(one) for one in value]) if len(value) else None
    return None if isinstance(value, str) and not value.strip() else value


def _has_text(value: Any) -> bool:
    return any(isinstance(text, str) and text.strip() for text in _texts(value))
