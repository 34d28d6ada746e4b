"""One split of an experiment's data with everything that makes batches of it, for looking at it and timing it."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.data.chain import Chain
from mmjax.train import assemble
from mmjax.train.experiment import DataConfig, Experiment

_UNTIL_CROPPED = ("captions", "geometry")  # stages


class View:
    """A split as training would read it, with the chains that view its examples.

    ``training`` is the whole chain, ``geometry`` what of it chooses captions and crops, ``evaluation`` what evaluation
    does instead. Batches are of the experiment's size, or of ``batch_size``.
    """

    def __init__(self, experiment: Experiment, split: str, *, batch_size: int | None = None):
        data = experiment.data
        self.source: Any = assemble.open_source(data, split)
        self.batch_size = experiment.batch_size
        if batch_size is not None:  # whole groups
            self.batch_size = -(-batch_size // self.source.group) * self.source.group
        experiment = dataclasses.replace(experiment, batch_size=self.batch_size)
        self.tokenizer = assemble.open_tokenizer(experiment, self.source, workdir="")
        self.batches = assemble.rows(experiment, self.source, self.tokenizer)
        self.training: Chain = assemble.training_chain(experiment, self.source, self.tokenizer)
        cropping = tuple(entry for entry in data.transforms if Chain.stage_of(entry[0]) in _UNTIL_CROPPED)
        cropped = dataclasses.replace(experiment, data=dataclasses.replace(data, transforms=cropping))
        self.geometry: Chain = assemble.training_chain(cropped, self.source, self.tokenizer)
        self.evaluation: Chain = assemble.evaluation_chain(experiment)
        self.workers, self.threads = data.workers, assemble.threads(data)


def section(data: DataConfig, split: str) -> dict[str, Any]:
    """The section that a split's source comes from."""
    further = dict(data.train if split == "train" else data.evaluation)
    return further if "name" in further else {**data.source, **further}
