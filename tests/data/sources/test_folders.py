import json
import os
import pickle

import fsspec
import numpy as np
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.data.sample import Unreadable
from mmjax.data.sources.folders import Source
from support.archives import write_folder


def source(path, split="train", **options):
    return build(Source, {"split": split, "path": str(path), **options}, path="")


def classes(root, *, names=("n02_great_owl", "n01_cat", "n10_dog"), each=2, splits=("train", "val")):
    """Pictures whose bytes say split, class and number."""
    made = [
        (f"{split}/{name}/{i}", f"{split} {name} {i}".encode(), [])
        for split in splits
        for name in names
        for i in range(each)
    ]
    write_folder(root, made)


def contents(found):
    return [(e["key"], e["image"], e.get("label"), e["captions"]) for e in map(found.__getitem__, range(len(found)))]


class TestClasses:
    def test_folders_are_classes_in_sorted_order(self, tmp_path):
        classes(tmp_path)
        found = source(tmp_path, "val")
        assert found.class_names == ["n01 cat", "n02 great owl", "n10 dog"]
        assert contents(found) == [
            (f"{name}/{i}.jpg", f"val {name} {i}".encode(), label, [f"a photo of a {name.replace('_', ' ')}."])
            for label, name in enumerate(("n01_cat", "n02_great_owl", "n10_dog"))
            for i in range(2)
        ]
        assert (
            contents(source(tmp_path / "{split}", "val"))
            == contents(source(tmp_path / "val", "any"))
            == contents(found)
        )
        assert [found[i]["id"] for i in range(6)] == list(range(6)) and found.unreadable == [] and found.group == 1
        np.testing.assert_array_equal(found.column("label"), [0, 0, 1, 1, 2, 2])
        assert found.column("key")[3] == "n02_great_owl/1.jpg"
        assert contents(pickle.loads(pickle.dumps(found))) == contents(found)

    def test_names_and_templates(self, tmp_path):
        classes(tmp_path)
        names = tmp_path / "names.json"
        given = {"n02_great_owl": "owl", "n01_cat": "cat", "n10_dog": "dog", "n99": "not here"}
        names.write_text(json.dumps(given))
        found = source(tmp_path, class_names=str(names), templates=("a {}", "the {}."))
        assert found.class_names == ["cat", "owl", "dog"] and found.templates == ["a {}", "the {}."]
        assert found[2]["captions"] == ["a owl", "the owl."]
        for content in (["a", "b", "c"], {"1": "b", "0": "a", "2": "c"}):
            names.write_text(json.dumps(content))
            assert source(tmp_path, class_names=str(names)).class_names == ["a", "b", "c"]
        (tmp_path / "names.txt").write_text("a\nb b\nc\n\n")
        assert source(tmp_path, class_names=str(tmp_path / "names.txt")).class_names == ["a", "b b", "c"]
        assert source(tmp_path, class_names=("x", "y", "z"), max_captions=1)[5]["captions"] == ["a photo of a z."]

    @pytest.mark.parametrize(
        "content", ["[1]", "{}", "[]", "3", "{", '["a", ""]', '["a"]', '{"n01_cat": "cat"}', "[[]]"]
    )
    def test_names_that_cannot_be(self, tmp_path, content):
        classes(tmp_path)
        (tmp_path / "names.json").write_text(content)
        with pytest.raises(ConfigError, match=r"^class_names="):
            source(tmp_path, class_names=str(tmp_path / "names.json"))

    def test_a_class_without_pictures_keeps_its_number_and_depth_does_not_matter(self, tmp_path):
        classes(tmp_path, names=("a", "c"), splits=("train",))
        (tmp_path / "train" / "b").mkdir()
        write_folder(tmp_path / "train", [("c/deeper/still/x", b"deep", [])])
        found = source(tmp_path)
        assert found.class_names == ["a", "b", "c"]
        assert [e[2] for e in contents(found)] == [0, 0, 2, 2, 2] and found[4]["key"] == "c/deeper/still/x.jpg"

    def test_a_split_that_is_not_there(self, tmp_path):
        classes(tmp_path)
        with pytest.raises(ConfigError, match=r"split='test'.*there are train, val"):
            source(tmp_path, "test")
        with pytest.raises(ConfigError, match=r"split='test'.*there are train, val"):
            source(tmp_path / "{split}", "test")


