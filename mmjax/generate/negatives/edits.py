"""Hard negatives that a language model writes: false versions of a caption that differ in one detail each."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any

from mmjax.data.sample import Unreadable
from mmjax.data.text import clean
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.negatives.makers import CaptionedExample, Row, draw_seed, to_rows
from mmjax.generate.prompt import load_prompt

KINDS = ("object", "attribute", "relation", "action")


class EditMaker:
    """Asks for one false version of each kind, as JSON; replies that are no such JSON fail their caption.

    Args:
        writer: The language model.
        kinds: Of edits, as the prompt names them.
        seed: Of all requests.
        prompt: A prompt of ``mmjax/generate/prompts``, or a file; its blanks are ``$caption`` and ``$kinds``.
        temperature: Of the replies; None: the model's own.
    """

    def __init__(
        self,
        writer: Writer,
        kinds: Sequence[str] = KINDS,
        *,
        seed: int,
        prompt: str = "negative_edit",
        temperature: float | None = None,
    ):
        self._writer, self._kinds, self._seed = writer, tuple(kinds), seed
        self._prompt, self._decoding = load_prompt(prompt), Decoding(temperature=temperature)
        text = {"type": "string"}
        self._schema = {
            "type": "object",
            "properties": dict.fromkeys(self._kinds, text),
            "required": list(self._kinds),
            "additionalProperties": False,
        }
        self.failures: collections.Counter[str] = collections.Counter()

    def rows(self, examples: Sequence[CaptionedExample]) -> list[Row]:
        """The negatives of all examples."""
        pairs = [(example, caption) for example in examples for caption in example.captions]
        requests = [self._prompt.fill(caption=caption, kinds=", ".join(self._kinds)) for _, caption in pairs]
        seeds = [draw_seed(self._seed, example.key, caption) for example, caption in pairs]
        replies = self._writer.write(requests, self._decoding, seeds, self._schema) if pairs else []
        items, results = [], list[str | Failure | None]()
        for (example, caption), reply in zip(pairs, replies, strict=True):
            edits = reply if isinstance(reply, Failure) else _read(reply[0])
            if isinstance(edits, Failure):
                self.failures[edits.reason] += 1
                continue
            for kind in self._kinds:
                items.append((example, f"edit_{kind}", caption))
                results.append(_cleaned(edits.get(kind)))
        return to_rows("llm", items, results, self.failures)


def _read(reply: str) -> dict[str, Any] | Failure:
    try:
        edits = json.loads(reply)
    except ValueError:
        return Failure("the reply is no JSON")
    return edits if isinstance(edits, dict) else Failure("the reply is no JSON object")


def _cleaned(text: object) -> str | None:
    """One clean line; None if there is none, as where a caption has nothing of that kind."""
    if not isinstance(text, str):
        return None
    try:
        return clean(text) or None
    except Unreadable:
        return None
