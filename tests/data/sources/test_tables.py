import csv
import gzip
import json
import pickle
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError, build
from mmjax.data.sample import Unreadable
from mmjax.data.sources.tables import Source
from mmjax.data.storage import filesystem
from support import tables

ITEMS = tables.examples()


@pytest.fixture(autouse=True)
def folder(tmp_path):
    tables.write_images(tmp_path, ITEMS)
    return tmp_path


def check(source, items=ITEMS):
    assert len(source) == len(items) and source.group == 1 and source.unreadable == []
    for i, (key, data, captions) in enumerate(items):
        got = source[i]
        assert (got["id"], got["key"], got["captions"], got["image"]) == (i, key, captions, data)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[len(items) - 1] == source[len(items) - 1]
    for outside in (-1, len(items)):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("names", [("filepath", "title"), ("image", "caption"), ("file_name", "text")])
def test_csv_under_the_usual_names(folder, separator, names):
    tables.write_csv(folder / "t.csv", ITEMS, separator=separator, names=names)
    check(Source("train", path=str(folder / "t.csv")))


def test_jsonl_and_parquet(folder):
    tables.write_jsonl(folder / "a", ITEMS)
    tables.write_jsonl(folder / "b", ITEMS, lists=True)
    tables.write_parquet(folder / "c", ITEMS, row_group_size=3)
    for name in "abc":
        check(Source("train", path=str(folder / name)))


def test_a_list_of_captions_in_a_cell_is_several_captions(folder):
    """As in Hugging Face's csv files of Flickr30k and COCO."""
    lists = [['a dog, and a "cat"', "zwei Hunde über Gras"], ["one"]]
    texts = ['["no list', "[sic]", '["a" and "b"]']
    with open(folder / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["raw", "filename"])
        cells = [*map(json.dumps, lists[:1]), json.dumps(lists[1], ensure_ascii=False), *texts]
        rows.writerows([cell, f"images/{i:03}.png"] for i, cell in enumerate(cells))
    source = Source("test", path=str(folder / "t.csv"))
    assert [source[i]["captions"] for i in range(len(source))] == [*lists, *([text] for text in texts)]


def test_open_clip_names_come_before_others_and_options_before_these(folder):
    text = "filepath\ttitle\tcaption\timage\nimages/000.png\tfrom title\tfrom caption\timages/001.png\n"
    (folder / "t.tsv").write_text(text)
    source = Source("train", path=str(folder / "t.tsv"))
    assert (source[0]["key"], source[0]["captions"]) == ("images/000.png", ["from title"])
    source = Source("train", path=str(folder / "t.tsv"), image_column="image", caption_columns=("caption", "title"))
    assert (source[0]["key"], source[0]["captions"]) == ("images/001.png", ["from caption", "from title"])


def test_splits_lists_and_globs(folder):
    for split, part in (("train", ITEMS[:4]), ("val", ITEMS[4:])):
        tables.write_csv(folder / f"{split}.csv", part)
    check(Source("train", path=str(folder / "{split}.csv")), ITEMS[:4])
    check(Source("x", path=(str(folder / "train.csv"), str(folder / "val.csv"))))
    check(Source("x", path=str(folder / "{train,val}.csv")))
    with pytest.raises(ConfigError, match=r"test.*train.*val"):
        Source("test", path=str(folder / "{split}.csv"))


def test_embedded_pictures(folder):
    for number, part in enumerate((ITEMS[:4], ITEMS[4:])):
        pq.write_table(tables.embedded(part), folder / f"{number}.parquet", row_group_size=2)
    source = Source("train", path=str(folder / "*.parquet"))
    for order in (range(6), [5, 0, 4, 1, 3, 2]):
        for i in order:
            got = source[i]
            assert (got["id"], got["image"], got["captions"]) == (i, ITEMS[i][1], ITEMS[i][2])
    assert source[4]["key"] == "1.parquet:1" and source.column("key").tolist()[3:5] == ["0.parquet:4", "1.parquet:1"]
    assert pickle.loads(pickle.dumps(source))[5] == source[5]
    plain = pa.table({"jpg": [d for _, d, _ in ITEMS], "txt": [c[0] for _, _, c in ITEMS]})
    pq.write_table(plain, folder / "plain")
    source = Source("train", path=str(folder / "plain"))
    assert [source[i]["image"] for i in range(6)] == [d for _, d, _ in ITEMS]
    pq.write_table(tables.embedded(ITEMS, paths=True), folder / "paths")
    source = Source("train", path=str(folder / "paths"))
    assert [source[i]["image"] for i in range(6)] == [d for _, d, _ in ITEMS]


