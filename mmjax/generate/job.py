"""A recipe's run over its input: phases of shards, which a killed run continues with the same bytes.

Stages between two global blocks are a phase. Each phase reads the shards of the one before and writes its own, one for
each ``shard`` examples of the input: the last one to the output, the others to ``.work`` in it. Blocks at the end that
only decide write tables beside the records::

    OUTPUT/generate.json                              what was asked
    OUTPUT/records-00000-of-00004.array_record        records
    OUTPUT/records-00000-of-00004.parquet             what was decided about them
    OUTPUT/decisions/3-caption_mix.json               of global blocks
    OUTPUT/captions-train.jsonl, conversations.jsonl  texts alone, if the recipe asks for them
    OUTPUT/.work/0/…                                  earlier phases, until all is done
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.data.formats.generated_records import KIND, PLAN, Record, table_of
from mmjax.generate.block import GlobalBlock
from mmjax.generate.inputs import Inputs
from mmjax.generate.recipe import Recipe
from mmjax.generate.stages import StageRunner, Step
from mmjax.inference.shards import ShardFolder, shard_name

_LOOKED_AT = 16  # examples, before anything is asked


class Phase:
    """The shards of one phase: calling it with a number makes that shard and stores it. It can be pickled.

    Args:
      runner: of the recipe's stages.
      steps: of this phase, with the decisions of global blocks.
      size: examples of the input in a shard.
      before: the folder of the phase before; None for the input.
      folder: where shards are written.
      suffixes: of the files that this phase writes of each shard.
      final: whether pictures are stored with the records; otherwise those of the input stay there.
    """

    def __init__(
        self,
        runner: StageRunner,
        steps: list[Step],
        *,
        before: Path | None,
        folder: ShardFolder,
        suffixes: tuple[str, ...],
        final: bool,
    ):
        self.runner, self.steps, self.before, self.folder = runner, steps, before, folder
        self._suffixes, self._final = suffixes, final

    def examples(self, number: int) -> range:
        """The examples of the input in a shard."""
        size = self.runner.recipe.config.shard
        return range(len(self.runner.inputs))[number * size : (number + 1) * size]

    def __call__(self, number: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Makes the shard of that number; ``progress`` is called with numbers of examples that are done."""
        examples = self.examples(number)
        left = len(examples)

        def count(done: int) -> None:
            nonlocal left
            if self.before is None:
                left -= done
                progress(done)

        records = self.runner.run(self._records(number), self.steps, progress=count)
        content: dict[tuple[str, str], Any] = {}
        if ".array_record" in self._suffixes:
            if self._final:
                records = [self.runner.finish(record) for record in records]
            content[KIND, ".array_record"] = [record.to_bytes() for record in records]
        if ".parquet" in self._suffixes:
            content[KIND, ".parquet"] = table_of(records)
        self.folder.write(number, content)
        progress(left)

    def _records(self, number: int) -> Iterator[Record]:
        if self.before is None:
            yield from map(self.runner.inputs.record, self.examples(number))
        else:
            yield from read_shard(self.before, number, self.folder.shards)


Engine = Callable[[Phase, list[int], Callable[[int], None]], None]
"""Makes the shards of those numbers, and calls the function with numbers of examples that are done."""


