"""``Source``: what a data source gives, and the defaults of all that it may leave out."""

from __future__ import annotations

import abc
import fractions
import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data.sample import Example, Reason, Unreadable, as_unreadable

_TRIED = 32  # examples of which one must be readable
_SUBSET_SEED = 0  # of the order that subsets are taken from; another number would be other subsets

UnreadableEntry = tuple[str, Reason, str]
"""Key, reason and detail of an example that cannot be used."""


class Component(NamedTuple):
    """One source of a mixture: its name for messages, how many examples it has, and its weight."""

    name: str
    size: int
    weight: float


class Source(abc.ABC):
    """Random access to the examples of one split of a data set.

    A source of this package is a file of ``mmjax/data/sources``. A source of another package is the class ``Source`` of
    any module that Python can import, which ``data.source.name=my_package.birds`` names. It must give ``__init__``,
    ``__len__`` and ``__getitem__``; all other attributes have the defaults that stand here.

    ``__init__`` takes ``split`` and ``modalities`` from the program, and the keys of the section ``data.source`` as
    keyword arguments: their types are checked, and those without a default must be set. ``source[index]`` is an
    ``Example`` (``mmjax.data.sample``): a dictionary of ``id``, ``captions``, the pictures, and whatever else there is.
    It depends on ``index`` alone, so that a run can be repeated, and raises ``Unreadable`` if the example cannot be
    used; another one then takes its place. Sources are pickled into worker processes, and read by several threads.

    Example::

        >>> import numpy as np
        >>> from mmjax.data import source
        >>> class Source(source.Source):
        ...     def __init__(self, split: str, *, modalities: tuple[str, ...] = ("image",), size: int = 3):
        ...         self.modalities, self._size = modalities, size
        ...     def __len__(self) -> int:
        ...         return self._size
        ...     def __getitem__(self, index: int) -> dict:
        ...         index = self.check_index(index)
        ...         pixels = np.full((8, 8, 3), index, np.uint8)  # or the bytes of a JPEG or PNG file
        ...         return {"id": index, "key": f"gray/{index}", "captions": [f"gray level {index}"], "image": pixels}
        >>> birds = Source("train", size=2)
        >>> birds[1]["captions"], len(birds), birds.id_limit
        (['gray level 1'], 2, 2)
    """

    group: int = 1
    """Neighboring examples that stay together in the shuffled order, as pairs of Winoground do."""

    modalities: tuple[str, ...] = ("image",)
    """Names of the pictures of an example."""

    aligned: bool = True
    """Whether the pictures of an example show the same, so that they are cropped alike; otherwise each on its own."""

    unreadable: Sequence[UnreadableEntry] = ()
    """Examples that were left out when the source was opened; ``len(source)`` does not count them."""

    class_names: Sequence[str] | None = None
    """Names of the classes, by ``label``; None: there are no classes."""

    templates: Sequence[str] | None = None
    """Prompts for classes, with ``{}`` for the name; None: ``a photo of a {}.``"""

    held_out: np.ndarray | None = None
    """bool[classes]: classes that do not occur in training; None: unknown."""

    rows_share_images: bool = False
    """Whether several examples may have one image, and thus one ``id``."""

    components: Sequence[Component] = ()
    """Of a mixture, its components in the order of their examples."""

    one_source_per_batch: bool = False
    """Of a mixture, whether each batch comes from one component."""

    ignores_split: bool = False
    """Whether every split is the same examples, as of a file whose path has no ``{split}``."""

    @property
    def id_limit(self) -> int:
        """All ids are below this number: that of the examples, unless a subclass says otherwise."""
        return len(self)

    @property
    def reader(self) -> str:
        """The name of the source that reads the examples."""
        return _name(self)

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abc.abstractmethod
    def __getitem__(self, index: int, /) -> Example:
        """The example of a number, the same each time."""

    def read(self, index: int) -> Example:
        """``self[index]``, or Unreadable whatever is wrong with that example: one bad example must not end a run."""
        try:
            return self[index]
        except Exception as error:  # of formats, file systems and plug-ins: there is no list of them
            raise as_unreadable(error, f"example {index}") from error

    def first_readable(self) -> Example:
        """The first example that can be used; ConfigError with the first reason if none of the first few can."""
        first: Unreadable | None = None
        for index in range(min(_TRIED, len(self))):
            try:
                return self.read(index)
            except Unreadable as error:
                first = first or error
        raise ConfigError(f"none of the source's first examples can be used; the first one: {first or 'it is empty'}")

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """The field ``name`` of all examples, which ``data.selection`` asks for."""
        raise ConfigError(f"column={name!r}: the source {_name(self)!r} has no columns to select by; use another one")

    def check_index(self, index: int) -> int:
        """``index`` as an int, from 0; IndexError if there is no such example."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the source {_name(self)!r}, which has {len(self)} examples")
        return index


class SourceView(Source):
    """Base class of a source made of another one, whose attributes it has unless it sets its own."""

    def __init__(self, source: Source):
        self._source = source
        self.group = source.group
        self.modalities = source.modalities
        self.aligned = source.aligned
        self.unreadable = source.unreadable
        self.class_names = source.class_names
        self.templates = source.templates
        self.held_out = source.held_out
        self.rows_share_images = source.rows_share_images
        self.components = source.components
        self.one_source_per_batch = source.one_source_per_batch
        self.ignores_split = source.ignores_split

    @property
    def id_limit(self) -> int:
        """That of the other source."""
        return self._source.id_limit

    @property
    def reader(self) -> str:
        """That of the other source."""
        return self._source.reader

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Example:
        return self._source[index]

    def column(self, name: str) -> np.ndarray:
        """That of the other source."""
        return self._source.column(name)


class Subset(SourceView):
    """A fixed fraction of the examples, the same for every seed of a run; a smaller one lies inside a larger one.

    Of n groups it keeps floor(fraction · n), and of a mixture that of each component, whose weight stays: the first of
    one random order of all, in the order of the source.
    """

    def __init__(self, source: Source, fraction: float):
        super().__init__(source)
        exact = fractions.Fraction(str(fraction))  # of decimals: 0.29 * 100 is less than 29
        kept, components, first = [], [], 0
        for component in source.components or (Component("the source", len(source), 1.0),):
            groups = component.size // source.group
            count = math.floor(exact * groups)
            if not count:
                raise ConfigError(
                    f"fraction={fraction}: leaves none of the {component.size:,} examples of {component.name}; set it "
                    f"to {min(2 / max(groups, 1), 1):.1g} or more"
                )
            order = np.random.default_rng(_SUBSET_SEED).permutation(np.arange(groups, dtype=np.uint32))
            starts = first + np.sort(order[:count]).astype(np.int64) * source.group
            kept.append((starts[:, None] + np.arange(source.group)).ravel())
            components.append(component._replace(size=count * source.group))
            first += component.size
        self._rows = np.concatenate(kept)
        self.components = tuple(components) if source.components else ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._rows[self.check_index(index)])]

    def column(self, name: str) -> np.ndarray:
        """A field of the kept examples."""
        return self._source.column(name)[self._rows]


def _name(source: Source) -> str:
    return type(source).__module__.rpartition(".")[2]
