"""Questions and statements about pictures, with their answers: the files of VQA, SNLI-VE and ALBEF."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.caption_table import CaptionTable
from mmjax.data.formats.image_files import ImageFiles, one_modality
from mmjax.data.formats.json_lines import parse_json_lines
from mmjax.data.formats.row_builder import BadRow, Row
from mmjax.data.sample import Example, Unreadable
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.storage.filesystem import MAX_MIB, MaxMib
from mmjax.data.text import with_answer

Format = Literal["auto", "vqa", "snli_ve", "list"]

Rows = Iterator[Row | BadRow]

_FIELDS = ("answer", "answers", "kind")
_SEPARATOR = "\n"  # between the answers of several people, which are one line each

FLICKR_IDS = ("Flickr30K_ID", "Flikr30kID")
"""SNLI-VE's key of the picture, in its present files and in those that UNITER, MMF and IGLUE read."""


class Source(source.Source):
    """An example for each question: it is the caption, ``answer`` the one that most people gave.

    ``vqa``      ``v2_OpenEnded_mscoco_val2014_questions.json`` of VQA v2 (arXiv:1612.00837); the answers stand in
                 ``annotations``, ``v2_mscoco_val2014_annotations.json``
    ``snli_ve``  ``snli_ve_dev.jsonl`` (arXiv:1901.06706): a statement, of which ``gold_label`` says whether it follows
    ``list``     a JSON list of {image, question, answer}, or {image, sentence, label}: ALBEF's files of both

    ``answers`` is what each of several people said, in lower case and without spaces around; the official evaluation
    of VQA also evens out articles, numbers and punctuation. ``kind`` is VQA's type of the answer. Questions of one
    picture share its ``id``.

    Args:
      split: replaces ``{split}`` in ``path`` and ``annotations``.
      path: a file, a list, a glob, ``a::b`` or ``{a,b}``.
      annotations: VQA's answers, likewise; left out, its questions have none.
      image_root: the folder that images are named from; the file's own if left out.
      image_name: how VQA and SNLI-VE name the picture of an id, with ``{image}`` and ``{subtype}``; left out:
        ``COCO_{subtype}_{image:012d}.jpg`` and ``{image}.jpg``.
      answered: the caption is the question with its answer, for models that shall write both; questions without
        an answer are unreadable.
      modalities: one name, for the images.
      format: as above; ``auto`` looks at the content.
      protocols: of URLs that rows may name, as in the source ``captions``.
      max_mib: largest picture in MiB; a larger one is unreadable.
    """

    rows_share_images = True

    def __init__(
        self,
        split: str,
        *,
        path: str | tuple[str, ...],
        annotations: str | tuple[str, ...] | None = None,
        image_root: str | None = None,
        image_name: str | None = None,
        answered: bool = False,
        modalities: tuple[str, ...] = ("image",),
        format: Format = "auto",
        protocols: tuple[str, ...] = (),
        max_mib: MaxMib = MAX_MIB,
    ):
        self.modalities = one_modality(modalities)
        paths = path_patterns.expand(path, split=split)
        self._answered = answered
        self._files = ImageFiles.from_options(paths, image_root, protocols, max_mib)
        noted = path_patterns.expand(annotations, split=split, key="annotations") if annotations is not None else []
        answers = {question: entry for file in noted for question, entry in _annotations(file)}
        rows = (row for file in paths for row in _rows(file, format, answers, image_name))
        self._table = CaptionTable(rows, check_name=self._files.path_of, group=False, texts=_FIELDS)
        self._table.check_not_empty(path)
        self.ignores_split = not path_patterns.has_split(path)
        self.unreadable = self._table.unreadable
        assert self._table.keys is not None
        self._files.check_root(self._table.keys[:4].to_pylist())

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        index = self.check_index(index)
        key = self._table.name(index)
        example = self._table.example(index, key=key)
        answers = example.pop("answers")
        given_answers = {"answers": answers.split(_SEPARATOR)} if answers else {}
        fields = {name: value for name, value in example.items() if value is not None}
        if self._answered:
            if "answer" not in fields:
                raise Unreadable("no caption", "the question has no answer", key=key)
            fields["captions"] = [with_answer(question, fields["answer"]) for question in fields["captions"]]
        return {**fields, **given_answers, self.modalities[0]: self._files.read(key, key=key)}

    def column(self, name: str) -> np.ndarray:
        """A field of all examples: ``id``, ``key``, ``captions``, ``answer`` or ``kind``."""
        return self._table.column(name)


