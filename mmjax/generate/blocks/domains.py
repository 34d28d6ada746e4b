"""A writer names settings in which the subject could be photographed, from captions of the data (ALIA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from mmjax.core.config import ConfigError, Ge, shorten
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.blocks.dedup import digest
from mmjax.generate.prompt import load_prompt


class Block(block.GlobalBlock):
    """One request for the whole data (ALIA, Dunlap et al. 2023, arXiv:2305.16289) fills ``fields["domains"]``.

    Each is a prompt with ``{}`` for the class, as ``a photo of a {} in the snow``. The decision file has them.

    Args:
      subject: what the classes have in common, such as ``bird``.
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      sources: which captions are summarized.
      sample: how many, drawn from the distinct ones.
      count: settings at most.
      prefix: how each begins, with ``{}`` for the subject.
      temperature: of sampling.
      max_tokens: of the reply.
    """

    def __init__(
        self,
        *,
        subject: str,
        model: str = "writer",
        prompt: str = "alia_domains",
        sources: tuple[str, ...] = ("caption",),
        sample: Annotated[int, Ge(1)] = 20,
        count: Annotated[int, Ge(1)] = 10,
        prefix: str = "a photo of a {}",
        temperature: Annotated[float, Ge(0)] | None = 1.0,
        max_tokens: int | None = 512,
    ):
        if "{}" not in prefix:
            raise ConfigError(f"prefix={prefix!r}: has no {{}} for the class; write one")
        self.uses = {model: Writer}
        self._model, self._subject, self._sources = model, subject, sources
        self._sample, self._count, self._prefix = sample, count, prefix
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def collect(self, record: Record) -> Any:
        """The captions."""
        return [caption["text"] for _, caption in block.captions(record, self._sources)] or None

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """The settings, and where they come from."""
        writer: Writer = tools.model(self._model)
        distinct = list({digest(text): text for texts in reversed(values) for text in reversed(texts)}.values())[::-1]
        whole = Record(id="all")
        seed = tools.seed(whole)
        chosen = sorted(np.random.default_rng(seed).permutation(len(distinct))[: self._sample].tolist())
        begin = self._prefix.format(self._subject)
        request = self._prompt.fill(
            subject=self._subject, captions=[distinct[k] for k in chosen], count=self._count, prefix=begin
        )
        (reply,) = writer.write([request], self._decoding, [seed])
        if isinstance(reply, Failure):
            raise ConfigError(f"models.{self._model}: the summary of the captions failed ({reply.reason})")
        lines = parsers.list_lines(reply[0], begin=begin)[: self._count]
        if not lines:
            raise ConfigError(
                f"models.{self._model}: the reply names no setting as {begin!r} …, but {shorten(reply[0], 120)!r}; use "
                "another model, or write the prompts of the stage edit yourself"
            )
        tools.origin(whole, writer, seed=seed, prompt_sha=self._prompt.sha, **block.set_fields(self._decoding))
        return {"domains": [self._prefix + line[len(begin) :] for line in lines], "origin": whole.provenance[0]}

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with the settings."""
        for record in records:
            record.fields["domains"] = decision["domains"]
            record.provenance.append(decision["origin"])
        return list(records)

    def estimate(self, records: int) -> Estimate:
        """One request."""
        return Estimate({self._model: 1}, records)