def test_only_the_groups_that_are_read_last_are_kept(folder):
    pq.write_table(tables.embedded(ITEMS), folder / "t", row_group_size=1)
    source = Source("train", path=str(folder / "t"))
    for i in range(6):
        source[i]
    assert len(source._cells._kept) == 4


def test_each_row_an_example_of_its_own(folder):
    tables.write_csv(folder / "t.csv", ITEMS)
    source = Source("train", path=str(folder / "t.csv"), group=False)
    assert source.rows_share_images and not Source("train", path=str(folder / "t.csv")).rows_share_images
    rows = tables.rows(ITEMS)
    assert [(source[i]["key"], source[i]["captions"]) for i in range(len(source))] == [(k, [c]) for k, c in rows]
    keys = [key for key, _, _ in ITEMS]
    assert [source[i]["id"] for i in range(len(source))] == [keys.index(k) for k, _ in rows]
    assert source.column("id").tolist() == [keys.index(k) for k, _ in rows]


def test_rows_of_one_image_need_not_be_neighbours(folder):
    text = "filepath,title\nimages/001.png,a\nimages/000.png,b\nimages/001.png,c\nimages/000.png,d\n"
    (folder / "t.csv").write_text(text)
    source = Source("train", path=str(folder / "t.csv"))
    assert [source[i]["captions"] for i in range(2)] == [["a", "c"], ["b", "d"]]
    assert [source[i]["key"] for i in range(2)] == ["images/001.png", "images/000.png"]


def test_repeated_rows_are_listed(folder):
    text = "filepath,title\nimages/001.png,a\nimages/000.png,a\nimages/001.png,b\nimages/001.png,a\nimages/000.png,a\n"
    (folder / "t.csv").write_text(text)
    source = Source("train", path=str(folder / "t.csv"))
    assert [source[i]["captions"] for i in range(2)] == [["a", "b"], ["a"]]
    assert [(key, reason) for key, reason, _ in source.unreadable] == [
        ("t.csv:5", "duplicate key"),
        ("t.csv:6", "duplicate key"),
    ]
    assert len(Source("train", path=str(folder / "t.csv"), group=False)) == 5


def test_fields_and_columns(folder):
    text = (
        "filepath,title,score,count,note\nimages/000.png,a,0.5,3,x\nimages/001.png,b,,4,\nimages/002.png,c,1e-3,5,z\n"
    )
    (folder / "t.csv").write_text(text)
    source = Source("train", path=str(folder / "t.csv"), columns=("score", "count", "note"))
    np.testing.assert_array_equal(source.column("score"), [0.5, np.nan, 1e-3])
    assert source.column("count").dtype == np.int64 and source.column("count").tolist() == [3, 4, 5]
    assert source.column("note").tolist() == ["x", "", "z"]
    assert source.column("key").tolist() == [f"images/00{i}.png" for i in range(3)]
    assert source.column("captions").tolist() == [["a"], ["b"], ["c"]]
    assert source[0]["score"] == 0.5 and np.isnan(source[1]["score"]) and source[2]["count"] == 5
    with pytest.raises(ConfigError, match=r"column='scores'.*score"):
        source.column("scores")
    with pytest.raises(ConfigError, match=r"columns='scores'.*'score'"):
        Source("train", path=str(folder / "t.csv"), columns=("scores",))


def test_lists_are_carried_from_jsonl(folder):
    (folder / "t").write_text(
        '{"image": "images/000.png", "caption": "a", "box": [1, 2], "s": 1}\n'
        '{"image": "images/001.png", "caption": ["b", "c"], "box": [3, 4], "s": 0.5}\n'
    )
    source = Source("train", path=str(folder / "t"), columns=("box", "s"))
    assert source[1]["box"] == [3, 4] and source.column("s").tolist() == [1.0, 0.5]


