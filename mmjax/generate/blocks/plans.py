"""A writer teaches and plans for each skill, from a few questions of it (T-SciQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from mmjax.core.config import Ge
from mmjax.data.formats.generated_records import Record
from mmjax.generate import block, parsers
from mmjax.generate.backend import Decoding, Failure, Writer
from mmjax.generate.block import Estimate, Tools
from mmjax.generate.prompt import load_prompt


class Block(block.GlobalBlock):
    """Gives each question the ``lecture`` and the ``plan`` of its skill (T-SciQ, Wang et al. 2024, arXiv:2305.03453).

    Two requests for each skill; a skill for which one fails has none, and its records are dropped.

    Args:
      model: the writer's name.
      lecture: the prompt of the lecture.
      plan: the prompt of the plan.
      demonstrations: random questions of a skill that are shown.
      temperature: of sampling.
      max_tokens: of a reply.
    """

    def __init__(
        self,
        *,
        model: str = "writer",
        lecture: str = "tsciq_lecture",
        plan: str = "tsciq_plan",
        demonstrations: Annotated[int, Ge(1)] = 5,
        temperature: Annotated[float, Ge(0)] | None = 0.0,
        max_tokens: int | None = 512,
    ):
        self.uses = {model: Writer}
        self._model, self._demonstrations = model, demonstrations
        self._lecture, self._plan = load_prompt(lecture), load_prompt(plan)
        self.prompts = [self._lecture, self._plan]
        self._decoding = Decoding(temperature=temperature, max_tokens=max_tokens)

    def collect(self, record: Record) -> Any:
        """Skills, questions and answers."""
        return [[one["skill"], f"{one['q']} {one['a']}"] for one in record.qa] or None

    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """Lecture and plan by skill."""
        writer: Writer = tools.model(self._model)
        by_skill: dict[str, list[str]] = {}
        for skill, text in (pair for pairs in values for pair in pairs):
            by_skill.setdefault(skill, []).append(text)
        made: dict[str, Any] = {}
        for skill, texts in sorted(by_skill.items()):
            whole = Record(id=f"skill/{skill}")
            seed = tools.seed(whole)
            order = np.random.default_rng(seed).permutation(len(texts))[: self._demonstrations].tolist()
            request = self._lecture.fill(skill=skill, demonstrations=[texts[k] for k in order])
            (lecture,) = writer.write([request], self._decoding, [seed])
            if isinstance(lecture, Failure) or not (line := parsers.first_line(lecture[0])):
                continue
            request = self._plan.fill(skill=skill, lecture=line)
            (plan,) = writer.write([request], self._decoding, [seed])
            if isinstance(plan, Failure) or not (steps := parsers.list_lines(plan[0])):
                continue
            tools.origin(whole, writer, seed=seed, prompt_sha=self._plan.sha, lecture_sha=self._lecture.sha)
            made[skill] = {"lecture": line, "plan": steps, "origin": whole.provenance[0]}
        return made

    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[block.Result]:
        """The records with lectures and plans."""
        results: list[block.Result] = []
        for record in records:
            missing = [one["skill"] for one in record.qa if one["skill"] not in decision]
            if missing or not record.qa:
                results.append(Failure(f"no plan for the skill {missing[0]!r}" if missing else "no question"))
                continue
            for one in record.qa:
                own = decision[one["skill"]]
                one |= {"lecture": own["lecture"], "plan": own["plan"]}
                if own["origin"] not in record.provenance:
                    record.provenance.append(own["origin"])
            results.append(record)
        return results

    def estimate(self, records: int) -> Estimate:
        """Two requests for each skill, of which there are at most as many as records."""
        return Estimate({self._model: 2 * records}, records)
