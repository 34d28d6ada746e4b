"""``Block``: one stage of a recipe, from records to records."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mmjax.data.formats.generated_records import Record
from mmjax.generate.backend import Failure, Picture

FOLDER = "mmjax.generate.blocks"
Result = Record | list[Record] | Failure


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a stage will cost if no record is dropped before it."""

    requests: Mapping[str, int]  # by model
    records: int  # that leave it


class Tools(Protocol):
    """What a block may use beside its records."""

    def model(self, name: str) -> Any:
        """The model of that name, in the role that the block's ``uses`` says."""

    def picture(self, record: Record) -> Picture:
        """The record's picture, decoded."""

    def encode(self, picture: Picture) -> bytes:
        """A picture as the output stores it."""

    def seed(self, record: Record, *draw: object) -> int:
        """A number of 32 bits, from the recipe's seed, the stage, the record and which ``draw`` of it."""

    def origin(self, record: Record, model: Any, *, seed: int = 0, prompt_sha: str = "", **params: Any) -> int:
        """Adds an entry to the record's provenance; returns its number, which ``by`` names."""


class Block:
    """What blocks of both kinds have; the class of a module is called ``Block``, its options are keyword arguments.

    Attributes:
      uses: the models that it asks, by the name that the recipe gives them, and their roles.
      needs: fields without which no record can be used; a recipe is refused for data whose first examples all lack one.
      decides: whether it changes nothing but ``keep``, ``reason``, ``scores`` and the weights of captions; such blocks
        at the end of a recipe write no records again. They use no models or pictures.
    """

    decides: bool = False
    uses: Mapping[str, type] = {}
    needs: Sequence[str] = ()

    def estimate(self, records: int) -> Estimate:
        """What that many records cost: one request each to each model, unless a subclass knows better."""
        return Estimate(dict.fromkeys(self.uses, records), records)


class RecordBlock(Block, abc.ABC):
    """Base class of blocks that depend on one record at a time.

    A block gets batches of records that are kept so far, as copies that it may change, and returns for each, in order,
    that record, a list of records that take its place, or a ``Failure``, which drops it. If it raises, the batch is
    tried again record by record.
    """

    @abc.abstractmethod
    def __call__(self, records: Sequence[Record], tools: Tools) -> list[Result]:
        """The records after this stage."""


class GlobalBlock(Block, abc.ABC):
    """Base class of blocks whose decision needs all records."""

    @abc.abstractmethod
    def collect(self, record: Record) -> Any:
        """What it needs of a record, as plain values; None for nothing."""

    @abc.abstractmethod
    def decide(self, values: Sequence[Any], tools: Tools) -> Any:
        """The decision, as JSON values, from what was collected of all kept records in order."""

    @abc.abstractmethod
    def apply(self, records: Sequence[Record], decision: Any, tools: Tools) -> list[Result]:
        """The records after the decision, as ``RecordBlock`` returns them."""


class Filter(RecordBlock):
    """Base class of filters that judge each record by itself."""

    decides = True

    @abc.abstractmethod
    def judge(self, record: Record) -> str | None:
        """Why the record is dropped; None keeps it. May change weights."""

    def __call__(self, records: Sequence[Record], tools: Tools) -> list[Result]:
        """The records, some of them dropped."""
        for record in records:
            reason = self.judge(record)
            if reason is not None:
                record.drop(reason)
        return list(records)


def ask(records: Sequence[Record], answers: Sequence[Any], use: Callable[[Record, Any], Result | None]) -> list[Result]:
    """For each record what ``use`` makes of it and its answer (None: the record itself), or the answer's Failure."""
    results: list[Result] = []
    for record, answer in zip(records, answers, strict=True):
        if isinstance(answer, Failure):
            results.append(answer)
            continue
        result = use(record, answer)
        results.append(record if result is None else result)
    return results


def child(record: Record, number: int, fields: Sequence[str] = ()) -> Record:
    """A record whose picture will be made from this one's: of the same split, without texts.

    Args:
      record: the parent.
      number: of the child.
      fields: those of the parent's that hold for the other picture too, where it has them; an answer may not.
    """
    return Record(
        id=f"{record.id}.{number}", parent_id=record.id, key=record.key, split=record.split, index=record.index,
        fields={name: copy.deepcopy(record.fields[name]) for name in fields if name in record.fields},
    )  # fmt: skip


def failed_child(record: Record, number: int, reason: str) -> Record:
    """What stands in place of a picture that could not be made; the parent stays as it is."""
    one = child(record, number)
    one.image = b""  # or the output would store the parent's
    one.drop(reason)
    return one


def captions(record: Record, sources: Sequence[str] = ()) -> list[tuple[int, dict[str, Any]]]:
    """Numbers and captions that have a weight and are of those sources; of all but raw ones if there are none."""
    return [
        (number, caption)
        for number, caption in enumerate(record.captions)
        if caption.get("weight", 1.0) > 0 and (caption["source"] in sources if sources else caption["source"] != "raw")
    ]


def first_caption(record: Record, sources: Sequence[str] = ()) -> str:
    """The first caption that has a weight and is of those sources, or of any; empty if there is none."""
    for caption in record.captions:
        if caption.get("weight", 1.0) > 0 and (not sources or caption["source"] in sources):
            return str(caption["text"])
    return ""


def without(record: Record, is_wrong: Callable[[str], bool], sources: Sequence[str], *, reason: str) -> str | None:
    """Sets the weights of wrong captions to zero; the reason to drop the record if none has a weight then."""
    wrong = [caption for _, caption in captions(record, sources) if is_wrong(caption["text"])]
    for caption in wrong:
        caption["weight"] = 0.0
    return reason if wrong and not any(caption.get("weight", 1.0) > 0 for caption in record.captions) else None


def set_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are set, for the provenance."""
    return {name: field for name, field in dataclasses.asdict(value).items() if field is not None}