def test_a_field_that_differs_within_an_image_is_refused(folder):
    (folder / "t.csv").write_text("filepath,title,score\nimages/000.png,a,1\nimages/001.png,b,1\nimages/000.png,c,2\n")
    with pytest.raises(ConfigError, match=r"'score' differs .*t\.csv:2 and t\.csv:4.*group=False"):
        Source("train", path=str(folder / "t.csv"), columns=("score",))
    assert Source("x", path=str(folder / "t.csv"), columns=("score",), group=False).column("score").tolist() == [
        1,
        1,
        2,
    ]


def test_negatives_in_the_form_of_negclip(folder):
    (folder / "t.tsv").write_text(
        "title\tfilepath\tneg_caption\tneg_image\n"
        "a red dog\timages/000.png\t['a dog red', \"dog's a\"]\t[1, 2]\n"
        "a cat\timages/001.png\t[]\t[]\n"
        "a cow\timages/002.png\t\t\n"
        "an owl\timages/003.png\t__import__('os')\t\n"
        "an ox\timages/004.png\t[__import__('os')]\t\n"
        "an elk\timages/005.png\t[1]\t\n"
        "a yak\tx.png\t['\\udc00']\t\n"
        "a fox\timages/000.png\t['fox a']\t[]\n"
    )
    source = Source("train", path=str(folder / "t.tsv"))
    assert source[0]["captions"] == ["a red dog", "a fox"]
    assert source[0]["negatives"] == [
        ("given", "a red dog", "a dog red"),
        ("given", "a red dog", "dog's a"),
        ("given", "a fox", "fox a"),
    ]
    assert source[1]["negatives"] == source[2]["negatives"] == []
    assert source[3]["negatives"] == [("given", "an owl", "__import__('os')")]  # a text is one; nothing is run
    (folder / "x.png").write_bytes(b"x")
    for i, reason in ((4, "bad row"), (5, "bad row"), (6, "caption is not UTF-8")):
        with pytest.raises(Unreadable, match=reason):
            source[i]


def test_negatives_as_lists(folder):
    (folder / "t").write_text(
        '{"image": "images/000.png", "caption": ["A.", "b"], "neg_caption": ["É \\ud83d\\ude00", ""]}'
    )
    source = Source("train", path=str(folder / "t"), caption_norm="blip")
    assert source[0]["captions"] == ["a", "b"] and source[0]["negatives"] == [("given", "a", "é 😀")]


def test_labels(folder):
    (folder / "t.csv").write_text("filepath,class\nimages/000.png,dog\nimages/001.png,cat\nimages/002.png,dog\n")
    source = Source("train", path=str(folder / "t.csv"), label_column="class")
    assert source.class_names == ["cat", "dog"] and source.column("label").tolist() == [1, 0, 1]
    assert [source[i]["label"] for i in range(3)] == [1, 0, 1] and source[1]["captions"] == ["cat"]
    (folder / "n.csv").write_text("filepath,title,class\nimages/000.png,a,2\nimages/001.png,b,0\n")
    source = Source("train", path=str(folder / "n.csv"), label_column="class")
    assert source[0]["label"] == 2 and source.class_names is None
    (folder / "m.csv").write_text("filepath,title,class\nimages/000.png,a,-1\nimages/001.png,b,0\n")
    with pytest.raises(ConfigError, match="label_column"):
        Source("train", path=str(folder / "m.csv"), label_column="class")


def test_classes_have_names_and_prompts_also_those_that_no_row_has(folder):
    (folder / "t.csv").write_text("filepath,class\nimages/000.png,hund\nimages/001.png,katze\n")
    (folder / "names.json").write_text(json.dumps({"hund": "dog", "maus": "mouse", "katze": "cat"}))
    options = {"label_column": "class", "class_names": str(folder / "names.json"), "templates": ("a {}.", "the {c}")}
    source = Source("train", path=str(folder / "t.csv"), **options)
    assert source.class_names == ["dog", "mouse", "cat"] and source.column("label").tolist() == [0, 2]
    assert source[1]["captions"] == ["a cat.", "the cat"] and source.templates == ["a {}.", "the {}"]
    (folder / "n.jsonl").write_text(
        '{"image": "images/000.png", "class": 2}\n{"image": "images/001.png", "class": 0}\n'
    )
    options["class_names"] = ("dog", "mouse", "cat")
    source = Source("train", path=str(folder / "n.jsonl"), **options)
    assert [source[i]["captions"][0] for i in range(2)] == ["a cat.", "a dog."] and source[0]["label"] == 2
    for names, path, message in (
        (("dog",), "n.jsonl", "1 names, and the label 2 of some rows"),
        (("hund",), "t.csv", "'katze' is not among them"),
    ):
        with pytest.raises(ConfigError, match=f"class_names: {message}"):
            Source("train", path=str(folder / path), **options | {"class_names": names})
    with pytest.raises(ConfigError, match="label_column=None"):
        Source("train", path=str(folder / "t.csv"), caption_columns=("class",), class_names=("hund",))


