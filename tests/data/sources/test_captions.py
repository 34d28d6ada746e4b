import json
import pickle
import shutil

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.data.sources.captions import Source
from support import tables

NAMES = ["b.jpg", "a.jpg", "10.jpg"]
CAPTIONS = [
    ["A red, round thing.", "naïve 日本", '"quoted" words'],
    ["one", "Two!"],
    ["a | b #3, and more"],
]
ITEMS = [(name, tables.png(i), captions) for i, (name, captions) in enumerate(zip(NAMES, CAPTIONS, strict=True))]
ROWS = [(name, number, caption) for name, _, captions in ITEMS for number, caption in enumerate(captions)]


@pytest.fixture(autouse=True)
def folder(tmp_path):
    tables.write_images(tmp_path, ITEMS)
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "b.jpg").write_bytes(tables.png(7))
    return tmp_path


def karpathy(*, filepath=None):
    splits = ["train", "restval", "test"]
    images = []
    for (name, _, captions), split in zip(ITEMS, splits, strict=True):
        image = {"filename": name, "split": split, "imgid": 5, "sentids": [1]}
        image["sentences"] = [{"raw": c, "tokens": c.split(), "imgid": 5, "sentid": 1} for c in captions]
        images.append(image | ({"filepath": filepath} if filepath else {}))
    return json.dumps({"images": images, "dataset": "coco"})


def coco():
    images = [{"id": 100 - i, "file_name": name} for i, name in enumerate(NAMES)]
    annotations = [{"image_id": 100 - NAMES.index(name), "id": i, "caption": c} for i, (name, _, c) in enumerate(ROWS)]
    order = np.random.default_rng(0).permutation(3)
    assert order.tolist() != [0, 1, 2]
    # Annotations need not be in the order of the images, but those of one image keep theirs.
    annotations.sort(key=lambda a: order[NAMES.index(ROWS[a["id"]][0])])
    return json.dumps({"info": {}, "images": images, "annotations": annotations, "licenses": []})


FILES = {
    "coco": coco(),
    "test_list": json.dumps([{"image": n, "caption": c} for n, _, c in ITEMS]),
    "train_list": json.dumps([{"image": n, "caption": c, "image_id": "x"} for n, _, c in ROWS]),
    "other_list": json.dumps([{"filepath": n, "captions": c} for n, _, c in ITEMS]),
    "csv": "image,caption\n" + "".join(f"{n},{c}\n" for n, _, c in ROWS),
    "quoted_csv": "image,caption\r\n" + "".join('{},"{}"\r\n'.format(n, c.replace('"', '""')) for n, _, c in ROWS),
    "results": "image_name| comment_number| comment\n" + "".join(f"{n}| {i}| {c} .\n" for n, i, c in ROWS),
    "token": "".join(f"{n}#{i}\t{c}\n" for n, i, c in ROWS),
}


def check(source, items=ITEMS, ending=""):
    assert len(source) == len(items) and source.unreadable == []
    for i, (key, data, captions) in enumerate(items):
        assert source[i] == {"id": i, "key": key, "captions": [c + ending for c in captions], "image": data}
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    with pytest.raises(IndexError):
        source[-1]
    with pytest.raises(IndexError):
        source[len(items)]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_format_is_known_by_its_content(folder, kind, bom):
    (folder / "captions").write_bytes(bom + FILES[kind].encode())
    check(Source("test", path=str(folder / "captions")), ending=" ." if kind == "results" else "")


def test_karpathy_splits(folder):
    (folder / "dataset.json").write_text(karpathy())
    path = str(folder / "dataset.json")
    check(Source("train", path=path), ITEMS[:2])
    check(Source("train", path=path, restval=False), ITEMS[:1])
    check(Source("restval", path=path), ITEMS[1:2])
    check(Source("test", path=path), ITEMS[2:])
    with pytest.raises(ConfigError, match=r"split='val': .* there are restval, test, train"):
        Source("val", path=path)
    (folder / "dataset.json").write_text(karpathy(filepath="val2014"))
    source = Source("train", path=path)
    assert source[0]["key"] == "val2014/b.jpg" and source[0]["image"] == tables.png(7)


