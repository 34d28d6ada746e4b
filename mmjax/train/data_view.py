"""One split of an experiment's data with everything that makes batches of it, for looking at it and timing it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from mmjax.data.pipeline import Batches
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import DataConfig, Experiment
from mmjax.train import assemble

_UNTIL_CROPPED = ("captions", "geometry")  # stages


class View:
    """A split as training would read it, with the chains that view its examples.

    ``training`` is the whole chain, ``geometry`` what of it chooses captions and crops, ``evaluation`` what evaluation
    does instead. Batches are of ``batch_size``, or of the experiment's size but no larger than ``most``. They are made
    when they are asked for: what can be said of examples can also be said where there can be no batches.
    """

    def __init__(self, experiment: Experiment, split: str, *, batch_size: int | None = None, most: int | None = None):
        self.source: Any = assemble.open_source(experiment.data, split)
        size = batch_size or min(experiment.batch_size, most or experiment.batch_size)
        self.batch_size = -(-size // self.source.group) * self.source.group  # whole groups
        self._experiment = dataclasses.replace(experiment, batch_size=self.batch_size)
        self.tokenizer = assemble.open_tokenizer(experiment, self.source, workdir="")
        self.workers, self.threads = experiment.data.workers, assemble.threads(experiment.data)

    @functools.cached_property
    def batches(self) -> Batches:
        """All transforms included."""
        return assemble.rows(self._experiment, self.source, self.tokenizer)

    @functools.cached_property
    def training(self) -> TransformChain:
        """All transforms."""
        return assemble.training_chain(self._experiment, self.source, self.tokenizer)

    @functools.cached_property
    def geometry(self) -> TransformChain:
        """Those up to the crop."""
        data = self._experiment.data
        cropping = tuple(entry for entry in data.transforms if TransformChain.stage_of(entry[0]) in _UNTIL_CROPPED)
        cropped = dataclasses.replace(self._experiment, data=dataclasses.replace(data, transforms=cropping))
        return assemble.training_chain(cropped, self.source, self.tokenizer)

    @functools.cached_property
    def evaluation(self) -> TransformChain:
        """What evaluation does."""
        return assemble.evaluation_chain(self._experiment)


def section(data: DataConfig, split: str) -> dict[str, Any]:
    """The section that a split's source comes from."""
    further = dict(data.train if split == "train" else data.evaluation)
    return further if "name" in further else {**data.source, **further}