class Job:
    """A recipe, its input and its output."""

    def __init__(self, recipe: Recipe, inputs: Inputs, output: Path, asked: Mapping[str, Any]):
        self.recipe, self.inputs, self.output = recipe, inputs, output
        self._runner = StageRunner(recipe, inputs)
        self._plan = {**asked, **recipe.identity(), "examples": len(inputs)}
        self.shards = -(-len(inputs) // recipe.config.shard)
        self._work = output / ".work"
        self.content, self.deciding = phases(recipe)

    def run(self, engine: Engine, *, count: Callable[[str, int, int], contextlib.AbstractContextManager[Any]]) -> None:
        """Makes what is missing.

        Args:
          engine: makes shards.
          count: from a text, how many examples there are and how many are done, to a context manager that gives a
            function to call with the number done.
        """
        final = self._folder(self.output, (".array_record",))
        with final.locked():
            texts = [self.output / name for name in self._texts]
            if all(path.exists() for path in texts) and not (self._tables().missing() or final.missing()):
                shutil.rmtree(self._work, ignore_errors=True)
                return
            before: Path | None = None
            total = len(self.content) + bool(self.deciding)
            for number, stages in enumerate(self.content):
                is_last = number == len(self.content) - 1
                folder = final if is_last else self._folder(self._work / str(number), (".array_record",))
                folder.path.mkdir(parents=True, exist_ok=True)
                steps = self._steps(stages, before, done=not folder.missing())
                suffixes: tuple[str, ...] = (".array_record",)
                if is_last and not self.deciding:
                    suffixes = (".array_record", ".parquet")
                    folder = self._folder(self.output, suffixes)
                phase = Phase(self._runner, steps, before=before, folder=folder, suffixes=suffixes, final=is_last)
                self._run_phase(phase, engine, count, f"phase {number + 1} of {total}: {self._names(stages)}")
                before = folder.path
            if self.deciding:
                steps = []
                for group in self.deciding:
                    steps += self._steps(group, self.output, after=steps)
                phase = Phase(
                    self._runner, steps, before=self.output, folder=self._tables(), suffixes=(".parquet",), final=False
                )
                self._run_phase(phase, engine, count, f"phase {total} of {total}: {self._names([n for n, _ in steps])}")
            with final.write_errors():
                for path in texts:
                    lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in self._texts[path.name]())
                    write_atomically(path, lines.encode("utf-8", "backslashreplace"), sync=True)
            shutil.rmtree(self._work, ignore_errors=True)

    @property
    def _texts(self) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
        """The files of texts beside the records, and what makes their lines."""
        files: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {}
        if self.recipe.config.conversations:
            files["conversations.jsonl"] = self._conversations
        if self.recipe.config.captions:
            splits = self.inputs.splits
            files |= {f"captions-{split}.jsonl": functools.partial(self._captions, split) for split in splits}
        return files

    def _conversations(self) -> Iterator[dict[str, Any]]:
        for record in self.records():
            for number, dialog in enumerate(record.fields.get("turns", ()) if record.keep else ()):
                texts = [text for turn in dialog["turns"] for text in turn]
                spoken = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
                if dialog.get("sees"):
                    spoken[0]["value"] = f"<image>\n{spoken[0]['value']}"
                line = {"id": f"{record.id}-{number}", "image": record.key, "split": record.split}
                yield line | {"role": dialog["role"], "conversations": spoken}

    def _captions(self, split: str) -> Iterator[dict[str, Any]]:
        for record in self.records():
            for caption in record.captions if record.keep and record.split == split else ():
                if caption["source"] != "raw" and caption.get("weight", 1.0) > 0:
                    yield {"key": record.key, "positive": caption["text"], "source": caption["source"]}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The tables' rows of a complete output."""
        for number in range(self.shards):
            yield from pq.read_table(self._tables().table_path(KIND, number)).to_pylist()

    def records(self) -> Iterator[Record]:
        """All records of a complete output, as they were decided."""
        rows = self.rows()
        for number in range(self.shards):
            for record in read_shard(self.output, number, self.shards):
                record.decide(next(rows))
                yield record

    def _steps(
        self, stages: list[int], before: Path | None, *, after: list[Step] | None = None, done: bool = False
    ) -> list[Step]:
        """The stages with their decisions; a global block is always the first of its phase."""
        steps: list[Step] = []
        for number in stages:
            block = self.recipe.blocks[number][1]
            decision = None
            if isinstance(block, GlobalBlock) and not done:
                decision = self._decision(number, block, before, [*(after or ()), *steps])
            steps.append((number, decision))
        return steps

    def _decision(self, number: int, block: GlobalBlock, before: Path | None, steps: list[Step]) -> Any:
        path = self.output / "decisions" / f"{number}-{self.recipe.blocks[number][0]}.json"
        with contextlib.suppress(FileNotFoundError):
            return json.loads(path.read_text(encoding="utf-8"))
        values = []
        for shard in range(self.shards):
            records = self._shard(before, shard)
            for record in self._runner.run(records, steps) if steps else records:
                if record.keep and (value := block.collect(record)) is not None:
                    values.append(value)
        decision = block.decide(values, self._runner.tools(number))
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(decision, ensure_ascii=False), sync=True)
        return json.loads(json.dumps(decision))

    def _shard(self, before: Path | None, number: int) -> Iterator[Record]:
        if before is not None:
            yield from read_shard(before, number, self.shards)
            return
        size = self.recipe.config.shard
        yield from map(self.inputs.record, range(len(self.inputs))[number * size : (number + 1) * size])

    def _run_phase(self, phase: Phase, engine: Engine, count: Any, text: str) -> None:
        missing = phase.folder.missing()
        if not missing:
            return
        already = len(self.inputs) - sum(len(phase.examples(number)) for number in missing)
        with count(text, len(self.inputs), already) as counter:
            done = already

            def progress(more: int) -> None:
                nonlocal done
                counter(done := done + more)

            engine(phase, missing, progress)
        if left := phase.folder.missing():
            raise ConfigError(f"--output={self.output}: {len(left)} shards are missing; run the same command again")

    def _names(self, stages: list[int]) -> str:
        return ", ".join(self.recipe.blocks[number][0] for number in stages) or "copy"

    def _tables(self) -> ShardFolder:
        return self._folder(self.output, (".parquet",))

    def _folder(self, path: Path, suffixes: tuple[str, ...]) -> ShardFolder:
        return ShardFolder(path, plan_name=PLAN, plan=self._plan, kinds=(KIND,), suffixes=suffixes, shards=self.shards)


def check_inputs(recipe: Recipe, inputs: Inputs) -> None:
    """Raises ConfigError if the first examples lack a field that a stage needs, before any model is asked."""
    if not any(block.needs for _, block in recipe.blocks):
        return
    records = [record for index in range(min(len(inputs), _LOOKED_AT)) if (record := inputs.record(index)).keep]
    for name, block in recipe.blocks:
        for field in block.needs:
            if records and not any(field in record.fields for record in records):
                what = "classes" if field == "class_name" else f"a field {field!r}"
                raise ConfigError(
                    f"stages.{name}: needs data with {what}, and the first {len(records)} examples have none; give "
                    "--input with labels, such as a folder for each class, or other options of the stage"
                )


def phases(recipe: Recipe) -> tuple[list[list[int]], list[list[int]]]:
    """Numbers of stages: the phases that write records, and the groups at the end that only decide."""
    blocks = [block for _, block in recipe.blocks]
    end = len(blocks)
    while end and blocks[end - 1].decides:
        end -= 1
    content: list[list[int]] = [[]]
    for number in range(end):
        if isinstance(blocks[number], GlobalBlock) and number:
            content.append([])
        content[-1].append(number)
    deciding: list[list[int]] = []
    for number in range(end, len(blocks)):
        if not deciding or isinstance(blocks[number], GlobalBlock):
            deciding.append([])
        deciding[-1].append(number)
    return content, deciding


def read_shard(folder: Path, number: int, shards: int) -> Iterator[Record]:
    """The records of one shard, as they were written."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(folder / shard_name(KIND, number, shards, ".array_record")))
    for row in range(reader.num_records()):
        yield Record.from_bytes(reader.read([row])[0])
    reader.close()