def test_the_format_can_be_said(folder):
    (folder / "t").write_text("x.jpg,two | bars | here\n" + FILES["csv"])
    assert len(Source("test", path=str(folder / "t"), format="csv")) == 4
    (folder / "t").write_text(FILES["coco"])
    for wrong in ("karpathy", "list", "token"):
        if wrong == "karpathy":
            with pytest.raises(ConfigError, match="split='test'"):
                Source("test", path=str(folder / "t"), format=wrong)
        elif wrong == "list":
            with pytest.raises(ConfigError, match="without objects"):
                Source("test", path=str(folder / "t"), format=wrong)
        else:
            with pytest.raises(ConfigError, match="none of its 1 rows can be used; the first one: t:1: bad row"):
                Source("test", path=str(folder / "t"), format=wrong)
    with pytest.raises(ConfigError, match=r"format='list': .* is none|source 'tables'"):
        (folder / "t").write_text("5")
        Source("test", path=str(folder / "t"), format="list")
    with pytest.raises(ConfigError, match="format='kaggle'"):
        open_source({"name": "captions", "path": str(folder / "t"), "format": "kaggle"}, split="test")


def test_split_files(folder):
    (folder / "token").write_text(FILES["token"])
    (folder / "test.txt").write_text("10.jpg\nb.jpg\n\ngone.jpg\n")
    source = Source("test", path=str(folder / "token"), split_file=str(folder / "{split}.txt"))
    assert [source[i]["key"] for i in range(len(source))] == ["b.jpg", "10.jpg"]
    assert source.unreadable == [("test.txt:4", "no caption", "gone.jpg is in no row")]
    with pytest.raises(ConfigError, match=r"split='val'.*test"):
        Source("val", path=str(folder / "token"), split_file=str(folder / "{split}.txt"))


def test_cleaning_and_how_many(folder):
    (folder / "t").write_text(FILES["test_list"])
    source = Source("test", path=str(folder / "t"), caption_norm="blip", max_captions=2)
    assert [source[i]["captions"] for i in range(3)] == [
        ["a red, round thing", "naïve 日本"],
        ["one", "two"],
        ["a | b 3, and more"],
    ]
    assert Source("x", path=str(folder / "t"), caption_norm="albef")[0]["captions"][2] == "quoted words"
    assert source.column("key").tolist() == NAMES and source.column("captions").tolist() == CAPTIONS


def test_one_file_a_split(folder):
    (folder / "c_test.json").write_text(FILES["test_list"])
    check(Source("test", path=str(folder / "c_{split}.json")))
    with pytest.raises(ConfigError, match=r"split='train'.*test"):
        Source("train", path=str(folder / "c_{split}.json"))


def test_an_image_may_have_one_caption_twice(folder):
    (folder / "t").write_text(json.dumps([{"image": "a.jpg", "caption": ["x", "x", "y"]}]))
    assert Source("test", path=str(folder / "t"))[0]["captions"] == ["x", "x", "y"]


# Damage.


def problems(source):
    return [tuple(p[:2]) for p in source.unreadable]


def test_broken_entries_of_json(folder):
    items = [
        None,
        {"image": "a.jpg"},
        {"image": "a.jpg", "caption": ["", None]},
        {"caption": "x"},
        {"image": 3, "caption": "x"},
    ]
    items += [
        {"image": "b.jpg", "caption": "fine"},
        {"image": "../b.jpg", "caption": "x"},
        {"image": "gone", "caption": "x"},
    ]
    (folder / "t").write_text(json.dumps(items))
    with pytest.raises(ConfigError, match="caption_columns"):
        Source("test", path=str(folder / "t"))
    items[1]["caption"] = None
    (folder / "t").write_text(json.dumps(items))
    source = Source("test", path=str(folder / "t"))
    reasons = ["bad row", "no caption", "no caption", "bad row", "bad row", "", "bad row"]
    assert problems(source) == [(f"t:{line}", reason) for line, reason in enumerate(reasons, 1) if reason]
    with pytest.raises(Unreadable) as error:
        source[1]
    assert error.value.reason == "missing file" and error.value.key == "gone"


