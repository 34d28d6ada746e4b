"""Captions that teachers write from glosses: true to them, one for each teacher, and joined to the sequences again."""

import functools
import json

import numpy as np
import pytest

from mmjax.config_file import load_config
from mmjax.core.config import ConfigError
from mmjax.data.negatives.config import PositivesTable
from mmjax.data.negatives.table import WithPositives
from mmjax.data.sample import Unreadable
from mmjax.data.scenes.graph import from_json
from mmjax.data.sources import generated, scenes
from mmjax.generate.backend import Decoding
from mmjax.generate.backends.rules import Writer
from mmjax.generate.blocks.rewrite import Block
from mmjax.generate.scene_oracles.oracle import similarity
from support import generating
from support.generating import record


def made(output, config="xmda", *, splits=("train",), **models):
    sections = load_config(config, folder="generate")
    for name, options in models.items():
        sections["models"][name] |= options
    keys = {key: value for key, value in sections.items() if key not in ("stages", "models")}
    job = generating.make_job(output, sections["stages"], sections["models"], splits=splits, **keys)
    return job, generating.run(job)


def translations(one):
    return [caption["text"] for caption in one.captions if caption["source"] == "translation"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_teacher_translates_each_example_and_its_texts_are_a_table_of_each_split(tmp_path):
    job, records = made(tmp_path / "out", splits=("train", "val"), teacher_2={"error": 1.0})
    assert len(records) == 48
    wrong = 0
    for one in records:
        scene, _ = from_json(one.fields["scene"])
        texts = translations(one)
        assert one.keep and len(texts) == 3
        assert similarity(scene, texts[0]) == similarity(scene, texts[2]) == 1
        assert all(sum(word in text for word in one.fields["gloss"].split()) > 3 for text in (texts[0], texts[2]))
        wrong += similarity(scene, texts[1]) < 1
        assert sum(c["weight"] for c in one.captions if c["source"] == "raw") == pytest.approx(1)
    assert wrong > 40  # an exchanged color may be that of the other thing
    for split in ("train", "val"):
        own = [one for one in records if one.split == split]
        expected = [
            {"key": one.key, "positive": text, "source": "translation"} for one in own for text in translations(one)
        ]
        assert lines(tmp_path / "out" / f"captions-{split}.jsonl") == expected
    first = (tmp_path / "out" / "captions-val.jsonl").read_bytes()
    (tmp_path / "out" / "captions-val.jsonl").unlink()
    generating.run(job)
    assert (tmp_path / "out" / "captions-val.jsonl").read_bytes() == first


def test_translations_are_further_references_of_the_sequences(tmp_path):
    _, records = made(tmp_path / "out")
    table = PositivesTable(path=str(tmp_path / "out" / "captions-train.jsonl"))
    data = scenes.Source("train", world="easy", size=24, modalities=("frames",))
    joined = WithPositives(data, table)
    for index in (0, 7, 23):
        both = [*data[index]["captions"], *translations(records[index])]
        assert joined[index]["captions"] == list(dict.fromkeys(both))
        assert len(joined[index]["captions"]) > len(data[index]["captions"])


def test_pictures_have_their_glosses_too_and_examples_without_are_dropped_with_their_reason(tmp_path):
    _, records = made(tmp_path / "out", "xmda:teachers=1")
    assert all(one.image is not None and len(translations(one)) == 1 for one in records)
    example = generated.Source("train", path=str(tmp_path / "out"))[0]
    assert translations(records[0])[0] in example["captions"] and example["gloss"] == records[0].fields["gloss"]
    _, none = made(tmp_path / "none", "xmda:teachers=1,field=signs")
    assert {one.reason for one in none} == {"rewrite: no signs"}
    assert (tmp_path / "none" / "captions-train.jsonl").read_text() == ""


def test_files_of_sequences_in_a_table_are_no_pictures(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.ones((3, 2), np.float32))
    (tmp_path / "t.csv").write_text("image,caption,gloss\na.npy,it rains,RAIN\nb.npy,it is windy,\n")
    source = {"name": "tables", "path": str(tmp_path / "t.csv"), "columns": ("gloss",)}
    sections = load_config("xmda:teachers=2,backend=rules", folder="generate")
    keys = {key: value for key, value in sections.items() if key not in ("stages", "models")}
    job = functools.partial(generating.make_job, source=source, bare=True)
    one, other = generating.run(job(tmp_path / "out", sections["stages"], sections["models"], **keys))
    assert translations(one) == ["rain", "rain"] and one.image is None
    assert other.reason == "rewrite: no gloss"
    with pytest.raises(Unreadable, match=r"use captions-SPLIT\.jsonl"):
        generated.Source("train", path=str(tmp_path / "out"))[0]
    looked = job(tmp_path / "b", (("caption", {}),), {"captioner": {"name": "scenes"}})
    assert all("this stage looks at pictures" in one.reason for one in generating.run(looked))


def test_a_request_has_the_glosses_of_a_text_or_of_a_list_and_pairs_of_ones_own(tmp_path):
    (tmp_path / "own.tsv").write_text("REGEN NORD\tim norden regnet es\n")
    demos = str(tmp_path / "own.tsv")
    block = Block(field="gloss", prompt="xmda_translate", demos=(demos,), source="translation")
    for glosses in ("WIND  NORD", ["WIND", "NORD"]):
        text = block._text(record(fields={"gloss": glosses}))
        (_, user) = block.request(text, demos, 0).messages
        assert user.text.endswith("REGEN NORD => im norden regnet es\nWIND NORD =>")
    assert Writer().write([block.request("WIND NORD", demos, 0)], Decoding(n=2), [0]) == [["wind nord"] * 2]
    with pytest.raises(ConfigError, match="demos='gloses': neither a set nor a file; did you mean 'glosses'"):
        Block(demos=("gloses",))
