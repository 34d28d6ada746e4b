"""A writer invents instructions that are followed by calling tools (GPT4Tools)."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mmjax.core.config import Between, Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.blocks.converse import box_lines
from mmjax.generate.prompt import load_prompt


class Block(block.RecordBlock):
    """Adds dialogs with tool calls to ``fields["turns"]`` (GPT4Tools, Yang et al. 2023, arXiv:2305.18752).

    Each record gets instructions for some random tools of our table. A reply's line counts only if it names the tool,
    the number of its arguments is right, and the first one is the picture. Others are left out, and a record without
    any is dropped. The dialog shows two to five tools, the right one among them, and what a tool needs is called
    first. A dialog of several calls is cut before one of them, each equally often: what comes before is the question,
    and the rest the reply to learn. Some records get an ordinary question instead, which is answered without a tool.

    Args:
      model: the writer's name.
      prompt: one of ``mmjax/generate/prompts``, or a path.
      tools: how many of them for each record.
      count: instructions for each.
      ordinary: the fraction of records that also get an ordinary question.
      cut: whether dialogs are cut; otherwise the reply has all calls.
      temperature: of sampling.
      max_tokens: of a reply.
    """

    def __init__(
        self,
        *,
        model: str = "writer",
        prompt: str = "gpt4tools_instructions",
        tools: Annotated[int, Ge(1)] = 2,
        count: Annotated[int, Ge(1)] = 1,
        ordinary: Annotated[float, Between(0, 1)] = 0.3,
        cut: bool = True,
        temperature: Annotated[float, Ge(0)] | None = 0.7,
        max_tokens: int | None = 256,
    ):
        self.uses = {model: Writer}
        self._model, self._tools, self._count, self._ordinary, self._cut = model, tools, count, ordinary, cut
        self._prompt = load_prompt(prompt)
        self.prompts = [self._prompt]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[block.Result]:
        """The records with dialogs."""
        writer: Writer = tools.model(self._model)
        table = read_table("tools")
        asked, reasons = [], {}
        for record in records:
            if not block.first_caption(record):
                reasons[record.id] = "no caption"
                continue
            random = np.random.default_rng(tools.seed(record))
            image = f"{int(random.integers(10**6)):06d}.jpg"
            chosen = random.permutation(len(table))[: self._tools].tolist()
            asked += [(record, table[k], image, tools.seed(record, k)) for k in chosen]
        requests = [
            self._prompt.fill(
                image=image, caption=block.first_caption(record), boxes=box_lines(record), tool=row[0],
                arguments=row[1], description=row[2], count=self._count,
            )
            for record, row, image, _ in asked
        ]  # fmt: skip
        replies = writer.write(requests, self._decoding, [seed for *_, seed in asked])
        for (record, row, image, seed), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Failure):
                reasons[record.id] = reply.reason
                continue
            by = tools.origin(record, writer, seed=seed, prompt_sha=self._prompt.sha)
            for line in reply[0].splitlines():
                call = parsers.tool_call(line, tool=row[0], arguments=len(row[1].split(",")), image=image)
                if call is not None:
                    turns = dialog(call, row, np.random.default_rng(seed), cut=self._cut)
                    record.fields.setdefault("turns", []).append(
                        {"role": "tool", "tool": row[0], "turns": turns, "by": by}
                    )
                    record.qa.append(
                        {"q": call[0], "a": f"[{', '.join([row[0], *call[1]])}]", "role": "tool", "by": by}
                    )
        results: list[block.Result] = []
        for record in records:
            if "turns" not in record.fields:
                results.append(Failure(reasons.get(record.id, "no line of the replies is a call of its tool")))
                continue
            random = np.random.default_rng(tools.seed(record, "ordinary"))
            if random.random() < self._ordinary:
                question, answer = read_table("ordinary")[int(random.integers(len(read_table("ordinary"))))][:2]
                shown = [row[0] for row in _sample(table, random, count=2)]
                turn = [f"Tools: {'; '.join(shown)}\n{question}", f"Thought: no tool is needed\n{answer}"]
                record.fields["turns"].append({"role": "ordinary", "turns": [turn]})
            results.append(record)
        return results

    def estimate(self, records: int) -> Estimate:
        """A request for each tool."""
        return Estimate({self._model: records * self._tools}, records)


@functools.cache
def read_table(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a table that ships: tools by name, arguments and description, or ordinary questions and answers."""
    file = importlib.resources.files("mmjax.generate").joinpath("prompts", f"{name}.tsv")
    return tuple(tuple(line.split("\t")) for line in file.read_text(encoding="utf-8").splitlines() if line)


def dialog(
    call: tuple[str, list[str]], tool: Sequence[str], random: np.random.Generator, *, cut: bool = False
) -> list[list[str]]:
    """Turns of a user and an assistant that calls the tool, after the one that it needs.

    With ``cut`` the user's turn may hold the first call and what came of it.
    """
    table = read_table("tools")
    instruction, arguments = call
    needed = tool[2].rpartition("needs ")[2] if "needs " in tool[2] else None
    others = [row[0] for row in _sample(table, random, count=5) if row[0] not in (tool[0], needed)]
    shown = {tool[0], needed, *others[: int(random.integers(1, 4))]}
    lines = [f"{row[0]} ({row[1]}): {row[2]}" for row in table if row[0] in shown]
    steps = []
    if needed:
        steps.append(f"Thought: {tool[0]} needs {needed} first\nAction: {needed}\nAction Input: {arguments[0]}")
        steps.append(f"Observation: {needed.lower()}-{arguments[0]}")
        arguments = [f"{needed.lower()}-{arguments[0]}", *arguments[1:]]
    steps.append(f"Thought: this needs {tool[0]}\nAction: {tool[0]}\nAction Input: {', '.join(arguments)}")
    place = 2 * int(random.integers(len(steps) // 2 + 1)) if cut else 0  # calls and observations take turns
    return [["\n".join(["Tools:", *lines, "", instruction, *steps[:place]]), "\n".join(steps[place:])]]


def _sample(table: Sequence[Sequence[str]], random: np.random.Generator, *, count: int) -> list[Sequence[str]]:
    return [table[k] for k in random.permutation(len(table))[:count].tolist()]
