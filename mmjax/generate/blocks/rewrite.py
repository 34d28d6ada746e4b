"""A writer says captions in other words, after examples (LaCLIP)."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from mmjax.core.config import ConfigError, Ge, nearest
from mmjax.data.formats.generated_records import Record
from mmjax.data.sequences.labels import split_labels
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, TextRequest, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.prompt import load_prompt


class Block(block.RecordBlock):
    """Adds a rewrite of one caption for each set of examples (LaCLIP, Fan et al. 2023, arXiv:2305.20088).

    The writer sees some random pairs of a set and completes the last line. A caption is never cut: where the request
    would be longer than ``max_characters``, there are fewer pairs. A failed rewrite is left out; a record without
    any is dropped.

    Args:
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      demos: sets of pairs: names in ``prompts/demos``, or tables of a caption and a rewrite, separated by a tab.
      shots: pairs in a request.
      n: rewrites for each set.
      source: what rewrites are called in the record.
      prompts: whether they say what another picture shall show; they lose their weight in the stage ``edit``.
      sources: which captions are rewritten, the first one of a record; any if left out.
      field: of the examples, such as their glosses, is rewritten in place of a caption.
      max_characters: of a request's pairs and caption.
      temperature: of sampling.
      top_p: the probability of the tokens that are sampled from.
      max_tokens: of a rewrite.
    """

    def __init__(
        self,
        *,
        model: str = "writer",
        prompt: str = "laclip_rewrite",
        demos: tuple[str, ...] = ("plain", "detailed", "short", "spoken"),
        shots: Annotated[int, Ge(0)] = 3,
        n: Annotated[int, Ge(1)] = 1,
        source: str = "rewrite",
        prompts: bool = False,
        sources: tuple[str, ...] = (),
        field: str | None = None,
        max_characters: Annotated[int, Ge(1)] = 2000,
        temperature: Annotated[float, Ge(0)] | None = 0.9,
        top_p: float | None = 0.95,
        max_tokens: int | None = 77,
    ):
        if not demos:
            raise ConfigError("demos=(): there is a rewrite for each set of examples; name one or more")
        self.uses = {model: Writer}
        self._model, self._source, self._sources, self._field = model, source, sources, field
        self._shots, self._most, self._marks = shots, max_characters, {"prompt": True} if prompts else {}
        self._demos = {name: load_demos(name) for name in demos}
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(n, temperature=temperature, top_p=top_p, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with rewrites of their first caption."""
        writer: Writer = tools.model(self._model)
        reasons = {record.id: f"no {self._field or 'caption'}" for record in records if not self._text(record)}
        asked = [
            (record, name, tools.seed(record, name))
            for record in records if record.id not in reasons for name in self._demos
        ]  # fmt: skip
        replies = writer.write(
            [self.request(self._text(record), name, seed) for record, name, seed in asked],
            self._decoding,
            [seed for *_, seed in asked],
        )
        for (record, name, seed), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Failure):
                reasons[record.id] = reply.reason
                continue
            by = tools.origin(
                record, writer, seed=seed, prompt_sha=self._prompt.sha, demos=name, **block.set_fields(self._decoding)
            )
            caption = self._text(record)
            for text in filter(None, (parsers.rewrite(one, caption=caption) for one in reply)):
                record.captions.append({"text": text, "source": self._source, "weight": 1.0, "by": by, **self._marks})
        return [
            record if any(caption["source"] == self._source for caption in record.captions)
            else Failure(reasons.get(record.id, "no rewrite in any reply"))
            for record in records
        ]  # fmt: skip

    def _text(self, record: Record) -> str:
        if self._field is not None:
            return " ".join(split_labels(record.fields.get(self._field)))
        return block.first_caption(record, self._sources) or block.first_caption(record)

    def request(self, caption: str, demos: str, seed: int) -> TextRequest:
        """The request for one rewrite, with as many pairs as fit."""
        pairs = self._demos[demos]
        order = np.random.default_rng(seed).permutation(len(pairs))[: self._shots].tolist()
        lines = [f"{pairs[number][0]} => {pairs[number][1]}" for number in order]
        while lines and sum(map(len, lines)) + len(caption) > self._most:
            lines.pop()
        return self._prompt.fill(pairs=lines, caption=caption)

    def estimate(self, records: int) -> Estimate:
        """A request for each record and set."""
        return Estimate({self._model: records * len(self._demos)}, records)


@functools.cache
def load_demos(name: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a set that ships, or of a file."""
    folder = importlib.resources.files("mmjax.generate").joinpath("prompts", "demos")
    known = {file.name.removesuffix(".tsv") for file in folder.iterdir()}
    try:
        file = folder.joinpath(f"{name}.tsv") if name in known else Path(name).expanduser()
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"demos={name!r}: neither a set nor a file; {nearest(name, known)}") from None
    if not rows or any(len(row) != 2 for row in rows):
        raise ConfigError(f"demos={name!r}: each line needs a caption and a rewrite, separated by one tab")
    return tuple((first.strip(), second.strip()) for first, second in rows)
