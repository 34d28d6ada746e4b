import contextlib
import gzip
import json
import pickle
import struct

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.data.sources import folders, webdataset
from mmjax.data.sources.auto import SNIFFERS, Source, recognize
from support.archives import write_folder, write_tar, write_webdataset

EXAMPLES = [(f"{i}", bytes([i + 1]), [f"caption {i}", f"another {i}"]) for i in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def name(path, split="train"):
    return recognize(str(path), split)[0]


CAPTION_FILES = {
    "karpathy": json.dumps({"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}),
    "karpathy with the name first": json.dumps({"dataset": "flickr8k", "images": [{"filename": "1.jpg"}]}),
    "coco": json.dumps({"info": {}, "images": [{"id": 1}], "annotations": []}),
    "coco over lines": json.dumps({"info": {"a": "x" * 70_000}, "images": [], "annotations": []}, indent=1),
    "list": json.dumps([{"image": "1.jpg", "caption": ["a", "b"]}]),
    "list over lines": "\n " + json.dumps([{"image": "1.jpg", "caption": "a"}] * 9000, indent=1),
    "token": "1.jpg#0\tA child, in a dress .\n1.jpg#1\tAnother\n",
    "results": "image_name| comment_number| comment\n1.jpg| 0| Two men , one hat .\n1.jpg| 1| b\n",
    "csv with commas": "image,caption\n1.jpg,A child in a dress , climbing .\n1.jpg,b\n",
}
TABLES = {
    "tab": "filepath\ttitle\n1.jpg\ta, b\n",
    "comma": "image,caption\n1.jpg,a\n2.jpg,b\n",
    "quoted": 'image,caption\n1.jpg,"a, b, c"\n2.jpg,"d"\n',
    "three columns": "image,caption,score\n1.jpg,a,0.5\n",
    "byte order mark": "\ufeffimage;caption\n1.jpg;a\n",
    "bar": "image|caption\n1.jpg|a\n",
    "jsonl": '{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "caption": "b"}\n',
    "jsonl of one": '{"image": "1.jpg", "captions": ["a"]}',
}


QUESTIONS = {
    "vqa": ("questions", {"info": {}, "questions": [{"image_id": 1, "question": "Why?", "question_id": 10}]}),
    "snli_ve": ("questions", {"Flickr30K_ID": "1", "sentence2": "It is.", "gold_label": "neutral"}),
    "nlvr2": ("nlvr2", {"sentence": "Both.", "identifier": "test1-0-0-0", "label": "True"}),
    "a table with names like theirs": ("tables", {"image": "1.jpg", "sentence": "a", "identifier": "a-1"}),
}


class TestFiles:
    @pytest.mark.parametrize("kind", QUESTIONS)
    def test_questions_and_statements_by_content(self, tmp_path, kind):
        source, content = QUESTIONS[kind]
        (tmp_path / "x.json").write_text(json.dumps(content) + "\n")
        assert name(tmp_path / "x.json") == source

    @pytest.mark.parametrize("kind", CAPTION_FILES)
    @pytest.mark.parametrize("ending", ["json", "csv", "txt"])
    def test_caption_files_by_content(self, tmp_path, kind, ending):
        (tmp_path / f"x.{ending}").write_text(CAPTION_FILES[kind], encoding="utf-8")
        assert name(tmp_path / f"x.{ending}") == "captions"

    @pytest.mark.parametrize("kind", TABLES)
    @pytest.mark.parametrize("ending", ["json", "csv", "dat"])
    def test_tables_by_content(self, tmp_path, kind, ending):
        (tmp_path / f"x.{ending}").write_text(TABLES[kind], encoding="utf-8")
        assert name(tmp_path / f"x.{ending}") == "tables"

    def test_binary_files(self, tmp_path):
        pq.write_table(pa.table({"image": ["1.jpg"], "caption": ["a"]}), tmp_path / "x.bin")
        assert name(tmp_path / "x.bin") == "tables"
        tar = write_tar(tmp_path / "x.data", [("a.jpg", b"1"), ("a.txt", b"t")])
        assert name(tar) == "webdataset"
        assert name(write_tar(tmp_path / "empty.tar", [])) == "webdataset"
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
        with pytest.raises(ConfigError, match="gzip"):
            Source("train", path=str(tmp_path / "x.tar.gz"))
        for ending in (
            "array_record",
            "array_record-00000-of-00002",
            "arrayrecord",
            "tfrecord",
            "tfrecord-00001-of-00002",
        ):
            (tmp_path / f"d-train.{ending}").write_bytes(struct.pack("<Q", 5) + bytes(20))
            assert name(tmp_path / f"d-train.{ending}") == "arrayrecord"

    def test_what_is_none(self, tmp_path):
        for content in (b"", b"\0" * 100, b"\x89PNG\0\0", b"one word"):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(ConfigError) as error:
                name(tmp_path / "x")
            assert all(known in str(error.value) for known, _ in SNIFFERS) and "data.source.name=" in str(error.value)
            assert "\n" not in str(error.value)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "notes.md").write_text("hello")
        with pytest.raises(ConfigError, match=r"it has 'notes.md'"):
            name(tmp_path / "folder")
        (tmp_path / "nothing").mkdir()
        with pytest.raises(ConfigError, match="nothing is in it"):
            name(tmp_path / "nothing")
        with pytest.raises(ConfigError, match="no such file"):
            name(tmp_path / "nowhere")

    def test_noise_is_answered(self, tmp_path):
        random, path = np.random.default_rng(0), tmp_path / "x.json"
        texts = [text.encode() for text in [*CAPTION_FILES.values(), *TABLES.values()]]
        for trial in range(300):
            data = bytearray(texts[trial % len(texts)][:2000])
            for place in random.integers(len(data), size=random.integers(1, 6)):
                data[place] = random.integers(256)
            path.write_bytes(data if trial % 3 else random.bytes(300))
            with contextlib.suppress(ConfigError):
                assert name(path) in dict(SNIFFERS)


class TestFolders:
    def test_each_kind(self, tmp_path):
        def make(folder, **files):
            for file, content in files.items():
                path = tmp_path / folder / file.replace("__", "/").replace("_DOT_", ".")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            return tmp_path / folder

        both = {"dataset_info_DOT_json": "{}", "features_DOT_json": "{}"}
        assert name(make("a", **both)) == "tfds"
        assert name(make("b", **{f"1.0.0__{file}": "{}" for file in both})) == "tfds"
        assert name(make("c", dataset_info_DOT_json="{}", state_DOT_json="{}")) == "huggingface"
        assert name(make("d", dataset_dict_DOT_json="{}", train__state_DOT_json="{}")) == "huggingface"
        assert name(make("e", data__train_DOT_parquet="", README_DOT_md="")) == "huggingface"
        assert name(make("f", train__0_DOT_parquet="")) == "huggingface"
        assert name(make("g", train__0_DOT_tar="", nshards_DOT_txt="1")) == "webdataset"
        assert name(make("h", **{"0_DOT_tar": "", "0_DOT_json": "{}"})) == "webdataset"
        assert name(make("i", classnames_DOT_txt="a", test__0_DOT_tar=""), "test") == "webdataset"
        assert name(make("j", train__cat__1_DOT_JPG="", val__cat__1_DOT_jpg="")) == "folders"
        assert (
            name(make("k", **{"1_DOT_jpg": "", "1_DOT_txt": "1.jpg, a cat", "classnames_DOT_txt": "a, b\nc"}))
            == "folders"
        )

    def test_records_in_a_folder_are_named_to_their_source(self, tmp_path):
        for shard in (1, 0):
            (tmp_path / f"d.array_record-0000{shard}-of-00002").write_bytes(b"\0")
        (tmp_path / "notes.txt").write_text("x")
        expected = tuple(f"{tmp_path}/d.array_record-0000{shard}-of-00002" for shard in (0, 1))
        assert recognize(str(tmp_path), "train") == ("arrayrecord", expected)

    def test_a_folders_only_table_is_what_it_is_about(self, tmp_path):
        write_folder(tmp_path / "images", [("1", b"1", []), ("2", b"2", [])])
        assert name(tmp_path) == "folders"
        (tmp_path / "captions.txt").write_text(CAPTION_FILES["csv with commas"])
        (tmp_path / "readme.txt").write_text("Captions, and pictures")
        assert recognize(str(tmp_path), "train") == ("captions", f"{tmp_path}/captions.txt")
        (tmp_path / "more.csv").write_text(TABLES["comma"])
        assert name(tmp_path) == "folders"

    def test_the_first_of_several_tells(self, tmp_path):
        write_webdataset(tmp_path, EXAMPLES, shards=2)
        path = f"{tmp_path}/{{00000..00001}}.tar"
        assert recognize(path, "train") == ("webdataset", path)
        (tmp_path / "val").mkdir()
        (tmp_path / "val" / "x.csv").write_text(TABLES["comma"])
        assert recognize(f"{tmp_path}/{{split}}/*.csv", "val")[0] == "tables"
        with pytest.raises(ConfigError, match=r"split='test'.*there are val"):
            recognize(f"{tmp_path}/{{split}}/*.csv", "test")


class TestSource:
    def test_it_is_the_source_it_found(self, tmp_path):
        write_webdataset(tmp_path / "w", EXAMPLES, shards=2)
        found = Source("train", path=str(tmp_path / "w"), options={"caption_lines": True})
        plain = webdataset.Source("train", path=str(tmp_path / "w"), caption_lines=True)
        for one in (found, pickle.loads(pickle.dumps(found))):
            assert [one[i] for i in range(len(one))] == [plain[i] for i in range(6)] and one.name == "webdataset"
            assert (one.group, one.modalities, one.unreadable) == (1, ("image",), [])
            assert list(one.column("key")) == list(plain.column("key"))
            with pytest.raises(IndexError):
                one[6]
        write_folder(tmp_path / "f", [("cat/1", b"1", []), ("dog/1", b"2", [])])
        found = Source("train", path=str(tmp_path / "f"))
        assert found.class_names == folders.Source("train", path=str(tmp_path / "f")).class_names == ["cat", "dog"]
        assert not hasattr(found, "no_such_thing") and not hasattr(found, "_private")

    @pytest.mark.parametrize("key", ["data.source", "data.evaluation"])
    def test_an_option_of_the_source_that_is_found_is_pointed_to_its_place(self, key):
        sections = {"data.source": {"name": "auto", "path": "x.csv"}, "data.evaluation": {}}
        sections[key] = {**sections[key], "caption_columns": "name"}
        with pytest.raises(ConfigError, match=rf"^{key}.caption_columns='name': .* {key}.options.caption_columns"):
            open_source(
                sections["data.source"],
                split="val",
                further=sections["data.evaluation"],
                further_path="data.evaluation",
            )

    def test_options_are_those_of_the_source(self, tmp_path):
        path = str(write_webdataset(tmp_path, EXAMPLES)[0])
        with pytest.raises(
            ConfigError, match=r"options.caption_line=True.*did you mean 'caption_lines'.*taken for webdataset"
        ):
            Source("train", path=path, options={"caption_line": True})
        with pytest.raises(ConfigError, match=r"options.caption_lines=3"):
            Source("train", path=path, options={"caption_lines": 3})
        with pytest.raises(ConfigError, match=r"options.path"):
            Source("train", path=path, options={"path": path})

    def test_tables_and_caption_files_are_read(self, tmp_path):
        write_folder(tmp_path, [("1", b"one", []), ("2", b"two", [])])
        (tmp_path / "t").write_text("filepath\ttitle\n1.jpg\ta\n2.jpg\tb\n")
        (tmp_path / "c").write_text(json.dumps([{"image": "2.jpg", "caption": ["x", "y"]}]))
        found = Source("train", path=str(tmp_path / "t"))
        assert [(found[i]["image"], found[i]["captions"]) for i in (0, 1)] == [(b"one", ["a"]), (b"two", ["b"])]
        found = Source("train", path=str(tmp_path / "c"))
        assert found.name == "captions" and (found[0]["image"], found[0]["captions"]) == (b"two", ["x", "y"])

    def test_urls(self, tmp_path):
        fs = fsspec.filesystem("memory")
        (shard,) = write_webdataset(tmp_path, EXAMPLES)
        fs.pipe_file("/auto/0.tar", shard.read_bytes())
        for path in ("memory://auto/0.tar", "memory://auto", "memory://auto/*.tar"):
            assert len(Source("train", path=path)) == 6
        fs.rm("/auto", recursive=True)