def _rows(path: str, format: str, answers: dict[Any, tuple[Any, ...]], image_name: str | None) -> Rows:
    data = _read(path, "path")
    if format == "snli_ve" or (format == "auto" and path.rpartition("/")[2].endswith(".jsonl")):
        yield from _statements(path, data, image_name or "{image}.jpg")
        return
    content = _parse(path, data, "path")
    if isinstance(content, list) and format in ("auto", "list"):
        yield from _listed(path, content)
    elif isinstance(content, dict) and isinstance(content.get("questions"), list) and format in ("auto", "vqa"):
        yield from _questions(path, content, answers, image_name or "COCO_{subtype}_{image:012d}.jpg")
    else:
        raise ConfigError(
            f"path={path!r}: no file of questions that is known; expected VQA's {{questions}}, SNLI-VE's lines "
            "(.jsonl), or a list of {image, question, answer}"
        )


def _questions(path: str, content: dict[str, Any], answers: dict[Any, tuple[Any, ...]], image_name: str) -> Rows:
    def row(entry: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        name = image_name.format(image=entry["image_id"], subtype=content.get("data_subtype", ""))
        return name, entry["question"], answers.get(entry["question_id"], (None, None, None))

    return _each(path, enumerate(content["questions"], 1), row)


def _statements(path: str, data: bytes, image_name: str) -> Rows:
    def row(entry: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        number = next((entry[key] for key in FLICKR_IDS if key in entry), None)
        if number is None:
            raise ValueError(f"no {FLICKR_IDS[0]}")
        name = image_name.format(image=str(number).removesuffix(".jpg"))
        return name, entry["sentence2"], (entry["gold_label"], None, None)

    return _each(path, parse_json_lines(data.split(b"\n")), row)


def _listed(path: str, items: list[Any]) -> Rows:
    def row(entry: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        if "sentence" in entry:
            return entry["image"], entry["sentence"], (entry["label"], None, None)
        answer = entry.get("answer")
        replies = [answer] if isinstance(answer, str) else answer or []
        return entry["image"], entry["question"], _answer_fields(replies, None)

    return _each(path, enumerate(items, 1), row)


def _each(
    path: str, entries: Iterable[tuple[int, Any]], row: Callable[[Any], tuple[Any, Any, tuple[Any, ...]]]
) -> Rows:
    for number, entry in entries:
        if isinstance(entry, Unreadable):
            yield BadRow(path, number, entry.reason, entry.detail)
            continue
        try:
            image, text, fields = row(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            yield BadRow(path, number, "bad row", f"no question about a picture ({error!r})")
        else:
            yield Row(path, number, image, text, fields=fields)


def _annotations(path: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each question's id, and its fields."""
    content = _parse(path, _read(path, "annotations"), "annotations")
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(f"annotations={path!r}: no file of VQA's answers; expected {{annotations: […]}}")
    for entry in entries:
        if isinstance(entry, dict):
            replies = [answer.get("answer") for answer in entry.get("answers") or () if isinstance(answer, dict)]
            _, answers, kind = _answer_fields(replies, entry.get("answer_type"))
            yield entry.get("question_id"), (entry.get("multiple_choice_answer"), answers, kind)


def _answer_fields(replies: list[Any], kind: Any) -> tuple[Any, Any, Any]:
    """The answer of most people, the first of equally many; all answers; and the kind."""
    texts = [" ".join(str(answer).lower().split()) for answer in replies if answer is not None]
    most = collections.Counter(texts).most_common(1)
    return (most[0][0] if most else None), (_SEPARATOR.join(texts) or None), kind


def _read(path: str, key: str) -> bytes:
    try:
        return filesystem.read(path).removeprefix(b"\xef\xbb\xbf")
    except (OSError, MemoryError) as error:
        raise ConfigError(f"{key}={path!r}: cannot be read ({error}); name a file") from None


def _parse(path: str, data: bytes, key: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={path!r}: no JSON ({error}); copy it again") from None
