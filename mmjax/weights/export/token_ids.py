"""Exchanges two token ids in a tokenizer's files and in the table of embeddings: the model stays the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.core.files import read_json_object

EMBEDDING = "text/token_embed/embedding"


def exchange_rows(table: np.ndarray, a: int, b: int) -> np.ndarray:
    """``table`` with rows ``a`` and ``b`` exchanged."""
    table = table.copy()
    table[[a, b]] = table[[b, a]]
    return table


def exchange_tokens(source: Path, target: Path, a: int, b: int) -> None:
    """Copies a tokenizer's folder with the ids ``a`` and ``b`` exchanged; raises ConfigError if it may not be the same.

    Everything that names an id in ``tokenizer.json`` is an entry of the vocabulary, an added token, a special token of
    the template, or the padding.
    """
    shutil.copytree(source, target)
    path = target / "tokenizer.json"
    try:
        before = path.read_text(encoding="utf-8")
        section = _exchanged(read_json_object(path), {a: b, b: a})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name}: its ids cannot be exchanged ({error})") from None
    path.write_text(json.dumps(section, ensure_ascii=False), encoding="utf-8")
    _check(before, path, a, b)


def _exchanged(section: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    model = section["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: new.get(number, number) for token, number in model["vocab"].items()}
    else:  # a list by id, of Unigram
        entries = list(model["vocab"])
        model["vocab"] = [entries[new.get(number, number)] for number in range(len(entries))]
        if model.get("unk_id") is not None:
            model["unk_id"] = new.get(model["unk_id"], model["unk_id"])
    for token in section["added_tokens"]:
        token["id"] = new.get(token["id"], token["id"])
    section["added_tokens"].sort(key=lambda token: token["id"])
    for token in section["post_processor"]["special_tokens"].values():
        token["ids"] = [new.get(number, number) for number in token["ids"]]
    padding = section.get("padding")
    if padding is not None:
        padding["pad_id"] = new.get(padding["pad_id"], padding["pad_id"])
    return section


def _check(before: str, path: Path, a: int, b: int) -> None:
    """Every token has its old id, but the two; an empty text and one of all kinds of words are encoded alike."""
    import tokenizers

    old, changed = tokenizers.Tokenizer.from_str(before), tokenizers.Tokenizer.from_file(str(path))
    new = {a: b, b: a}
    moved = {token: new.get(number, number) for token, number in old.get_vocab().items()}
    texts = ["", "a red circle, two dogs! ä 猫", *list(moved)[:64]]
    encoded = [
        [[new.get(i, i) for i in each.ids] for each in old.encode_batch(texts)],
        [list(each.ids) for each in changed.encode_batch(texts)],
    ]
    if changed.get_vocab() != moved or encoded[0] != encoded[1]:
        raise ConfigError(
            f"{path.name}: exchanging the ids {a} and {b} changes its tokens; this is a kind unknown here"
        )
