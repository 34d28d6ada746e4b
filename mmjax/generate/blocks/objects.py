"""A writer lists objects that a picture may show (BiAug)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Tools
from mmjax.generate.prompt import load_prompt

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"objects": {"type": "array", "items": {"type": "string"}}},
    "required": ["objects"],
    "additionalProperties": False,
}


class Block(block.RecordBlock):
    """Puts candidates for objects, mentioned in the first caption or not, into ``fields["objects"]``.

    Args:
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      count: objects that the caption does not mention.
      most: objects that are kept.
      temperature: of sampling.
    """

    def __init__(
        self,
        *,
        model: str = "writer",
        prompt: str = "biaug_objects",
        count: Annotated[int, Ge(0)] = 3,
        most: Annotated[int, Ge(1)] = 8,
        temperature: Annotated[float, Ge(0)] | None = None,
    ):
        self.uses = {model: Writer}
        self._model, self._count, self._most = model, count, most
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with their objects."""
        writer: Writer = tools.model(self._model)
        asked = [record for record in records if block.first_caption(record)]
        requests = [self._prompt.fill(caption=block.first_caption(record), count=self._count) for record in asked]
        replies = writer.write(requests, self._decoding, [tools.seed(record) for record in asked], SCHEMA)

        def use(record: Record, reply: list[str]) -> block.Result | None:
            names = parsers.objects(reply[0], most=self._most)
            if names is None:
                return Failure("the reply lists no objects")
            tools.origin(record, writer, seed=tools.seed(record), prompt_sha=self._prompt.sha)
            record.fields["objects"] = names
            return None

        results = dict(zip((record.id for record in asked), block.ask(asked, replies, use), strict=True))
        return [results.get(record.id, Failure("no caption")) for record in records]
