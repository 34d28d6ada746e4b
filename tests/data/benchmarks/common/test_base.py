import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data import pictures
from mmjax.data.benchmarks.common.base import cut
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from support.benchmarks import gray
from support.pictures import encoded, photograph

PHOTO = photograph(40, 50, seed=3)


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (7, 11, 20, 9), (3.6, 2.4, 10, 10), (0, 39, 50, 1)])
def test_a_region_is_that_of_pillow(box):
    x, y, width, height = map(round, box)
    expected = np.asarray(Image.fromarray(PHOTO).crop((x, y, x + width, y + height)))
    region = cut(encoded(PHOTO, "PNG"), box, key="photo")
    np.testing.assert_array_equal(pictures.decode(region), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(region))), expected)
    assert pictures.size_of(region) == expected.shape[:2]


def test_a_region_ends_where_the_picture_does():
    region = pictures.decode(cut(encoded(PHOTO, "PNG"), (-5, 30, 20, 40), key="photo"))
    np.testing.assert_array_equal(region, PHOTO[30:, :15])


@pytest.mark.parametrize("box", [(50, 0, 5, 5), (0, 0, 0, 5), (-9, -9, 5, 5), (5, 5, -2, 3)])
def test_a_region_without_pixels_is_unreadable(box):
    with pytest.raises(Unreadable, match=r"empty image.*50 x 40"):
        cut(encoded(PHOTO, "PNG"), box, key="photo")


@pytest.fixture
def sugarcrepe(tmp_path):
    gray(tmp_path / "images" / "a.png", 9)

    def opened(content, **options):
        (tmp_path / "add_obj.json").write_text(content if isinstance(content, str) else json.dumps(content))
        section = {"name": "mmjax.data.benchmarks.sugarcrepe", "path": str(tmp_path), **options}
        return open_source({"image_root": str(tmp_path / "images"), **section}, split="any")

    return opened


GOOD = {"filename": "a.png", "caption": "true", "negative_caption": "false"}


def test_annotations_of_one_picture_are_one_example_that_travels_to_workers(sugarcrepe):
    source = sugarcrepe({"0": GOOD, "7": GOOD | {"negative_caption": "wrong"}})
    assert len(source) == 1 and source.ignores_split and source.modalities == ("image",)
    for twin in (source, pickle.loads(pickle.dumps(source))):
        assert twin[0]["negatives"] == [("add_obj", "true", "false"), ("add_obj", "true", "wrong")]
        assert twin[0]["captions"] == ["true"] and twin[0]["groups"] == ["add_obj 0", "add_obj 7"]
        assert pictures.decode(twin[0]["image"])[0, 0, 0] == 9
    for index in (1, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "bad row"),
        (None, "bad row"),
        ({"filename": "a.png", "caption": "true"}, "bad row"),
        (GOOD | {"caption": None}, "bad row"),
        (GOOD | {"caption": 7}, "bad row"),
        (GOOD | {"caption": " "}, "no caption"),
        (GOOD | {"filename": "../secret.png"}, "bad row"),
        (GOOD | {"filename": "/etc/passwd"}, "bad row"),
        (GOOD | {"filename": 3}, "bad row"),
        (GOOD | {"filename": "b.png"}, "missing file"),
    ],
)
def test_a_bad_annotation_is_listed_and_left_out(sugarcrepe, bad, reason):
    source = sugarcrepe({"0": GOOD, "1": bad})
    assert len(source) == 1 and len(source[0]["negatives"]) == 1
    ((key, why, _),) = source.unreadable
    assert why == reason and ("add_obj.json:1" in key or "b.png" in key)
    with pytest.raises(ConfigError, match=f"nothing of the benchmark.*{reason}"):
        sugarcrepe({"1": bad})


@pytest.mark.parametrize("content", ["", "{", "3", '"text"', "null", "[" * 100_000])
def test_a_file_that_is_no_benchmark_is_named(sugarcrepe, content):
    with pytest.raises(ConfigError, match=r"add_obj\.json"):
        sugarcrepe(content)


def test_nothing_but_one_picture_an_example(sugarcrepe, tmp_path):
    with pytest.raises(ConfigError, match=r"path=.*no annotations"):
        sugarcrepe({})
    section = {"name": "mmjax.data.benchmarks.sugarcrepe", "path": str(tmp_path), "image_root": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"modalities.*name one"):
        open_source(section, split="any", modalities=("image", "depth"))


def test_a_picture_that_vanishes_is_unreadable_when_it_is_read(sugarcrepe, tmp_path):
    source = sugarcrepe({"0": GOOD})
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(Unreadable, match="missing file"):
        source[0]