def test_roots(folder):
    other = folder / "lists"
    other.mkdir()
    tables.write_csv(other / "t.csv", ITEMS)
    with pytest.raises(ConfigError, match=r"image_root.*none of the first 4 pictures.*set image_root"):
        Source("train", path=str(other / "t.csv"))
    check(Source("train", path=str(other / "t.csv"), image_root=str(folder)))
    absolute = [(str(folder / key), data, captions) for key, data, captions in ITEMS]
    tables.write_csv(other / "abs.csv", absolute)
    check(Source("train", path=str(other / "abs.csv")), absolute)


@pytest.mark.parametrize("kind", ["csv", "parquet", "embedded"])
def test_several_modalities(folder, kind):
    tables.write_images(folder, [(f"depth/{i}", tables.png(90 + i), []) for i in range(6)])
    names = pa.table(
        {
            "image": [key for key, _, _ in ITEMS],
            "depth": [f"depth/{i}" for i in range(6)],
            "caption": [captions[0] for _, _, captions in ITEMS],
            "score": list(range(6)),
        }
    )
    path = folder / "t"
    if kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([names.column_names, *zip(*names.to_pydict().values(), strict=True)])
    elif kind == "parquet":
        pq.write_table(names, path)
    else:
        pq.write_table(names.set_column(0, "image", pa.array([data for _, data, _ in ITEMS])), path)
    source = Source("train", path=str(path), modalities=("depth", "image"), columns=("score",))
    for i in range(6):
        got = source[i]
        assert (got["image"], got["depth"], got["score"]) == (ITEMS[i][1], tables.png(90 + i), i)
        assert set(got) == {"id", "key", "captions", "image", "depth", "score"}
    assert Source("train", path=str(path), modalities=("rgb",))[2]["rgb"] == ITEMS[2][1]
    for modalities, message in (
        (("image", "thermal"), "modalities='thermal'.*no such column"),
        (("rgb", "depth"), "of several one is called 'image'"),
        ((), "name one or more"),
        (("image", "image"), "each once"),
    ):
        with pytest.raises(ConfigError, match=message):
            Source("train", path=str(path), modalities=modalities)
    with pytest.raises(ConfigError, match=r"columns='image'.*every example"):
        Source("train", path=str(path), columns=("image",))


# Damage.


def refusals(source):
    return [tuple(problem[:2]) for problem in source.unreadable]


def test_names_that_leave_the_root_and_missing_files(folder):
    (folder / "secret.png").write_bytes(tables.png(9))
    (folder / "empty.png").write_bytes(b"")
    (folder / "lists").mkdir()
    (folder / "images" / "t.csv").write_text(
        "filepath,title\n000.png,a\n../secret.png,b\nx/../../secret.png,c\ngone.png,d\n../images/001.png,e\n.,f\na\0b,g\n"
        f"{'x' * 5000},h\n../empty.png,i\n"
    )
    source = Source("train", path=str(folder / "images" / "t.csv"))
    assert source[0]["image"] == tables.png(0)
    assert [entry[:2] for entry in source.unreadable] == [(f"t.csv:{line}", "bad row") for line in (3, 4, 6, 10)]
    reasons = []
    for i in range(1, len(source)):
        with pytest.raises(Unreadable) as error:
            source[i]
        reasons.append(error.value.reason)
        assert error.value.key == source.column("key")[i]
    assert reasons == ["missing file", "bad row", "bad row", "missing file"]
    (folder / "t.csv").write_text("filepath,title\nempty.png,i\n")
    with pytest.raises(Unreadable, match="empty image"):
        Source("train", path=str(folder / "t.csv"))[0]


