"""The section ``data.clusters``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal

from mmjax.core.config import Between, ConfigError, Ge, Gt, Le


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Batches of similar examples (SimCLIP, Contrastive learning with hard negatives by similarity, FITML 2024).

    A part ``p`` of a batch of B rows are clusters of ``size``, the rest is drawn at random. A cluster is a random
    example and ``size - 1`` of the ``among`` nearest to it that are not in the batch yet. p doubles every
    ``double_every`` steps from ``first_fraction`` until it is ``fraction``; with 0 it is that from the start. The
    released code's warm-up ends at ½ instead of 1, its ``s=1`` draws from the ``size`` nearest, and with neighbors
    computed beforehand it repeats rows within a batch.

    ``size=2, among=3`` gives each example a hard image as NegCLIP does: one of its three nearest, as a row of its own.

    With ``refresh_every`` a run embeds its examples again and again, as the paper does each epoch: after
    ``first_refresh`` and every so many further steps, by the weights of that step. The next step's batch is the first
    one of the new neighbors.

    Args:
      path: of the table of neighbors that ``mmjax neighbors`` writes; with ``refresh_every`` it may be left out, and
        batches are random until the first refresh.
      size: k of the paper.
      among: of how many nearest ones the others are drawn; ``size - 1`` if left out, which takes the nearest.
      fraction: p after the warm-up.
      first_fraction: p of the first steps.
      double_every: steps.
      refresh_every: steps between two refreshes; None: neighbors stay those of ``path``.
      first_refresh: the steps before the first refresh: 0 starts with neighbors by the initial weights;
        ``refresh_every`` if left out.
      kind: of the embeddings that a refresh compares: those of images, or of each example's first caption.
      id: the table's fingerprint, which a run keeps so that it resumes with the same neighbors alone.
    """

    path: str | None = None
    size: Annotated[int, Ge(2)] = 16
    among: Annotated[int, Ge(1)] | None = None
    fraction: Annotated[float, Between(0, 1)] = 1.0
    first_fraction: Annotated[float, Gt(0), Le(1)] = 1 / 512
    double_every: Annotated[int, Ge(0)] = 0
    refresh_every: Annotated[int, Ge(1)] | None = None
    first_refresh: Annotated[int, Ge(0)] | None = None
    kind: Literal["image", "text"] = "image"
    id: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.refresh_every is None:
            raise ConfigError(
                "data.clusters: has no neighbors; name a table of mmjax neighbors in path, or set refresh_every"
            )
        if self.first_refresh is not None and self.refresh_every is None:
            raise ConfigError(
                f"data.clusters.first_refresh={self.first_refresh}: nothing is embedded again; set refresh_every"
            )
        if self.among is not None and self.among < self.size - 1:
            raise ConfigError(
                f"data.clusters.among={self.among}: a cluster of size={self.size} takes {self.size - 1} of them; use "
                "that or more, or leave it out"
            )

    @property
    def nearest(self) -> int:
        """Of how many nearest ones a cluster's others are drawn."""
        return self.among or self.size - 1

    def fraction_at(self, step: int) -> float:
        """p of a step."""
        if not self.double_every:
            return self.fraction
        doublings = min(step // self.double_every, 64)
        return min(self.first_fraction * 2.0**doublings, self.fraction)

    def clusters_at(self, step: int, *, batch_size: int) -> int:
        """How many clusters a batch of that step has."""
        return int(self.fraction_at(step) * batch_size / self.size + 1e-9)

    def refreshes_at(self, step: int) -> bool:
        """Whether neighbors are found anew after ``step``."""
        return step == self.last_refresh(step)

    def last_refresh(self, step: int) -> int | None:
        """The refresh whose neighbors the batch after ``step`` is made of; None: those of ``path``."""
        if self.refresh_every is None or step < (first := self._first_refresh):
            return None
        return step - (step - first) % self.refresh_every

    def next_refresh(self, step: int) -> int:
        """The first refresh after ``step``; ``sys.maxsize`` if there is none."""
        if self.refresh_every is None:
            return sys.maxsize
        last = self.last_refresh(step)
        return self._first_refresh if last is None else last + self.refresh_every

    @property
    def _first_refresh(self) -> int:
        assert self.refresh_every is not None
        return self.refresh_every if self.first_refresh is None else self.first_refresh
