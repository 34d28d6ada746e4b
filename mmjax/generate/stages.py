"""Runs stages over records: in batches, in order, with an item's error isolated to its reason."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.data import pictures
from mmjax.data.formats.generated_records import Record
from mmjax.data.preparing.reencoding import Reencoding
from mmjax.data.sample import Unreadable
from mmjax.generate.backend import Failure, Picture
from mmjax.generate.block import GlobalBlock, RecordBlock, Result
from mmjax.generate.inputs import Inputs
from mmjax.generate.recipe import BACKENDS, Recipe

logger = logging.getLogger(__name__)

Step = tuple[int, Any]
"""A stage's number, and the decision of a global block; None for other blocks."""


class StageTools:
    """What the stage of that number may use (``Tools``)."""

    def __init__(self, runner: StageRunner, number: int):
        self._runner = runner
        self._name = f"{number}:{runner.recipe.blocks[number][0]}"

    def model(self, name: str) -> Any:
        """The model of that name, made at its first use."""
        return self._runner.model(name)

    def picture(self, record: Record) -> Picture:
        """The record's picture, decoded."""
        data = self._runner.inputs.image(record.index) if record.image is None else record.image
        if data is None:
            raise Unreadable("bad row", "a sequence, and this stage looks at pictures", key=record.key)
        return Picture(pictures.decode(data, key=record.key), record.fields.get("scene"))

    def encode(self, picture: Picture) -> bytes:
        """A picture as the output stores it."""
        return self._runner.reencoding(np.asarray(picture.pixels))

    def seed(self, record: Record, *draw: object) -> int:
        """A number of 32 bits for one draw of this stage."""
        text = "/".join(map(str, (self._runner.recipe.config.seed, self._name, record.id, *draw)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def origin(self, record: Record, model: Any, *, seed: int = 0, prompt_sha: str = "", **params: Any) -> int:
        """Adds an entry to the record's provenance; returns its number."""
        entry = {"block": self._name.partition(":")[2], "model": model.model, "revision": model.revision}
        entry |= {"prompt_sha": prompt_sha, "seed": seed, "params": {k: v for k, v in params.items() if v is not None}}
        if entry not in record.provenance:
            record.provenance.append(entry)
        return record.provenance.index(entry)


class StageRunner:
    """The stages of a recipe with their models; a model is made once, by the process that first asks for it."""

    def __init__(self, recipe: Recipe, inputs: Inputs):
        self.recipe, self.inputs = recipe, inputs
        config = recipe.config
        # Enough records at once that a service has its next request ready.
        asked = [2 * int(section.get("concurrency") or 0) for _, section in recipe.models.values()]
        self._batch_size = max(config.batch_size, *asked, 1)
        self.reencoding = Reencoding(image_size=config.image_size, format=config.format, quality=config.quality)
        self._models: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without models: each process makes its own."""
        return {**self.__dict__, "_models": {}}

    def model(self, name: str) -> Any:
        """The model of that name."""
        if name not in self._models:
            role, section = self.recipe.models[name]
            self._models[name] = plugins.make(BACKENDS, role.__name__, section, path=f"models.{name}")
        return self._models[name]

    def tools(self, number: int) -> StageTools:
        """For the stage of that number."""
        return StageTools(self, number)

    def run(
        self, records: Iterable[Record], steps: Sequence[Step], *, progress: Callable[[int], None] = lambda done: None
    ) -> list[Record]:
        """All records after the steps, those that were dropped among them, in order.

        Args:
          records: what goes in.
          steps: numbers of stages, with the decisions of global blocks.
          progress: is called with numbers of records that went in and are done.
        """
        done: list[Record] = []
        size = self._batch_size
        for batch in _batches(records, size):
            current = batch
            for number, decision in steps:
                current = [
                    record for chunk in _batches(current, size) for record in self._step(chunk, number, decision)
                ]
            done += current
            progress(len(batch))
        return done

    def finish(self, record: Record) -> Record:
        """The record with the picture that it is stored with."""
        if record.image is None and not record.reason.startswith("unreadable"):
            try:
                if (image := self.inputs.image(record.index)) is None:  # a sequence, which stays where it is
                    return record
                record.image = self.reencoding(image, key=record.key)
                height, width = pictures.size_of(record.image)
                record.size = (height, width)
            except Unreadable as error:
                record.drop(f"unreadable: {error.reason} {error.detail}")
        return record

    def _step(self, records: list[Record], number: int, decision: Any) -> list[Record]:
        name, block = self.recipe.blocks[number]
        kept = [record for record in records if record.keep]
        results = iter(self._results(name, block, kept, decision, self.tools(number)))
        after: list[Record] = []
        for record in records:
            result: Result = next(results) if record.keep else record
            if isinstance(result, Failure):
                record.drop(f"{name}: {result.reason}")
                after.append(record)
            else:
                after += [result] if isinstance(result, Record) else result
        return after

    def _results(
        self, name: str, block: RecordBlock | GlobalBlock, records: list[Record], decision: Any, tools: StageTools
    ) -> list[Result]:
        if not records:
            return []
        copies = [copy.deepcopy(record) for record in records]
        try:
            results = block.apply(copies, decision, tools) if isinstance(block, GlobalBlock) else block(copies, tools)
        except ConfigError:
            raise
        except Exception as error:
            if len(records) > 1:
                return [self._results(name, block, [record], decision, tools)[0] for record in records]
            logger.debug("a record failed", exc_info=error)
            return [Failure(f"{type(error).__name__}: {error}")]
        if len(results) != len(records):
            raise RuntimeError(f"the block {name!r} returned {len(results)} results for {len(records)} records")
        return results


def _batches(records: Iterable[Record], size: int) -> Iterable[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def model_line(name: str, section: Mapping[str, Any]) -> str:
    """One line that names a model."""
    options = ", ".join(f"{key}={value!r}" for key, value in section.items() if key not in ("name", "model"))
    return f"{name}: {section['name']} {section.get('model', '')}".rstrip() + (f" ({options})" if options else "")