def test_every_broken_row_is_listed_with_its_line_and_the_others_stay(folder):
    (folder / "t.csv").write_bytes(
        b"\xef\xbb\xbffilepath,title\r\n"
        b"images/000.png,fine\r\n"
        b"images/001.png,a, comma\r\n"  # 3
        b"images/002.png\r\n"  # 4
        b"\r\n"
        b"images/003.png,\r\n"  # 6
        b"images/003.png,  \t \r\n"  # 7
        b",no image\r\n"  # 8
        b"images/003.png,caf\xe9\r\n"  # 9
        b"caf\xe9.png,name\r\n"  # 10
        b'images/001.png,"open\r\n'  # 11
        b'images/002.png,"quoted, with ""inner"""\r\n'
        b'images/003.png,"over\r\ntwo lines"\r\n'
        b'images/004.png,6" wide\r\n'
        b"images/005.png,nul\x00nul\r\n"
        b'images/001.png,"words" after\r\n'
        b'images/000.png,"never closed\r\n'  # 18
        b"images/000.png,last"
    )
    source = Source("train", path=str(folder / "t.csv"))
    assert refusals(source) == [
        ("t.csv:3", "bad row"),
        ("t.csv:4", "bad row"),
        ("t.csv:6", "no caption"),
        ("t.csv:7", "no caption"),
        ("t.csv:8", "bad row"),
        ("t.csv:9", "caption is not UTF-8"),
        ("t.csv:10", "bad row"),
        ("t.csv:11", "bad row"),
        ("t.csv:18", "bad row"),
    ]
    got = {source[i]["key"]: source[i]["captions"] for i in range(len(source))}
    assert got == {
        "images/000.png": ["fine", "last"],
        "images/002.png": ['quoted, with "inner"'],
        "images/003.png": ["over two lines"],
        "images/004.png": ['6" wide'],
        "images/005.png": ["nulnul"],
        "images/001.png": ["words after"],
    }


def test_broken_jsonl(folder):
    (folder / "t.jsonl").write_bytes(
        b'{"image": "images/000.png", "caption": "fine"}\n'
        b"{not json}\n[1]\n\n"
        b'{"image": "images/001.png"}\n'
        b'{"caption": "no image"}\n'
        b'{"image": "images/001.png", "caption": "caf\xe9"}\n'
        b'{"image": "images/001.png", "caption": "\\ud800"}\n'
        b'{"image": "images/001.png", "caption": 5}\n'
        b'{"image": 5, "caption": "x"}\n' + b"[" * 100_000 + b"\n"
        b'{"image": "images/001.png", "caption": [null, "", "late", ["deep"]]}\n'
        b'{"image": "images/002.png", "capt'
    )
    source = Source("train", path=str(folder / "t.jsonl"))
    assert refusals(source) == [
        (f"t.jsonl:{line}", reason)
        for line, reason in [
            (2, "bad row"),
            (3, "bad row"),
            (5, "no caption"),
            (6, "bad row"),
            (7, "caption is not UTF-8"),
            (8, "caption is not UTF-8"),
            (9, "bad row"),
            (10, "bad row"),
            (11, "bad row"),
            (13, "bad row"),
        ]
    ]
    assert source[1]["captions"] == ["late", "deep"]


def test_absurdly_long_captions(folder):
    (folder / "t.csv").write_text("filepath,title\nimages/000.png," + "word " * 400_000 + "\nimages/001.png,b\n")
    source = Source("train", path=str(folder / "t.csv"))
    assert len(source[0]["captions"][0]) <= 4096 and source[1]["captions"] == ["b"]


def test_a_quote_in_every_line_does_not_take_for_ever(folder):
    lines = "".join(f'images/000.png,"open {i}\n' for i in range(2000))
    (folder / "t.csv").write_text(f"filepath,title\nimages/001.png,fine\n{lines}images/002.png,fine\n")
    start = time.perf_counter()
    source = Source("train", path=str(folder / "t.csv"))
    assert time.perf_counter() - start < 5
    assert source.column("captions").tolist()[0] == ["fine"] and source.column("captions").tolist()[-1] == ["fine"]
    lost = sum(len(c) for c in source.column("captions"))
    assert len(source.unreadable) + lost >= 1000


def test_packed_tables(folder):
    tables.write_csv(folder / "t.csv", ITEMS)
    packed = gzip.compress((folder / "t.csv").read_bytes())
    (folder / "t.csv.gz").write_bytes(packed)
    check(Source("train", path=str(folder / "t.csv.gz")))
    (folder / "torn.gz").write_bytes(packed[:-20])
    with pytest.raises(ConfigError, match=r"torn\.gz.*damaged"):
        Source("train", path=str(folder / "torn.gz"))


