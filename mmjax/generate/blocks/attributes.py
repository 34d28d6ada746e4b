"""A writer gives objects true and wrong attributes (BiAug)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.prompt import load_prompt

_NAMES = ("kind", "value", "other", "caption", "wrong")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "attributes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in _NAMES},
                "required": list(_NAMES),
                "additionalProperties": False,
            },
        }
    },
    "required": ["attributes"],
    "additionalProperties": False,
}


class Block(block.RecordBlock):
    """For each box: a caption with an attribute's value and the same with a wrong one, in ``fields["edits"]``.

    Replies whose two captions differ in more than the value are left out. A record without boxes stays as it is.

    Args:
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      kinds: of attributes.
      boxes: of a record that are asked about, the best ones.
      temperature: of sampling.
    """

    def __init__(
        self,
        *,
        model: str = "writer",
        prompt: str = "biaug_attributes",
        kinds: tuple[str, ...] = ("color", "shape", "material", "other"),
        boxes: Annotated[int, Ge(1)] = 2,
        temperature: Annotated[float, Ge(0)] | None = None,
    ):
        self.uses = {model: Writer}
        self._model, self._kinds, self._boxes = model, kinds, boxes
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with edits; a failed reply about one box fails its record."""
        writer: Writer = tools.model(self._model)
        asked = [(row, number) for row, r in enumerate(records) for number in range(min(len(r.boxes), self._boxes))]
        requests = [
            self._prompt.fill(caption=block.first_caption(records[row]), object=records[row].boxes[number]["phrase"])
            for row, number in asked
        ]
        seeds = [tools.seed(records[row], number) for row, number in asked]
        failures: dict[int, Failure] = {}
        for (row, number), reply, seed in zip(
            asked, writer.write(requests, self._decoding, seeds, SCHEMA), seeds, strict=True
        ):
            parsed = None if isinstance(reply, Failure) else parsers.attributes(reply[0], kinds=self._kinds)
            if parsed is None:
                failures[row] = reply if isinstance(reply, Failure) else Failure("the reply lists no attributes")
                continue
            record = records[row]
            by = tools.origin(record, writer, seed=seed, prompt_sha=self._prompt.sha)
            record.fields.setdefault("edits", []).extend({**one, "box": number, "by": by} for one in parsed)
        return [failures.get(row, record) for row, record in enumerate(records)]

    def estimate(self, records: int) -> Estimate:
        """A request for each box."""
        return Estimate({self._model: records * self._boxes}, records)
