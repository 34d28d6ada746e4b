import gzip
import io
import json
import os
import pickle
import tarfile
import threading
import time

import fsspec
import numpy as np
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.data.formats import tar_headers, tar_samples
from mmjax.data.reader import Reader
from mmjax.data.sample import Unreadable
from mmjax.data.sources.webdataset import Source
from mmjax.data.storage import filesystem
from mmjax.data.transform_chain import TransformChain
from support.archives import write_tar, write_webdataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scans(monkeypatch):
    """The shards whose headers were read."""
    read = []
    real = tar_headers.members
    monkeypatch.setattr(tar_headers, "members", lambda path: read.append(os.path.basename(path)) or real(path))
    return read


def examples(count, *, seed=0):
    random = np.random.default_rng(seed)
    return [
        (f"{i:06d}", b"\xff\xd8" + random.bytes(int(random.integers(1, 3000))), [f"caption {i}"]) for i in range(count)
    ]


def source(path, split="train", **options):
    return build(Source, {"split": split, "path": str(path), **options}, path="")


def contents(found):
    return [(e["key"], e["image"], e["captions"]) for e in map(found.__getitem__, range(len(found)))]


class TestReading:
    def test_shards_named_by_braces_globs_and_lists(self, tmp_path):
        made = examples(23)
        write_webdataset(tmp_path / "data", made, shards=4)
        expected = [(f"{s:05d}.tar/{k}", i, c) for s in range(4) for k, i, c in made[s * 23 // 4 : (s + 1) * 23 // 4]]
        data = f"{tmp_path}/data"
        names = [f"{data}/{s:05d}.tar" for s in range(4)]
        for path in (f"{data}/{{00000..00003}}.tar", f"{data}/*.tar", "::".join(names), data):
            found = source(path)
            assert contents(found) == expected and len(found) == 23 and found.unreadable == []
        assert contents(Source("train", path=tuple(names[:2]))) == expected[:11]
        assert [found[i]["id"] for i in range(23)] == list(range(23))
        assert list(found.column("key")) == [key for key, _, _ in expected]

    def test_any_order_is_what_tarfile_reads(self, tmp_path):
        path = write_webdataset(tmp_path, examples(200))[0]
        with tarfile.open(path) as tar:
            reference = {m.name: tar.extractfile(m).read() for m in tar}
        found = source(path)
        for place in np.random.default_rng(1).permutation(200):
            example = found[int(place)]
            key = example["key"].removeprefix("00000.tar/")
            assert example["image"] == reference[f"{key}.jpg"]
            assert example["captions"] == [reference[f"{key}.txt"].decode()]

    def test_outside(self, tmp_path):
        found = source(write_webdataset(tmp_path, examples(3))[0])
        for place in (-1, 3, 10**9):
            with pytest.raises(IndexError):
                found[place]
        with pytest.raises(TypeError):
            found["0"]

    def test_first_extension_wins_and_case_does_not_count(self, tmp_path):
        path = write_tar(
            tmp_path / "a.tar",
            [("x.PNG", b"png"), ("x.TXT", b"one"), ("x.jpg", b"jpg"),
             ("y.seg.png", b"seg"), ("y.webp", b"webp"), ("y.txt", b"two")],
        )  # fmt: skip
        assert [e[1:] for e in contents(source(path))] == [(b"jpg", ["one"]), (b"webp", ["two"])]
        assert [e[1] for e in contents(source(path, image_keys="png"))] == [b"png"]
        assert [e[1] for e in contents(source(path, image_keys="seg.png; jpg"))] == [b"jpg", b"seg"]

    def test_keys_end_at_the_first_dot_of_the_base_name(self, tmp_path):
        names = ["a.b/c.jpg", "a.b/c.txt", "./d.v1.jpg", "./d.jpg", "./d.txt", "e/.hidden.jpg", ".f.jpg", "noextension",
                 "../../g.jpg", "../../g.txt", "/abs/h.jpg", "/abs/h.txt"]  # fmt: skip
        path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
        found = contents(source(path))
        assert [key.removeprefix("a.tar/") for key, _, _ in found] == ["a.b/c", "./d", "../../g", "/abs/h"]
        assert [image.decode() for _, image, _ in found] == ["a.b/c.jpg", "./d.jpg", "../../g.jpg", "/abs/h.jpg"]

    def test_long_and_strange_names(self, tmp_path):
        long = "folder/" * 50 + "ü" * 60
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            members = [(f"{long}.jpg", b"1"), (f"{long}.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two")]
            path = write_tar(tmp_path / f"{format}.tar", members, format=format)
            assert [e[0] for e in contents(source(path))] == [f"{format}.tar/{long}", f"{format}.tar/b"]
        path = tmp_path / "latin.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
            for name in ("ä.jpg", "ä.txt"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
        found = source(path)
        assert found[0]["key"] == "latin.tar/\\xe4" and found[0]["key"].encode()

    def test_urls(self, tmp_path, monkeypatch):
        made = examples(40)
        fs = fsspec.filesystem("memory")
        for path in write_webdataset(tmp_path, made, shards=2):
            fs.pipe_file(f"/shards/{path.name}", path.read_bytes())
        found = source("memory://shards/{00000..00001}.tar")
        assert [e[1:] for e in contents(found)] == [(image, captions) for _, image, captions in made]
        asked = []
        real = filesystem.read_range
        monkeypatch.setattr(filesystem, "read_range", lambda p, o, n: asked.append(n) or real(p, o, n))
        found[7]
        assert len(asked) == 1 and asked[0] < 3000 + 2048 + 100  # picture and text in one piece
        fs.rm("/shards", recursive=True)
        with pytest.raises(Unreadable, match="missing file"):
            found[7]

    def test_small_neighbours_are_read_at_once_and_large_ones_are_not_copied(self, tmp_path, monkeypatch):
        made = [("a", b"1" * 3000, ["small"]), ("b", b"2" * 300_000, ["large"]), ("c", b"3", ["c"])]
        found = source(write_webdataset(tmp_path, made)[0])
        asked = []
        real = filesystem.read_range
        monkeypatch.setattr(filesystem, "read_range", lambda p, o, n: asked.append(n) or real(p, o, n))
        for place, lengths in ((0, [3072 + 512 + 5]), (1, [300_000, 5]), (2, [1025])):
            asked.clear()
            example = found[place]
            assert (example["image"], example["captions"]) == made[place][1:] and asked == lengths

    def test_parts_that_lie_apart(self, tmp_path, monkeypatch):
        members = [("a.txt", b"first"), ("a.bin", bytes(1 << 20)), ("a.jpg", b"picture"), ("a.json", b"{}")]
        path = write_tar(tmp_path / "a.tar", members)
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/apart/a.tar", path.read_bytes())
        asked = []
        real = filesystem.read_range
        monkeypatch.setattr(filesystem, "read_range", lambda p, o, n: asked.append(n) or real(p, o, n))
        for place in (str(path), "memory://apart/a.tar"):
            found = source(place, json_fields=("x",))
            asked.clear()
            example = found[0]
            assert (example["image"], example["captions"]) == (b"picture", ["first"])
            assert len(asked) == 2 and sum(asked) < 2000
        fs.rm("/apart", recursive=True)

    def test_pickles_and_threads(self, tmp_path):
        write_webdataset(tmp_path, examples(300), shards=3)
        found = source(tmp_path)
        expected = contents(found)
        twin = pickle.loads(pickle.dumps(found))
        assert contents(twin) == expected
        wrong = []

        def read(seed):
            for place in np.random.default_rng(seed).integers(300, size=300).tolist():
                example = twin[place]
                if (example["key"], example["image"], example["captions"]) != expected[place]:
                    wrong.append(place)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong
        assert len(pickle.dumps(found)) < 300 * 40 + 2000

    def test_aligned_modalities(self, tmp_path):
        members = [("a.jpg", b"1"), ("a.depth.png", b"2"), ("a.txt", b"one"), ("b.jpg", b"3"), ("b.txt", b"two")]
        path = write_tar(tmp_path / "a.tar", members)
        found = source(path, modalities=("image", "depth"))
        assert len(found) == 1 and (found[0]["image"], found[0]["depth"]) == (b"1", b"2")
        assert found.unreadable == [("a.tar/b", "bad row", "no depth")]
        assert source(path, modalities=("thermal",), modality_keys={"thermal": "depth.png"})[0]["thermal"] == b"2"


class TestCaptions:
    def test_lines_are_captions_where_it_is_said(self, tmp_path):
        path = write_webdataset(tmp_path, [("a", b"x", ["one", "", "two"])])[0]
        assert source(path)[0]["captions"] == ["one two"]
        assert source(path, caption_lines=True)[0]["captions"] == ["one", "two"]
        assert source(path, caption_lines=True, max_captions=1)[0]["captions"] == ["one"]

    def test_lines_are_pointed_out_where_nothing_says_what_they_are(self, tmp_path, messages):
        path = write_webdataset(tmp_path, [(f"{i}", b"x", [f"one {i}", "two"][: 1 + (i > 3)]) for i in range(20)])[0]
        assert source(path)[4]["captions"] == ["one 4 two"]
        (message,) = messages
        assert message.startswith(f"path='{path}': texts have several lines") and "caption_lines=True" in message
        messages.clear()
        assert len(source(path, caption_lines=True)) == len(source(path, caption_lines=False)) == 20
        assert messages == []
        path = write_webdataset(tmp_path, [(f"{i}", b"x", [f"one {i}", "two"][: 1 + (i == 0)]) for i in range(20)])[0]
        assert len(source(path)) == 20 and messages == []

    def test_negatives_of_the_json_are_false_captions(self, tmp_path):
        members = []
        for i, negatives in enumerate((["a  lie", None, ""], "one", None, [], 5, [["x"]])):
            members += [(f"{i}.jpg", b"x"), (f"{i}.txt", b"the truth")]
            members += [(f"{i}.json", json.dumps({"negatives": negatives}).encode())]
        found = source(write_tar(tmp_path / "a.tar", members), json_fields=("negatives",))
        assert found[0]["negatives"] == [("given", "the truth", "a lie")]
        assert found[1]["negatives"] == [("given", "the truth", "one")]
        assert found[2]["negatives"] == found[3]["negatives"] == []
        for place in (4, 5):
            with pytest.raises(Unreadable, match="bad row"):
                found.read(place)
        reader = Reader(found, TransformChain((), image_size=4, modalities=()), seed=0, negative_rows=1)
        sample, unreadable = reader.sample(0, 0, [0.0, 0.0], component=range(1))
        assert sample.fields["negatives"] == [("given", "the truth", "a lie")] and unreadable == []

    def test_members_above_the_limit_are_unreadable(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.jpg", bytes((1 << 20) + 1)), ("a.txt", b"a")])
        assert source(path)[0]["captions"] == ["a"]
        with pytest.raises(Unreadable, match="file too large"):
            source(path, max_mib=1)[0]

    def test_json(self, tmp_path):
        record = {"caption": "of json", "alt": ["b", "c"], "score": 0.5, "none": None}
        path = write_tar(
            tmp_path / "a.tar",
            [("a.jpg", b"1"), ("a.txt", b"of txt"), ("a.json", json.dumps(record).encode()),
             ("b.jpg", b"2"), ("b.json", json.dumps({"caption": "only json", "alt": "d"}).encode()),
             ("c.jpg", b"3"), ("c.txt", b"only txt")],
        )  # fmt: skip
        assert [e[2] for e in contents(source(path))] == [["of txt"], ["only json"], ["only txt"]]
        found = source(path, json_text_key="caption;alt", json_fields=("score", "none", "alt"))
        assert [e[2] for e in contents(found)] == [["of json", "b", "c"], ["only json", "d"]]
        assert found[0]["score"] == 0.5 and found[0]["none"] is None and found[1]["score"] is None
        assert found[0]["alt"] == ["b", "c"]
        assert found.unreadable == [("a.tar/c", "no caption", "neither a text nor what stands for it")]

    def test_columns_of_the_json(self, tmp_path, scans):
        for shard in range(3):
            members = []
            for i in range(7):
                record = {"score": shard + i / 10, "url": f"http://x/{i}"} if (shard, i) != (1, 3) else {}
                members += [(f"{i}.jpg", b"1"), (f"{i}.txt", b"t"), (f"{i}.json", json.dumps(record).encode())]
            write_tar(tmp_path / f"{shard}.tar", members)
        found = source(tmp_path)
        expected = np.array([shard + i / 10 for shard in range(3) for i in range(7)])
        expected[10] = np.nan
        np.testing.assert_array_equal(found.column("score"), expected)
        assert found.column("url")[5] == "http://x/5" and found.column("url")[10] == ""
        with pytest.raises(ConfigError, match=r"column 'scor'.*did you mean 'score'"):
            found.column("scor")
        write_tar(tmp_path / "0.tar", [("z.jpg", b"1"), ("z.txt", b"t"), ("z.json", b'{"score": 9}')])
        assert source(tmp_path).column("score")[0] == 9

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"", "no caption"),
            (b" \n\t ", "no caption"),
            (b"\xff\xfe", "caption is not UTF-8"),
            (b"\0\0", "no caption"),
        ],
    )
    def test_texts_that_are_none(self, tmp_path, text, reason):
        found = source(write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.txt", text)]))
        with pytest.raises(Unreadable) as error:
            found[0]
        assert (error.value.reason, error.value.key) == (reason, "a.tar/a")

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (b"", "bad row"), (b"[1]", "bad row"), (b"{", "bad row"), (b"[" * 100_000, "bad row"),
            (b'{"caption": 3}', "bad row"), (b'{"caption": "\xff"}', "caption is not UTF-8"),
            (b'{"caption": "\\ud800"}', "caption is not UTF-8"), (b"{}", "no caption"),
            (b'{"caption": null}', "no caption"), (b'{"caption": []}', "no caption"),
            (b'{"caption": [["x"]]}', "bad row"),
        ],
    )  # fmt: skip
    def test_json_that_is_none(self, tmp_path, record, reason):
        found = source(write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", record)]))
        with pytest.raises(Unreadable) as error:
            found[0]
        assert (error.value.reason, error.value.key) == (reason, "a.tar/a")

    def test_an_empty_picture(self, tmp_path):
        found = source(write_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.txt", b"t")]))
        with pytest.raises(Unreadable, match="empty image"):
            found[0]


class TestSkipped:
    def test_keys_that_come_again_and_samples_that_lack_something(self, tmp_path):
        members = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two")]
        members += [("a.jpg", b"3"), ("a.txt", b"x"), ("c.txt", b"no picture"), ("d.jpg", b"no text")]
        members += [("e.jpg", b"4"), ("e.jpg", b"5"), ("e.txt", b"t")]
        path = write_tar(tmp_path / "a.tar", members)
        found = source(path)
        assert [e[1] for e in contents(found)] == [b"1", b"2"]
        assert [(key, reason) for key, reason, _ in found.unreadable] == [
            ("a.tar/a", "duplicate key"), ("a.tar/c", "bad row"), ("a.tar/d", "no caption"),
            ("a.tar/e", "no caption"), ("a.tar/e", "duplicate key"),
        ]  # fmt: skip
        write_tar(tmp_path / "b.tar", members[:2])
        assert len(source(tmp_path)) == 3  # keys are a shard's own

    def test_an_archive_torn_anywhere_gives_what_is_whole(self, tmp_path):
        path = write_webdataset(tmp_path, examples(12))[0]
        whole = contents(source(path))
        members = tar_headers.members(str(path))
        ends = [offset + size for offset, size in zip(members.offsets, members.sizes, strict=True)]
        data = path.read_bytes()
        last = -(-ends[-1] // 512) * 512
        for cut in [
            *np.random.default_rng(0).integers(ends[1], last, size=60).tolist(),
            *ends[1:],
            *(e - 1 for e in ends[2:]),
        ]:
            path.write_bytes(data[:cut])
            found = source(path)
            complete = sum(end <= cut for end in ends[1::2])
            assert contents(found) == whole[:complete]
            assert found.unreadable[-1][:2] == (str(path), "truncated archive")
            cut_keys = {key.rpartition("/")[2] for key, _, _ in found.unreadable[:-1]}
            assert cut_keys <= {f"{complete:06d}"}
            assert {reason for _, reason, _ in found.unreadable} == {"truncated archive"}
            if complete < 12 and ends[2 * complete] <= cut:  # its picture is there and its text is not
                assert cut_keys
        for cut in (0, 100, 512, ends[0] - 1, ends[0]):
            path.write_bytes(data[:cut])
            with pytest.raises(ConfigError, match="truncated archive"):
                source(path)

    def test_a_sample_that_lost_any_part_is_torn(self, tmp_path):
        members = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two"), ("b.json", b"3" * 100)]
        path = write_tar(tmp_path / "a.tar", members)
        path.write_bytes(path.read_bytes()[: 9 * 512 + 50])
        found = source(path)
        assert [e[1] for e in contents(found)] == [b"1"]
        assert [(key, reason) for key, reason, _ in found.unreadable] == [
            ("a.tar/b", "truncated archive"),
            (str(path), "truncated archive"),
        ]

    def test_a_torn_archive_among_whole_ones(self, tmp_path):
        paths = write_webdataset(tmp_path, examples(30), shards=3)
        whole = contents(source(tmp_path))
        paths[1].write_bytes(paths[1].read_bytes()[:3000])
        found = contents(source(tmp_path))
        assert found[:10] == whole[:10] and found[-10:] == whole[-10:] and 20 <= len(found) < 30

    def test_flipped_bytes(self, tmp_path):
        path = write_webdataset(tmp_path, examples(8))[0]
        data, random = path.read_bytes(), np.random.default_rng(0)
        images = {image for _, image, _ in contents(source(path))}
        intact = 0
        for trial in range(150):
            damaged = bytearray(data)
            for place in random.integers(len(data), size=8):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            os.utime(path, ns=(trial, trial))
            try:
                found = source(path)
            except ConfigError:
                continue
            for place in range(len(found)):
                try:
                    intact += found[place]["image"] in images
                except Unreadable:
                    continue
        assert intact > 100

    def test_no_samples_at_all(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [])
        with pytest.raises(ConfigError, match=r"path=.*no usable sample in 1 shards \(.*empty"):
            source(path)
        write_tar(path, [("a.jpg", b"1")])
        with pytest.raises(ConfigError, match=r"no usable sample.*no caption.*text_keys"):
            source(path)
        path.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(ConfigError, match="gzip"):
            source(path)

    def test_a_file_that_went_away_or_shrank(self, tmp_path):
        path = write_webdataset(tmp_path, examples(4))[0]
        found = source(path)
        os.truncate(path, 700)
        with pytest.raises(Unreadable) as error:
            found[3]
        assert error.value.reason == "truncated archive" and error.value.key == "00000.tar/000003"
        path.unlink()
        fresh = pickle.loads(pickle.dumps(found))
        filesystem.FILES._open.clear()
        with pytest.raises(Unreadable, match="missing file"):
            fresh[0]


class TestIndex:
    def test_only_new_and_changed_shards_are_read(self, tmp_path, scans):
        data = tmp_path / "data"
        made = examples(30)
        paths = write_webdataset(data, made, shards=3)
        assert len(source(data)) == 30 and sorted(scans) == ["00000.tar", "00001.tar", "00002.tar"]
        scans.clear()
        assert len(source(data)) == len(source(data, image_keys="jpg", json_fields=("a",))) == 30 and scans == []
        write_webdataset(tmp_path / "more", [("new", b"n", ["n"])])[0].rename(data / "00003.tar")
        assert len(source(data)) == 31 and scans == ["00003.tar"]
        scans.clear()
        paths[1].write_bytes(write_webdataset(tmp_path / "more", examples(7, seed=1))[0].read_bytes())
        assert len(source(data)) == 28 and scans == ["00001.tar"]
        assert [e[1] for e in contents(source(data))][10:17] == [image for _, image, _ in examples(7, seed=1)]

    def test_a_damaged_or_read_only_cache(self, tmp_path, cache, scans):
        path = write_webdataset(tmp_path, examples(20))[0]
        expected = contents(source(path))
        (kept,) = cache.iterdir()
        good, random = kept.read_bytes(), np.random.default_rng(0)
        for trial in range(60):
            damaged = bytearray(good)
            if trial % 2:
                damaged = bytearray(random.bytes(len(good)))
            else:
                damaged[random.integers(len(good))] ^= 0xFF
            kept.write_bytes(damaged)
            assert contents(source(path)) == expected
        assert len(scans) > 30
        kept.unlink()
        cache.rmdir()
        cache.write_text("a file where the folder should be")
        assert contents(source(path)) == expected

    def test_progress_is_logged_if_it_takes_long(self, tmp_path, monkeypatch, messages):
        write_webdataset(tmp_path, examples(9), shards=3)
        source(tmp_path)
        assert not messages
        monkeypatch.setattr(tar_samples, "_LOG_SECONDS", -1.0)
        source(tmp_path)
        assert len(messages) == 3 and messages[1].startswith("indexed 2 of 3 shards in ")

    def test_a_known_set_opens_at_once(self, tmp_path):
        members = [(f"{i:09d}.{e}", b"x") for i in range(500) for e in ("jpg", "txt")]
        data = write_tar(tmp_path / "data" / "0.tar", members).read_bytes()
        for shard in range(1, 100):
            (tmp_path / "data" / f"{shard}.tar").write_bytes(data)
        assert len(source(tmp_path / "data")) == 50_000
        begin = time.perf_counter()
        assert len(source(tmp_path / "data")) == 50_000
        assert time.perf_counter() - begin < 2  # 0.2 s on an idle core


class TestBenchmarkFolder:
    def make(self, root, *, kind=None, texts=None):
        for split, count in (("train", 4), ("test", 6)):
            members = []
            for i in range(count):
                members.append((f"s{i:07d}.webp", bytes([i + 1])))
                members.append((f"s{i:07d}.{'txt' if texts else 'cls'}", texts or f"{i % 3}".encode()))
            for shard in range(2):
                write_tar(root / split / f"{shard}.tar", members[shard * count : (shard + 1) * count])
            (root / split / "nshards.txt").write_text("2\n")
        if not texts:
            (root / "classnames.txt").write_text("tabby cat\ndog\ngreat owl\n")
            (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
        if kind:
            (root / "dataset_type.txt").write_text(kind)

    def test_classification(self, tmp_path):
        self.make(tmp_path)
        found = source(tmp_path, "test")
        assert found.class_names == ["tabby cat", "dog", "great owl"]
        assert found.templates == ["a photo of a {}.", "art of the {}."]
        assert len(found) == 6 and [found[i]["label"] for i in range(6)] == [0, 1, 2, 0, 1, 2]
        assert found[2]["captions"] == ["a photo of a great owl.", "art of the great owl."]
        assert len(source(tmp_path, "train")) == 4
        assert source(tmp_path / "{split}", "test").class_names == found.class_names
        other = source(tmp_path, "test", class_names=("a", "b", "c"), templates=("{}!",))
        assert other.class_names == ["a", "b", "c"] and other[1]["captions"] == ["b!"]
        with pytest.raises(ConfigError, match=r"split='val'.*there are test, train"):
            source(tmp_path, "val")

    def test_what_cannot_be_right(self, tmp_path):
        self.make(tmp_path)
        (tmp_path / "test" / "1.tar").unlink()
        with pytest.raises(ConfigError, match=r"nshards.txt says '2' and there are 1"):
            source(tmp_path, "test")
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
        found = source(tmp_path, "train")
        with pytest.raises(Unreadable, match="class 2 of 2"):
            found[2]
        (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo\n")
        with pytest.raises(ConfigError, match="no place for the class"):
            source(tmp_path, "train")

    def test_several_classes_and_metadata(self, tmp_path):
        def array(*numbers, dtype=np.int64):
            np.save(file := io.BytesIO(), np.array(numbers, dtype))
            return file.getvalue()

        bad = [b"", b"\x93NUMPY", array(1, 0), array(None, 0, 0, dtype=object), array("a", "b", "c", dtype=str)]
        good = [array(1, 0, 1), array(0, 0, 0, dtype=bool), array(0, 0.5, -1, dtype=np.float32)]
        members = []
        for i, labels in enumerate((*good, *bad)):
            members += [
                (f"{i}.jpg", bytes([i + 1])),
                (f"{i}.npy", labels),
                (f"{i}.cls", b"1"),
                (f"{i}.meta", good[i % 3]),
            ]
        write_tar(tmp_path / "test" / "0.tar", members)
        (tmp_path / "test" / "nshards.txt").write_text("1")
        (tmp_path / "classnames.txt").write_text("cat\ndog\nowl\n")
        (tmp_path / "dataset_type.txt").write_text("multilabel")
        found = source(tmp_path, "test")
        assert [found[i]["labels"] for i in range(3)] == [[0, 2], [], [1]] and "label" not in found[0]
        assert found[0]["captions"] == ["a photo of a cat.", "a photo of a owl."] and found[1]["captions"] == [""]
        for i in range(3, 8):
            with pytest.raises(Unreadable, match="bad row"):
                found[i]
        (tmp_path / "dataset_type.txt").unlink()
        found = source(tmp_path, "test", metadata_key="meta")
        assert (found[0]["label"], found[0]["metadata"], found[2]["metadata"]) == (1, [1, 0, 1], [0, 0.5, -1])

    @pytest.mark.parametrize("label", [b"", b"x", b"-1", b"1.5", b"9" * 400])
    def test_labels_that_are_none(self, tmp_path, label):
        path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.cls", label)])
        with pytest.raises(Unreadable, match="bad row"):
            source(path, class_names=("a", "b"))[0]

    def test_classes_without_names_need_texts(self, tmp_path):
        path = write_tar(
            tmp_path / "a.tar", [("a.jpg", b"1"), ("a.cls", b"3"), ("b.jpg", b"1"), ("b.cls", b"4"), ("b.txt", b"t")]
        )
        found = source(path)
        assert len(found) == 1 and found[0]["label"] == 4 and found[0]["captions"] == ["t"]

    def test_retrieval(self, tmp_path):
        self.make(tmp_path, kind="retrieval", texts=b"one caption\nanother\n")
        assert source(tmp_path, "test")[0]["captions"] == ["one caption", "another"]
        assert source(tmp_path, "test", caption_lines=False)[0]["captions"] == ["one caption another"]


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        ({"modalities": ()}, "modalities"), ({"modalities": ("image", "image")}, "modalities"),
        ({"modality_keys": {"depth": "d"}}, r"modality_keys.depth"), ({"image_keys": " ; "}, "image_keys"),
        ({"text_keys": ""}, "text_keys"), ({"json_text_key": ";"}, "json_text_key"),
        ({"max_captions": 0}, "max_captions"),
        ({"json_fields": ("key",)}, "json_fields"), ({"caption_norm": "x"}, "caption_norm"),
        ({"class_names": "none.txt"}, "class_names"), ({"templates": ("a",)}, "templates"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_right(tmp_path, options, blamed):
    path = write_webdataset(tmp_path, examples(2))[0]
    with pytest.raises(ConfigError, match=rf"^{blamed}="):
        source(path, **options)