@pytest.mark.parametrize(
    "content, options, message",
    [
        (b"", {}, "is empty"),
        (b" \n", {}, "is empty"),
        (b'[{"image": "a"}]', {}, "source 'captions'"),
        (b"name,words\na,b\n", {}, "image_column=None.*'name', 'words'"),
        (b"filepath,words\na,b\n", {}, "caption_columns=None.*'words'"),
        (b"filepath,title\na,b\n", {"image_column": "filpath"}, "image_column='filpath'.*did you mean 'filepath'"),
        (b"filepath,title\na,b\n", {"separator": "\t"}, "image_column=None"),
        (b"filepath,title\na,b\n", {"separator": ", "}, "separator=', '"),
        (b"filepath,title,title\na,b,c\n", {}, "caption_columns='title'.*more than one"),
        (b"PAR1 no parquet", {}, "no readable parquet"),
        ("filepath,title\na,b\n".encode("utf-16"), {}, "UTF-16"),
        (b"filepath,title\na,b\n", {"modalities": ("image", "depth")}, "modalities='depth'"),
        (b"filepath,title\na,b\n", {"caption_norm": "x"}, "caption_norm"),
        (b"filepath,title\na,b\n", {"max_captions": 0}, "max_captions"),
        (b"filepath,title\na,b\n", {"format": "xls"}, "format"),
    ],
)
def test_what_cannot_be_a_table_is_said_at_once(folder, content, options, message):
    (folder / "t").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        build(Source, {"split": "train", "path": str(folder / "t"), **options}, path="data.source")
    assert "\n" not in str(error.value)


def test_a_parquet_file_damaged_in_the_middle(folder):
    pq.write_table(tables.embedded(ITEMS), folder / "t", row_group_size=2, compression="gzip", use_dictionary=False)
    data = bytearray((folder / "t").read_bytes())
    (folder / "torn").write_bytes(data[:-30])
    with pytest.raises(ConfigError, match="no readable parquet"):
        Source("train", path=str(folder / "torn"))
    for group, column in ((0, 0), (2, 2)):  # the pictures of the first, the captions of the last
        page = pq.ParquetFile(folder / "t").metadata.row_group(group).column(column)
        data[page.data_page_offset + 8 : page.data_page_offset + page.total_compressed_size] = b"\0" * (
            page.total_compressed_size - 8
        )
    (folder / "t").write_bytes(data)
    source = Source("train", path=str(folder / "t"))
    assert refusals(source) == [("t:5", "truncated archive"), ("t:6", "truncated archive")] and len(source) == 4
    for i in (0, 1):
        with pytest.raises(Unreadable, match="truncated archive"):
            source[i]
    assert [source[i]["image"] for i in (2, 3)] == [ITEMS[2][1], ITEMS[3][1]]


def test_a_caption_that_is_not_utf8_in_parquet_costs_its_row_alone(folder):
    captions = pa.array([b"fine", b"caf\xe9", b"good"]).view(pa.string())
    pq.write_table(
        pa.table({"image": ["images/000.png", "images/001.png", "images/002.png"], "caption": captions}), folder / "t"
    )
    source = Source("train", path=str(folder / "t"))
    assert source.column("captions").tolist() == [["fine"], ["good"]]
    assert refusals(source) == [("t:2", "caption is not UTF-8")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_damaged_bytes_neither_crash_nor_hang(folder, kind):
    path = folder / "t"
    getattr(tables, f"write_{kind}")(path, ITEMS)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    counted = 0
    for _ in range(250 if kind != "parquet" else 100):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 6)):
            place = random.integers(len(damaged))
            damaged[place] = random.choice([0, 10, 34, 9, 44, 255, random.integers(256)])
        path.write_bytes(damaged[: random.integers(len(damaged))] if random.random() < 0.2 else damaged)
        try:
            source = Source("train", path=str(path))
        except ConfigError:
            continue
        for i in range(len(source)):
            try:
                example = source[i]
                assert example["captions"] and example["image"]
            except Unreadable as error:
                assert error.key
                counted += 1
        counted += len(source.unreadable)
    assert counted > 20 or kind == "parquet"