class TestCaptions:
    def test_texts_beside_pictures(self, tmp_path):
        write_folder(tmp_path, [("b/2", b"2", ["two", "zwei"]), ("1", b"1", ["one"])], texts=True)
        (tmp_path / "3.PNG").write_bytes(b"3")
        (tmp_path / "3.json").write_text(json.dumps({"caption": "three", "x": 1}))
        (tmp_path / "4.jpeg").write_bytes(b"4")
        (tmp_path / "4.JSON").write_text(json.dumps({"captions": ["four", "vier"]}))
        found = source(tmp_path)
        assert contents(found) == [
            ("1.jpg", b"1", None, ["one"]), ("3.PNG", b"3", None, ["three"]),
            ("4.jpeg", b"4", None, ["four", "vier"]), ("b/2.jpg", b"2", None, ["two", "zwei"]),
        ]  # fmt: skip
        assert found.class_names is None and source(tmp_path, max_captions=1)[3]["captions"] == ["two"]
        labelled = source(tmp_path, labels=True)
        assert labelled.class_names == ["b"] and labelled[3]["label"] == 0 and "label" not in labelled[0]
        np.testing.assert_array_equal(labelled.column("label"), [-1, -1, -1, 0])
        with pytest.raises(ConfigError, match="column 'label'"):
            found.column("label")

    def test_pictures_without_either_are_listed(self, tmp_path):
        write_folder(tmp_path, [("1", b"1", ["one"])], texts=True)
        write_folder(tmp_path, [("2", b"2", []), ("3", b"3", [])])
        found = source(tmp_path)
        assert [e[0] for e in contents(found)] == ["1.jpg"]
        assert [(key, reason) for key, reason, _ in found.unreadable] == [
            ("2.jpg", "no caption"),
            ("3.jpg", "no caption"),
        ]
        (tmp_path / "1.txt").unlink()
        with pytest.raises(ConfigError, match="neither captions beside them nor folders"):
            source(tmp_path)

    @pytest.mark.parametrize(
        ("name", "text", "reason"),
        [("txt", b"", "no caption"), ("txt", b"\xff", "caption is not UTF-8"), ("json", b"{", "bad row"),
         ("json", b"3", "bad row"), ("json", b"{}", "no caption"), ("json", b'"\xff"', "caption is not UTF-8")],
    )  # fmt: skip
    def test_texts_that_are_none(self, tmp_path, name, text, reason):
        write_folder(tmp_path, [("1", b"1", [])])
        (tmp_path / f"1.{name}").write_bytes(text)
        with pytest.raises(Unreadable) as error:
            source(tmp_path)[0]
        assert (error.value.reason, error.value.key) == (reason, "1.jpg")


class TestFiles:
    def test_what_is_passed_over(self, tmp_path):
        outside = tmp_path / "outside"
        write_folder(outside, [("secret", b"secret", []), ("folder/x", b"x", [])])
        root = tmp_path / "root"
        classes(root, names=("a", "b"), splits=("train",), each=1)
        folder = root / "train" / "a"
        (folder / ".hidden.jpg").write_bytes(b"h")
        (folder / "notes.md").write_bytes(b"n")
        (root / "train" / ".git").mkdir()
        (root / "train" / ".git" / "x.jpg").write_bytes(b"g")
        (folder / "link.jpg").symlink_to(outside / "secret.jpg")
        (folder / "inside.jpg").symlink_to(folder / "0.jpg")
        (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (root / "train" / "c").symlink_to(outside)
        (root / "train" / "loop").symlink_to(root / "train")
        found = source(root)
        assert [e[0] for e in contents(found)] == ["a/0.jpg", "a/inside.jpg", "b/0.jpg"]
        assert found.class_names == ["a", "b"]
        (tmp_path / "entry").symlink_to(root)
        assert contents(source(tmp_path / "entry")) == contents(found)

    def test_opening_reads_no_picture(self, tmp_path, monkeypatch):
        classes(tmp_path)
        from mmjax.data.storage import filesystem

        monkeypatch.setattr(filesystem, "read", lambda path: pytest.fail(f"{path} was read"))
        assert len(source(tmp_path)) == 6

    def test_pictures_that_are_gone_or_empty(self, tmp_path):
        classes(tmp_path)
        found = source(tmp_path)
        (tmp_path / "train" / "n01_cat" / "0.jpg").unlink()
        (tmp_path / "train" / "n01_cat" / "1.jpg").write_bytes(b"")
        for place, reason in enumerate(("missing file", "empty image")):
            with pytest.raises(Unreadable) as error:
                found[place]
            assert (error.value.reason, error.value.key) == (reason, f"n01_cat/{place}.jpg")
        for place in (-1, 6):
            with pytest.raises(IndexError):
                found[place]

    def test_names_that_are_not_utf8(self, tmp_path):
        write_folder(tmp_path, [("a/x", b"x", [])])
        os.rename(tmp_path / "a" / "x.jpg", os.fsencode(tmp_path / "a") + b"/\xff.jpg")
        found = source(tmp_path)
        assert contents(found) == [("a/\\xff.jpg", b"x", 0, ["a photo of a a."])]

    def test_urls(self, tmp_path):
        classes(tmp_path)
        fs = fsspec.filesystem("memory")
        fs.put(str(tmp_path), "/pictures", recursive=True)
        assert contents(source("memory://pictures", "val")) == contents(source(tmp_path, "val"))
        assert contents(source("memory://pictures/{split}", "val")) == contents(source(tmp_path, "val"))
        fs.rm("/pictures", recursive=True)


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        ({"modalities": ("depth",)}, "modalities"), ({"class_names": ("a",)}, "class_names"),
        ({"max_captions": 0}, "max_captions"), ({"templates": ("no place",)}, "templates"),
        ({"labels": False}, "path"), ({"caption_norm": "x"}, "caption_norm"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_right(tmp_path, options, blamed):
    classes(tmp_path)
    with pytest.raises(ConfigError, match=f"^{blamed}="):
        source(tmp_path, **options)


def test_folders_that_cannot_be_right(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no picture"):
        source(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="name a folder"):
        source(tmp_path / "file")
    write_folder(tmp_path / "flat", [("1", b"1", ["one"])], texts=True)
    with pytest.raises(ConfigError, match=r"^labels=True"):
        source(tmp_path / "flat", labels=True)
    with pytest.raises(ConfigError, match="no classes here"):
        source(tmp_path / "flat", class_names=("a",))
