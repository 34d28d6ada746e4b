"""The published files of NLVR2: which pictures they name, and two pictures through the pipeline."""

import json

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import tokenizer
from mmjax.data.pipeline import Batches
from mmjax.data.sources.nlvr2 import Source
from mmjax.data.transform_chain import TransformChain
from support import tables

LINES = [
    {"sentence": "Both show dogs.", "identifier": "dev-7-0-0", "label": "True", "synset": "dog", "query": "dog5"},
    {"sentence": "Both show dogs.", "identifier": "dev-7-1-0", "label": "False"},
    {"sentence": "One shows a cat.", "identifier": "dev-7-0-1", "label": "False"},
    {"sentence": "One shows a cat.", "identifier": "dev-7-0", "label": "False"},
    {"sentence": "Maybe.", "identifier": "dev-7-0-2", "label": "perhaps"},
    {"sentence": " ", "identifier": "dev-7-0-2", "label": "True"},
]


@pytest.fixture
def folder(tmp_path):
    names = [
        f"{where}-img{k}.png" for where in ("dev/dev-7-0", "dev/dev-7-1", "images/train/12/train-3-0") for k in (0, 1)
    ]
    tables.write_images(tmp_path, [(name, tables.png(i), []) for i, name in enumerate(names)])
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, LINES)) + "\n{\n")
    train = {"sentence": "It is so.", "identifier": "train-3-0-2", "label": "True", "directory": 12}
    (tmp_path / "train.json").write_text(json.dumps(train))
    return tmp_path


def test_statements_name_two_pictures(folder):
    source = Source("dev", path=str(folder / "{split}.json"))
    assert [(x["captions"], x["answer"], x["id"], x["statement"]) for x in source] == [
        (["Both show dogs."], "True", 0, "dev-7-0"),
        (["Both show dogs."], "False", 1, "dev-7-0"),
        (["One shows a cat."], "False", 0, "dev-7-1"),
    ]
    assert source[1]["left"] == tables.png(2) and source[1]["right"] == tables.png(3)
    assert [reason for _, reason, _ in source.unreadable] == ["bad row", "bad row", "no caption", "bad row"]
    assert source.column("answer").tolist() == ["True", "False", "False"] and source.column("id").tolist() == [0, 1, 0]
    train = Source("train", path=str(folder / "{split}.json"))[0]
    assert train["left"] == tables.png(4) and train["statement"] == "train-3-2"


def test_albefs_lists_and_what_is_no_such_file(folder):
    items = [{"sentence": "So.", "label": "True", "images": ["dev/dev-7-1-img0.png", "dev/dev-7-0-img1.png"]}]
    (folder / "list.json").write_text(json.dumps(items))
    example = Source("test", path=str(folder / "list.json"))[0]
    assert example["left"] == tables.png(2) and example["right"] == tables.png(1) and example["statement"] == "So."
    (folder / "list.json").write_text(json.dumps([{"images": ["../secret.png", "b.png"], "sentence": "a"}]))
    with pytest.raises(
        ConfigError, match=r"list.json'.*has no statements about pairs; the first problem: .*list.json:1"
    ):
        Source("test", path=str(folder / "list.json"))
    with pytest.raises(
        ConfigError, match=r"modalities=\('image',\): examples have two pictures; use \('left', 'right'\)"
    ):
        Source("dev", path=str(folder / "dev.json"), modalities=("image",))
    with pytest.raises(ConfigError, match=r"image_root=.*none of the first"):
        Source("dev", path=str(folder / "dev.json"), image_root=str(folder / "dev"))


def test_the_two_pictures_are_cropped_each_on_its_own(folder):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)

    class Same(Source):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"left": pixels, "right": pixels}

    source = Same("dev", path=str(folder / "dev.json"))
    words = tokenizer.load("word", context_length=8, captions=["both show dogs one shows a cat"])

    def images(aligned):
        crop = (("random_resized_crop", {"scale": (0.1, 0.3)}),)
        chain = TransformChain(crop, image_size=16, modalities=source.modalities, aligned=aligned)
        return Batches(source, words, batch_size=2, seed=0, chain=chain)[0]["images"]

    alike, apart = images(True), images(False)
    assert (alike["left"] == alike["right"]).all() and (apart["left"] == alike["left"]).all()
    assert (apart["left"] != apart["right"]).mean() > 0.5