def test_broken_entries_of_coco(folder):
    content = json.loads(FILES["coco"])
    content["images"] += ["x", {"file_name": "x"}, {"id": 5, "file_name": "a.jpg"}, {"id": 6}]
    content["annotations"] += [{"image_id": 77, "caption": "x"}, None, {"image_id": 6, "caption": "x"}]
    (folder / "t").write_text(json.dumps(content))
    source = Source("test", path=str(folder / "t"))
    assert len(source) == 3
    assert problems(source) == [
        ("t:4", "bad row"),
        ("t:5", "bad row"),
        ("t:7", "bad row"),
        ("t:8", "bad row"),
        ("t:6", "no caption"),
        ("t:7", "bad row"),
    ]


def test_broken_entries_of_karpathy(folder):
    content = json.loads(karpathy())
    content["images"] += [
        1,
        {"split": "train"},
        {"split": "train", "filename": "a.jpg", "sentences": ["plain", {"raw": 3}]},
    ]
    (folder / "t").write_text(json.dumps(content))
    source = Source("train", path=str(folder / "t"))
    assert len(source) == 2
    assert problems(source) == [("t:4", "bad row"), ("t:5", "no caption"), ("t:6", "bad row")]


def test_the_broken_row_of_flickr30k_is_listed(folder):
    text = "image_name| comment_number| comment\n"
    text += "a.jpg| 0| one | two .\nb.jpg| 4   A dog runs across the grass .\nb.jpg| 3|  \nb.jpg| 0| fine\n"
    (folder / "results.csv").write_text(text)
    source = Source("test", path=str(folder / "results.csv"))
    assert [source[i]["captions"] for i in range(2)] == [["one | two ."], ["fine"]]
    assert problems(source) == [("results.csv:3", "bad row"), ("results.csv:4", "no caption")]


def test_broken_lines(folder):
    (folder / "token").write_bytes(b"a.jpg#0\tone\nno tab\na.jpg#1\tcaf\xe9\n\nb.jpg#0\tt\x00wo\n")
    source = Source("test", path=str(folder / "token"))
    assert [source[i]["captions"] for i in range(2)] == [["one"], ["two"]]
    assert problems(source) == [("token:2", "bad row"), ("token:3", "caption is not UTF-8")]
    (folder / "csv").write_text('image,caption\na.jpg,"one", two\nno name\nb.jpg,a.jpg,b\n')
    source = Source("test", path=str(folder / "csv"))
    assert [source[i]["captions"] for i in range(2)] == [['"one", two'], ["a.jpg,b"]]
    assert problems(source) == [("csv:3", "bad row")]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no caption file"),
        (b"{", "no JSON"),
        (b'{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg", "caption": "x"}\n', "source 'tables'"),
        (b'{"images": 3}', "no caption file"),
        (b"[1, 2]", "without objects"),
        (b'[{"a": 1}]', "image_column=None"),
        (b'[{"image": "caf\xe9"}]', "not UTF-8"),
        (b"[" * 200_000, "no JSON"),
        (b"filepath\ttitle\nx\ty\n", "source 'tables'"),
    ],
)
def test_what_is_no_caption_file_is_said_at_once(folder, content, message):
    (folder / "t").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        Source("test", path=str(folder / "t"))
    assert "\n" not in str(error.value)


def test_wrong_roots_are_said_at_once(folder):
    (folder / "t").write_text(FILES["test_list"])
    with pytest.raises(ConfigError, match=r"image_root='/nowhere'.*none of the first 3"):
        Source("test", path=str(folder / "t"), image_root="/nowhere")


@pytest.mark.parametrize("place", ["here/flickr30k-images", "images"])
def test_a_folder_of_the_pictures_near_a_wrong_root_is_named(folder, place):
    (folder / "here").mkdir()
    (folder / "here" / "t").write_text(FILES["test_list"])
    pictures = folder / place
    pictures.mkdir()
    for name in json.loads(FILES["test_list"]):
        shutil.copy(folder / name["image"], pictures / name["image"])
    with pytest.raises(ConfigError, match=rf"image_root='{folder}/here'.*; set image_root='{pictures}'$"):
        Source("test", path=str(folder / "here" / "t"))


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes_neither_crash_nor_hang(folder, kind):
    data = FILES[kind].encode()
    random = np.random.default_rng(1)
    path = folder / "t"
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] = random.choice([0, 10, 34, 44, 255, 48])
        path.write_bytes(damaged)
        try:
            source = Source("test", path=str(path))
        except ConfigError:
            continue
        for i in range(len(source)):
            try:
                assert source[i]["captions"]
            except Unreadable as error:
                assert error.key
