"""The interface that all evaluators share."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mmjax.core.config import ConfigError
from mmjax.data.source import Source

if TYPE_CHECKING:
    from mmjax.evals.common.embedder import BoundEmbedder

OpenSource = Callable[..., Source]
"""``open_source(split, **options)``: opens a split as the model sees it.

Without options it is a split of the experiment's data. Options replace those of the data's section; with a ``name``,
that of a source plug-in, they are the section of another source, such as
``{"name": "webdataset", "path": "/data/wds_cars_test"}``. ``split`` need not be one that the experiment has.
"""


class Published(NamedTuple):
    """Results that others have published, to stand beside measured ones and to be marked as what they are."""

    dataset: str  # the data set's name in metrics, as ``find`` gives it
    model: str
    source: str  # the publication
    metrics: Mapping[str, float]  # by the evaluator's names, and in its units


class Base(abc.ABC):
    """An evaluator; the class ``Evaluator`` of every module derives from it.

    ``__init__`` takes an ``OpenSource`` and the options of the evaluator, of which ``split`` is one:

    >>> class Evaluator(Base):
    ...     def __init__(self, open_source: OpenSource, *, split: str = "val"):
    ...         self.split = open_split(open_source, split, None)
    ...     def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
    ...         images, items, *_ = embedder.read(self.split.source, key=self.split.key)
    ...         texts = embedder.texts([item["captions"][0] for item in items])
    ...         return {"mean_cosine": float((images * texts).sum(axis=1).mean())}
    """

    own_split: ClassVar[bool] = False
    """Whether it needs a split made for it, such as prompts and classes; otherwise any split of pairs will do."""

    any_split: ClassVar[bool] = False
    """Whether, if the data has no split made for it, it takes the first of those that are measured."""

    needs_head: ClassVar[str | None] = None
    """What it needs of the model: one of ``Embedder.heads``, such as ``match``, ``caption`` or ``labels``."""

    needs_answers: ClassVar[tuple[str, ...]] = ()
    """The answers that its questions always have, as in entailment, in the order of a head that names none."""

    headline: ClassVar[Collection[str]] = ()
    """The metrics that tables show if not asked for all; empty: all of them."""

    over_all: ClassVar[Collection[str] | None] = None
    """The metrics that are over all examples, whose number stands beside them in results; None: all metrics."""

    published: ClassVar[Sequence[Published]] = ()
    """Results of others on its data sets."""

    @classmethod
    def find(cls, root: Path) -> dict[str, dict[str, Any]]:
        """The data sets of this family that lie under a folder of benchmarks.

        Looks at names of files and folders only. Nothing is opened: what is damaged is found when it is measured, and
        then costs no other data set its turn. What is missing is left out.

        Args:
            root: A folder in which benchmarks lie side by side.

        Returns:
            For each data set its name, as it stands in results (``coco``, ``vtab/cifar100``), and the options of
            ``__init__`` that open it, such as ``{"split": "test", "source": {"name": "captions", "path": …}}``.
        """
        del root
        return {}

    @classmethod
    def has_published(cls) -> bool:
        """Whether it knows data sets that may lie under a folder of benchmarks."""
        return cls.find.__func__ is not Base.find.__func__  # type: ignore[attr-defined]

    @classmethod
    def summarize(cls, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Metrics over all data sets of the family that were measured, such as averages; none by default.

        Args:
            metrics: Of each data set, by its name.
        """
        del metrics
        return {}

    @classmethod
    def has_summary(cls) -> bool:
        """Whether there are metrics over all data sets of the family."""
        return cls.summarize.__func__ is not Base.summarize.__func__  # type: ignore[attr-defined]

    @classmethod
    def metric_names(cls) -> Collection[str] | None:
        """The names that its metrics can have, or None if they depend on the examples."""
        return None

    @abc.abstractmethod
    def __call__(self, embedder: BoundEmbedder) -> dict[str, float]:
        """The metrics of one set of parameters, by names without slashes."""


class Split(NamedTuple):
    """One opened split, and the key under which evaluators of the same split share its embeddings."""

    source: Source
    key: Hashable


def open_split(open_source: OpenSource, split: str, options: dict[str, Any] | None) -> Split:
    """``open_source(split, **options)``; raises ConfigError if it has no examples."""
    options = options or {}
    source = open_source(split, **options)
    if not len(source):
        raise ConfigError(f"split={split!r}: the source has no examples there; choose another split")
    return Split(source, (open_source, split, repr(sorted(options.items()))))
