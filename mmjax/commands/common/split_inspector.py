"""One split as training would read it, for commands that look at data or time it."""

from __future__ import annotations

import dataclasses
import functools

from mmjax.data import pipeline
from mmjax.data.transform_chain import TransformChain
from mmjax.experiment import DataConfig, Experiment
from mmjax.train import data as train_data

_STAGES_TO_CROP = ("captions", "geometry")


class SplitInspector:
    """One split as training would read it, for looking at it and timing it; needs no accelerator.

    Attributes:
      source: the examples.
      tokenizer: as training would make it.
      batch_size: a whole number of the source's groups.
    """

    def __init__(
        self,
        experiment: Experiment,
        split: str,
        *,
        batch_size: int | None = None,
        max_batch_size: int | None = None,
    ):
        """Batches are of ``batch_size``, or of the experiment's size but no larger than ``max_batch_size``."""
        data, model = experiment.data, experiment.model
        self.source = train_data.open_split(experiment, split)
        size = batch_size or min(experiment.batch_size, max_batch_size or experiment.batch_size)
        self.batch_size = -(-size // self.source.group) * self.source.group
        self.tokenizer = train_data.open_tokenizer(data, self.source, context_length=model.text_cfg.context_length)
        self.workers, self.threads = data.workers, train_data.count_threads(data)
        self._data, self._vision, self._seed = data, model.vision_cfg, experiment.seed

    @functools.cached_property
    def batches(self) -> pipeline.Batches:
        """Training batches with all transforms."""
        return train_data.make_batches(
            self._data,
            self.source,
            self.tokenizer,
            image_size=self._vision.image_size,
            batch_size=self.batch_size,
            seed=self._seed,
        )

    @functools.cached_property
    def train_transforms(self) -> TransformChain:
        """All transforms of training."""
        return self._transforms(self._data)

    @functools.cached_property
    def crop_transforms(self) -> TransformChain:
        """Those up to the crop."""
        entries = [e for e in self._data.transforms if TransformChain.stage_of(e[0]) in _STAGES_TO_CROP]
        return self._transforms(dataclasses.replace(self._data, transforms=tuple(entries)))

    @functools.cached_property
    def eval_transforms(self) -> TransformChain:
        """What evaluation does instead."""
        return train_data.make_eval_transforms(self._data, self._vision, aligned=self.source.aligned)

    def _transforms(self, data: DataConfig) -> TransformChain:
        size = self._vision.image_size
        return train_data.make_train_transforms(data, self.source, self.tokenizer, image_size=size, seed=self._seed)