def test_a_million_rows_are_small():
    from mmjax.data.formats.caption_table import CaptionTable
    from mmjax.data.formats.row_builder import Row

    rows = (Row("t", i, f"images/{i // 2:08d}.png", f"a caption of some thirty bytes {i}") for i in range(100_000))
    size = len(pickle.dumps(CaptionTable(rows, named=True), protocol=5)) / 100_000
    assert size < 80, size


def test_a_table_without_a_usable_row_says_why(folder):
    path = folder / "images" / "t.csv"
    for content, message in (
        ("../images/000.png,a\n", r"none of its 1 rows can be used; the first one: t\.csv:2: .*image_root"),
        ("", "the table has no rows"),
    ):
        path.write_text(f"filepath,title\n{content}")
        with pytest.raises(ConfigError, match=f"path='{path}': {message}"):
            Source("train", path=str(path))


def test_rows_name_urls_of_allowed_protocols_alone(folder):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/storage/a.png", tables.png(1))
    (folder / "t.csv").write_text(
        "filepath,title\nimages/000.png,a\nmemory://storage/a.png,b\nzip://a::memory://storage/a.png,c\n"
        f"{folder}/images/001.png,d\n"
    )
    source = Source("train", path=str(folder / "t.csv"))
    assert [source[i]["captions"] for i in range(len(source))] == [["a"], ["d"]]
    assert [entry[:2] for entry in source.unreadable] == [("t.csv:3", "bad row"), ("t.csv:4", "bad row")]
    assert "protocols=('memory',)" in source.unreadable[0][2] and "('memory', 'zip')" in source.unreadable[1][2]
    source = Source("train", path=str(folder / "t.csv"), protocols=("memory",))
    assert len(source) == 3 and source[1]["image"] == tables.png(1)
    source = Source("train", path=str(folder / "t.csv"), protocols=("memory", "zip"))
    assert len(source) == 4 and problem(source, 2) == "other error"
    with pytest.raises(ConfigError, match=r"protocols='htps': no such name; did you mean 'https'\?"):
        Source("train", path=str(folder / "t.csv"), protocols=("htps",))
    # A table may name files of its own store, and chains from there lead nowhere else.
    fs.pipe_file(
        "/storage/t.csv", b"filepath,title\na.png,a\nmemory://storage/a.png,b\nx::file:///etc/passwd,c\ns3://a/b,d\n"
    )
    source = Source("train", path="memory://storage/t.csv")
    assert [source[i]["captions"] for i in range(len(source))] == [["a"], ["b"]] and len(source.unreadable) == 2
    fs.rm("/storage", recursive=True)


def test_pictures_above_the_limit_are_unreadable(folder):
    (folder / "images" / "000.png").write_bytes(tables.png(0) + bytes(1 << 20))
    (folder / "t.csv").write_text("filepath,title\nimages/000.png,a\nimages/001.png,b\n")
    source = Source("train", path=str(folder / "t.csv"), max_mib=1)
    assert problem(source, 0) == "file too large" and source[1]["captions"] == ["b"]
    assert Source("train", path=str(folder / "t.csv"))[0]["captions"] == ["a"]


def problem(source, index):
    with pytest.raises(Unreadable) as error:
        source.read(index)
    return error.value.reason


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_table_in_latin_1_says_how_to_convert_it(folder, name):
    rows = [f"images/00{i}.png,un café {i}" for i in range(3)]
    lines = ["filepath,title", *rows] if name == "t.csv" else []
    lines += [f'{{"filepath": "images/00{i}.png", "title": "un café {i}"}}' for i in range(3 if not lines else 0)]
    (folder / name).write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(ConfigError, match=r"none of its 3 rows.*caption is not UTF-8: .*'.*un café 0.*iconv -f cp1252"):
        Source("train", path=str(folder / name))
    if name == "t.csv":
        (folder / name).write_bytes("filepath,légende\nimages/000.png,a".encode("latin-1"))
        with pytest.raises(ConfigError, match=r"first line is not UTF-8 .*'filepath,légende.*save it as UTF-8"):
            Source("train", path=str(folder / name), caption_columns=("légende",))


def test_a_line_that_is_no_row_does_not_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(filesystem, "LONGEST_LINE", 1 << 20)
    with open(folder / "t.csv", "wb") as file:
        file.write(b"filepath,title\nimages/000.png,a\n")
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="a line has 1 MiB or more"):
        Source("train", path=str(folder / "t.csv"))
