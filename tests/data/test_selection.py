import dataclasses
import itertools
import json
import math
import pickle
import types
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.core import config
from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.formats.score_table import ScoredSource, WithQuantiles
from mmjax.data.open_source import open_source
from mmjax.data.pipeline import Batches
from mmjax.data.sample import QUANTILE, Sample, Unreadable, sample_arrays
from mmjax.data.selection import FilteredSource, Selection
from support import archives
from support.pictures import encoded, photograph


class Source(source.Source):
    """Rows of columns; nothing is read but what is asked for by index."""

    modalities = ("image", "depth")
    class_names = ("a", "b")
    unreadable = (("x", "no caption", ""),)

    def __init__(self, **columns):
        size = len(next(iter(columns.values())))
        self.columns = {"id": list(range(100, 100 + size)), "captions": [[f"raw caption {i}"] for i in range(size)]}
        self.columns |= columns
        self.read = []

    def __len__(self):
        return len(self.columns["id"])

    def __getitem__(self, index):
        self.read.append(index)
        return {name: values[index] for name, values in self.columns.items()}

    def column(self, name):
        if name not in self.columns:
            raise ConfigError(f"column={name!r}: no such column")
        values = self.columns[name]
        if any(isinstance(v, (list, str)) or v is None for v in values):
            out = np.empty(len(values), object)
            out[:] = values
            return out
        return np.array(values)


def scored(n=1000, seed=0):
    g = np.random.default_rng(seed)
    return Source(
        key=[f"k{i:05d}" for i in g.permutation(n)],
        raw=g.random(n).tolist(),
        syn=g.random(n).tolist(),
        blip=[f"synthetic caption {i}" for i in range(n)],
    )


MIXED = {"score": "raw", "synthetic": "blip"}
FILTERED = MIXED | {"synthetic_score": "syn"}


def reference(source, p, policy):
    """{id: caption} by sorting lists."""
    rows = [source[i] for i in range(len(source))]
    ranked = sorted((r for r in rows if not math.isnan(r["raw"])), key=lambda r: (-r["raw"], r["key"]))
    top = ranked[: math.floor(Fraction(str(p)) * len(ranked))]
    names = {r["id"] for r in top}
    kept = {r["id"]: r["captions"] for r in top}
    least = top[-1]["raw"] if top else math.inf
    for r in rows:
        if policy != "raw" and r["id"] not in names and r["blip"] and (policy == "mixed" or r["syn"] >= least):
            kept[r["id"]] = [r["blip"]]
    return kept


def taken(selected):
    return {selected[i]["id"]: selected[i]["captions"] for i in range(len(selected))}


class TestPolicies:
    @pytest.mark.parametrize("p", [0, 0.001, 0.29, 0.3, 0.5, 0.999, 1])
    @pytest.mark.parametrize("policy", ["raw", "mixed", "filtered"])
    def test_it_is_the_definition(self, policy, p):
        source = scored(300)
        source.columns["raw"][::7] = [math.nan] * len(source.columns["raw"][::7])
        source.columns["syn"][::5] = [math.nan] * len(source.columns["syn"][::5])
        source.columns["blip"][::11] = [None] * len(source.columns["blip"][::11])
        options = {"raw": {"score": "raw"}, "mixed": MIXED, "filtered": FILTERED}[policy]
        selection = Selection(captions=policy, top=p, **options)
        expected = reference(source, p, policy)
        if not expected:
            with pytest.raises(ConfigError, match="none of 300"):
                FilteredSource(source, selection)
            return
        found = FilteredSource(source, selection)
        assert taken(found) == expected
        assert [found[i]["id"] for i in range(len(found))] == sorted(expected)

    @pytest.mark.parametrize("p", [0, 0.29, 0.3, 0.999, 1])
    def test_datacomp_keeps_one_more_and_its_ties(self, p):
        scores = np.random.default_rng(1).integers(0, 40, 100) / 40
        source = Source(key=[str(i) for i in range(100)], raw=scores.tolist())
        kept = FilteredSource(source, Selection(score="raw", top=p, compat="datacomp"))
        place = int(100 * p)
        expected = np.flatnonzero(scores >= -np.sort(-scores)[place]) if place < 100 else np.arange(100)
        np.testing.assert_array_equal(kept.rows, expected)
        distinct = Source(key=[str(i) for i in range(100)], raw=np.random.default_rng(2).random(100).tolist())
        assert len(FilteredSource(distinct, Selection(score="raw", top=p, compat="datacomp"))) == min(place + 1, 100)
        with pytest.raises(ConfigError, match="compat='datacomp'"):
            Selection(score="raw", minimum=0.5, compat="datacomp")

    def test_the_counts_of_uniform_scores(self):
        source = scored()
        mixed = FilteredSource(source, Selection(captions="mixed", top=0.3, **MIXED))
        filtered = FilteredSource(source, Selection(captions="filtered", top=0.3, **FILTERED))
        assert len(mixed) == 1000 and mixed.synthetic.sum() == 700
        assert (~filtered.synthetic).sum() == 300 and abs(filtered.synthetic.sum() - 210) < 40
        assert set(filtered.rows) < set(mixed.rows)
        np.testing.assert_array_equal(filtered.rows[~filtered.synthetic], mixed.rows[~mixed.synthetic])

    @settings(max_examples=100)
    @given(hundredths=st.integers(0, 100), n=st.integers(1, 200))
    @example(hundredths=29, n=100)  # 0.29 * 100 is less than 29
    def test_exactly_the_floor_is_kept(self, hundredths, n):
        source = Source(raw=[0.5] * n, key=[f"{i}" for i in range(n)])
        selection = Selection(score="raw", top=hundredths / 100)
        count = hundredths * n // 100
        if count:
            assert len(FilteredSource(source, selection)) == count
        else:
            with pytest.raises(ConfigError):
                FilteredSource(source, selection)

    def test_ties_go_by_key_and_the_order_of_shards_does_not_matter(self):
        g = np.random.default_rng(0)
        rows = [(f"key{i}", float(g.integers(3))) for i in range(60)]
        kept = set()
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(60)
            source = Source(key=[rows[i][0] for i in order], raw=[rows[i][1] for i in order])
            selected = FilteredSource(source, Selection(score="raw", top=0.5))
            kept.add(frozenset(selected[i]["key"] for i in range(len(selected))))
        assert kept == {frozenset(key for key, _ in sorted(rows, key=lambda r: (-r[1], r[0]))[:30])}

    def test_without_keys_ties_go_by_id(self):
        source = Source(raw=[1.0] * 6, id=[5, 3, 4, 0, 2, 1])
        assert set(taken(FilteredSource(source, Selection(score="raw", top=0.5)))) == {0, 1, 2}

    def test_a_larger_share_keeps_more(self):
        source = scored(200)
        kept = [set(FilteredSource(source, Selection(score="raw", top=p / 20)).rows) for p in range(1, 21)]
        assert all(a < b for a, b in itertools.pairwise(kept))

    def test_synthetic_alone(self):
        source = scored(100)
        source.columns["blip"][3] = "  "
        everything = FilteredSource(source, Selection(captions="synthetic", synthetic="blip"))
        assert (
            len(everything) == 99
            and everything.synthetic.all()
            and everything[0]["captions"] == ["synthetic caption 0"]
        )
        best = FilteredSource(source, Selection(captions="synthetic", synthetic="blip", synthetic_score="syn", top=0.2))
        ranked = sorted(range(100), key=lambda i: -source.columns["syn"][i])[:20]
        assert set(best.rows) == set(ranked) - {3}

    def test_a_synthetic_score_equal_to_the_last_raw_one_passes(self):
        source = Source(raw=[0.9, 0.7, 0.1, 0.1], syn=[0.0, 0.0, 0.7, 0.69], blip=["x"] * 4, key=list("abcd"))
        assert FilteredSource(source, Selection(captions="filtered", top=0.5, **FILTERED)).rows.tolist() == [0, 1, 2]

    def test_a_minimum_instead_of_a_share(self):
        source = scored(100)
        raw, syn = (np.array(source.columns[name]) for name in ("raw", "syn"))
        selected = FilteredSource(source, Selection(captions="filtered", minimum=0.6, **FILTERED))
        np.testing.assert_array_equal(selected.rows, np.flatnonzero((raw >= 0.6) | (syn >= 0.6)))
        np.testing.assert_array_equal(selected.synthetic, (raw < 0.6)[selected.rows])


class TestRules:
    def test_sizes_at_their_limits(self):
        sizes = [
            (200, 200),
            (199, 400),
            (200, 600),
            (200, 601),
            (601, 200),
            (600, 200),
            (math.nan, 300),
            (None, 300),
            (0, 0),
        ]
        source = Source(width=[w for w, _ in sizes], height=[h for _, h in sizes])
        assert FilteredSource(source, Selection(min_side=200, max_aspect=3.0)).rows.tolist() == [0, 2, 5]
        assert FilteredSource(source, Selection(max_aspect=3.0)).rows.tolist() == [0, 1, 2, 5]
        assert FilteredSource(source, Selection(min_side=200)).rows.tolist() == [0, 2, 3, 4, 5]

    def test_words_and_characters_of_the_captions_that_are_learnt_from(self):
        source = Source(
            captions=[["a b c"], ["a bcdef"], ["aa bb cc", "a b"], ["aa bb cc"]],
            blip=["x", "xx yy zz", "xx yy zz", None],
            raw=[0.9, 0.8, 0.7, 0.1],
        )
        rules = {"min_words": 3, "min_characters": 6}
        assert FilteredSource(source, Selection(**rules)).rows.tolist() == [3]
        mixed = FilteredSource(source, Selection(captions="mixed", top=0.25, **MIXED, **rules))
        assert mixed.rows.tolist() == [1, 2] and mixed.synthetic.all()

    def test_thresholds_are_of_the_whole_pool_whatever_rules_drop(self):
        source = Source(raw=[4.0, 3.0, 2.0, 1.0], width=[9, 900, 900, 900], height=[900] * 4)
        assert FilteredSource(source, Selection(score="raw", top=0.5, min_side=10)).rows.tolist() == [1]


class TestView:
    def test_building_it_reads_no_example(self):
        source = scored(50)
        selected = FilteredSource(source, Selection(captions="filtered", top=0.3, min_words=2, **FILTERED))
        assert source.read == []
        assert selected[0]["id"] == source.columns["id"][selected.rows[0]] and len(source.read) == 1

    def test_it_has_the_sources_attributes_and_columns_of_what_is_kept(self):
        source = scored(50)
        selected = pickle.loads(pickle.dumps(FilteredSource(source, Selection(captions="mixed", top=0.3, **MIXED))))
        assert selected.modalities == ("image", "depth") and selected.class_names == ("a", "b") and selected.group == 1
        assert selected.unreadable == source.unreadable
        assert selected.column("captions").tolist() == [selected[i]["captions"] for i in range(len(selected))]
        assert selected.column("id").tolist() == [selected[i]["id"] for i in range(len(selected))]
        assert selected.describe().startswith("50 of 50 examples selected: 15 with the source's captions, 35")
        assert selected.templates is None
        for index in (-1, len(selected)):
            with pytest.raises(IndexError):
                selected[index]

    def test_an_example_without_its_synthetic_caption_is_told(self):
        source = Source(blip=["one", "two"])
        selected = FilteredSource(source, Selection(captions="synthetic", synthetic="blip"))
        source.columns.pop("blip")
        with pytest.raises(Unreadable, match="100: no caption"):
            selected[0]

    def test_groups_and_columns_that_do_not_fit_are_refused(self):
        source = Source(raw=["a", "b"])
        for selection, says in [
            (Selection(score="absent", top=0.5), "column='absent'"),
            (Selection(score="raw", top=0.5), "column 'raw' holds no numbers"),
            (Selection(min_side=3), "column='width'"),
        ]:
            with pytest.raises(ConfigError, match=says):
                FilteredSource(source, selection)
        source.group = 2
        with pytest.raises(ConfigError, match="groups of 2"):
            FilteredSource(source, Selection(min_words=1))

    def test_a_source_without_columns(self):
        class Bare(source.Source):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return {"id": index, "captions": ["a"]}

        with pytest.raises(ConfigError, match="has no columns"):
            FilteredSource(Bare(), Selection(min_words=1))


class TestQuantiles:
    def test_they_are_the_fraction_of_scores_that_are_not_above(self, tmp_path):
        source = scored(50)
        values = np.random.default_rng(2).integers(0, 9, 50).astype(float)
        source.columns["own"] = np.where(np.arange(50) == 7, np.nan, values).tolist()
        with_quantiles = WithQuantiles(source, None, "own")
        known = np.delete(values, 7)
        expected = [np.mean(known <= value) for value in values]
        expected[7] = 0
        np.testing.assert_allclose(with_quantiles.column(QUANTILE), expected, rtol=1e-6)
        assert with_quantiles[3] == source[3] | {QUANTILE: np.float32(expected[3])}
        assert max(with_quantiles.column(QUANTILE)) == 1
        assert with_quantiles.describe().endswith(
            "49 of 50 examples have a 'own'; the other 1 are the first to be left out"
        )
        file = TestScoresInAFile.write(tmp_path / "s.csv", key=source.columns["key"][:9], score=values[:9].tolist())
        by_file = WithQuantiles(source, file, "score").column(QUANTILE)
        assert (by_file[:9] > 0).all() and not by_file[9:].any()

    def test_a_mixed_row_has_the_least_of_its_examples(self):
        samples = [
            Sample(id=i, key="", captions=[], fields={"quantile": q, "teacher": None, "labels": None})
            for i, q in ((4, 0.5), (7, 0.25), (9, 1.0))
        ]
        ids = np.array([[4, 7], [9, -1], [9, 7]], np.int32)
        weight = np.array([[0.5, 0.5], [1, 0], [1, 0]], np.float32)
        rows = types.SimpleNamespace(image_ids=ids, image_weight=weight, tokens=np.zeros((3, 1, 2), np.int32))
        np.testing.assert_array_equal(sample_arrays(samples, rows, slice(2))["quantile"], np.float32([0.25, 1]))
        np.testing.assert_array_equal(sample_arrays(samples, rows, slice(2, 3))["quantile"], [1])
        samples[0].fields["quantile"] = None
        assert not sample_arrays(samples, rows, slice(2))


class TestScoresInAFile:
    @staticmethod
    def write(path, **columns):
        if path.suffix == ".parquet":
            pq.write_table(pa.table(columns), path)
        else:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
            path.write_text("\n".join(map(json.dumps, rows) if path.suffix == ".jsonl" else lines))
        return str(path)

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_it_selects_what_the_same_column_of_the_source_would(self, tmp_path, ending):
        source = scored(200)
        scores = [round(value, 1) for value in source.columns["raw"]]  # with ties
        scores[5] = None
        order = np.random.default_rng(1).permutation(200)[:180].tolist()  # 20 are not in the file
        file = self.write(
            tmp_path / f"scores.{ending}",
            key=[source.columns["key"][i] for i in order],
            score=[scores[i] for i in order],
        )
        missing = set(range(200)) - set(order) | {5}
        source.columns["own"] = [math.nan if i in missing else scores[i] for i in range(200)]
        selected = FilteredSource(source, Selection(scores=file, top=0.29))
        expected = FilteredSource(source, Selection(score="own", top=0.29))
        known = sum(not math.isnan(value) for value in source.columns["own"])
        assert len(selected) == 29 * known // 100
        np.testing.assert_array_equal(selected.rows, expected.rows)
        np.testing.assert_array_equal(selected.column("score"), expected.column("own"))
        first = source.columns["key"][min(missing)]
        assert selected.describe().endswith(f"; {200 - known} have no 'score', such as {first}")
        at_least = FilteredSource(source, Selection(scores=file, minimum=0.7))
        np.testing.assert_array_equal(at_least.rows, np.flatnonzero(np.array(source.columns["own"]) >= 0.7))

    def test_ids_name_examples_where_there_are_no_keys(self, tmp_path):
        source = Source(id=[5, 3, 4, 0])
        file = self.write(tmp_path / "s.csv", id=[0, 3, 4, 9], score=[0.9, 0.1, 0.8, 1.0])
        assert FilteredSource(source, Selection(scores=file, top=1)).rows.tolist() == [1, 2, 3]
        assert FilteredSource(source, Selection(scores=file, top=0.5)).column("id").tolist() == [0]
        with_keys = self.write(tmp_path / "k.csv", key=["a"] * 4, id=[0, 3, 4, 5], score=[0.9, 0.1, 0.8, 1.0])
        assert FilteredSource(source, Selection(scores=with_keys, minimum=1.0)).column("id").tolist() == [5]

    def test_rows_of_one_image_are_matched_in_their_order_or_not_at_all(self, tmp_path):
        source = Source(key=["b", "a", "b", "a"])
        file = self.write(tmp_path / "s.csv", key=["a", "b", "a", "b"], score=[1, 2, 3, 4])
        assert ScoredSource(source, file).column("score").tolist() == [2, 1, 4, 3]
        fewer = self.write(tmp_path / "f.csv", key=["a", "b", "a"], score=[1, 2, 3])
        with pytest.raises(ConfigError, match=r"key 'b' has 1 rows, and 2 examples"):
            ScoredSource(source, fewer)

    def test_names_that_are_not_utf8_are_matched_as_files_spell_them(self, tmp_path):
        file = self.write(tmp_path / "s.parquet", key=["a", "\\udcff.jpg"], score=[0.1, 0.2])
        assert ScoredSource(Source(key=["\udcff.jpg", "b"]), file).column("score")[0] == 0.2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"key,score\nx,1", "names none of the 2 examples"),
            (b"key,score\na,high", "column 'score' holds no numbers"),
            (b"key,score\na,1,2", "line 2 has 3 fields"),
            (b"name,score\na,1", "needs 'key' or 'id'"),
            (b"key\na", "needs 'key' or 'id' and a column of scores"),
            (b"", "needs 'key' or 'id'"),
        ],
    )
    def test_a_file_that_does_not_fit_is_one_line(self, tmp_path, content, message):
        (tmp_path / "s.csv").write_bytes(content)
        with pytest.raises(ConfigError, match=message) as raised:
            FilteredSource(Source(key=["a", "b"]), Selection(scores=str(tmp_path / "s.csv"), top=0.5))
        assert "\n" not in str(raised.value) and str(raised.value).startswith("scores=")

    @pytest.mark.parametrize(("name", "file"), [("tables", "t.csv"), ("webdataset", "t.tar"), ("auto", "t.csv")])
    def test_sources_take_it_and_errors_have_the_whole_key(self, views, name, file):
        section = {"name": name, "path": str(views / file)}
        keys = [example["key"] for example in open_source(section, split="train")]
        table = self.write(views / "scores.jsonl", key=keys[::-1], score=[0, 1, 2, 3, 4, 5])
        selected = open_source(section | {"selection": {"scores": table, "top": 0.5}}, split="train")
        assert [example["key"] for example in selected] == keys[:3]
        with pytest.raises(ConfigError, match=r"^data\.source\.selection\.scores='nowhere\.csv': cannot be read"):
            open_source(section | {"selection": {"scores": "nowhere.csv", "top": 0.5}}, split="train")

    def test_damaged_parquet_and_a_file_that_is_missing(self, tmp_path):
        file = self.write(tmp_path / "s.parquet", key=["a", "b"], score=[0.1, 0.2])
        content = (tmp_path / "s.parquet").read_bytes()
        for damaged in (content[:-40], content[:20], b"", b"PAR1" + bytes(64) + b"PAR1"):
            (tmp_path / "s.parquet").write_bytes(damaged)
            with pytest.raises(ConfigError, match=r"scores=.*cannot be read"):
                ScoredSource(Source(key=["a", "b"]), file)
        with pytest.raises(ConfigError, match=r"scores=.*cannot be read"):
            ScoredSource(Source(key=["a"]), str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"captions": "best"}, "captions='best'"),
        ({"top": 0.3, "minimum": 0.2, "score": "s"}, "top=0.3: minimum=0.2"),
        ({"top": 1.2, "score": "s"}, "top=1.2"),
        ({"top": float("nan"), "score": "s"}, "top=nan"),
        ({"top": 0.3}, "score=None"),
        ({"score": "s"}, "score='s': nothing asks"),
        ({"captions": "mixed", "score": "s", "synthetic": "c"}, "captions='mixed': which"),
        ({"captions": "mixed", "score": "s", "top": 0.3}, "synthetic=None"),
        ({"captions": "filtered", "score": "s", "synthetic": "c", "top": 0.3}, "synthetic_score=None"),
        ({"captions": "synthetic"}, "synthetic=None"),
        ({"captions": "synthetic", "synthetic": "c", "top": 0.3}, "synthetic_score=None"),
        ({"synthetic": "c"}, "synthetic='c': nothing asks"),
        ({"min_words": -1}, "min_words=-1"),
        ({"max_aspect": 0.5}, "max_aspect=0.5"),
        ({"scores": "s.csv"}, "scores='s.csv': nothing asks"),
        ({"scores": "s.txt", "top": 0.5, "captions": "synthetic", "synthetic": "c"}, "synthetic_score=None"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        config.build(Selection, options, path="data.selection")


def test_it_is_a_section_of_a_configuration():
    section = config.build(Selection, {"captions": "mixed", "top": 0, **MIXED}, path="data.selection")
    assert section.top == 0 and dataclasses.asdict(section)["synthetic"] == "blip"
    with pytest.raises(ConfigError, match=r"data.selection.tops=.*did you mean 'top'"):
        config.build(Selection, {"tops": 0.3}, path="data.selection")


VIEWS = [("mug", "train"), ("cup", "train"), ("mug", "train"), ("mug", "test"), ("", "train"), ("", "train")]


@pytest.fixture
def views(tmp_path):
    """Pictures of objects, with an id and a split each, as a table and as a tar archive."""
    picture = encoded(photograph(16, 16), "PNG")
    rows = ["filepath,title,id,split", *(f"{i}.png,view {i},{id},{split}" for i, (id, split) in enumerate(VIEWS))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    for i in range(len(VIEWS)):
        (tmp_path / f"{i}.png").write_bytes(picture)
    members = [
        (f"{i}.{end}", data)
        for i, (id, split) in enumerate(VIEWS)
        for end, data in (
            ("png", picture),
            ("txt", f"view {i}".encode()),
            ("json", json.dumps({"id": id or None, "split": split}).encode()),
        )
    ]
    archives.write_tar(tmp_path / "t.tar", members)
    return tmp_path


@pytest.mark.parametrize(("name", "file"), [("tables", "t.csv"), ("auto", "t.csv"), ("webdataset", "t.tar")])
def test_columns_say_the_split_and_which_examples_are_of_one_thing(name, file, views):
    section = {"name": name, "path": str(views / file), "split_column": "split"}
    plain = open_source(section, split="train")
    assert [example["captions"] for example in plain] == [[f"view {i}"] for i in (0, 1, 2, 4, 5)]
    assert not plain.ignores_split and len(open_source(section, split="test")) == 1
    source = open_source(section | {"id_column": "id"}, split="train")
    assert [example["id"] for example in source] == source.column("id").tolist() == [0, 1, 0, 3, 4]
    assert source.rows_share_images and source.id_limit == 5
    with pytest.raises(
        ConfigError, match=r"split='val': split_column='split' has no such split; there are test, train"
    ):
        open_source(section, split="val")
    with pytest.raises(ConfigError, match=r"^data\.source\.id_column='objct': .*(no such column|no example has)"):
        open_source(section | {"id_column": "objct"}, split="train")
    batches = Batches(source, lambda texts: np.zeros((len(texts), 4), np.int32), batch_size=5, seed=0, order="stored")
    assert batches[0]["image_ids"].ravel().tolist() == batches[0]["text_ids"].ravel().tolist() == [0, 1, 0, 3, 4]


def test_examples_with_equal_captions_may_be_positives_of_each_other(tmp_path):
    captions = ["a dog", "a cat", "a dog", "a dog|a puppy", "", "a cat"]
    rows = [{"filepath": f"{i}.png", "title": [c for c in text.split("|") if c]} for i, text in enumerate(captions)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        (tmp_path / row["filepath"]).write_bytes(encoded(photograph(16, 16), "PNG"))
    source = open_source({"name": "tables", "path": str(tmp_path / "t.jsonl"), "id_column": "captions"}, split="train")
    kept = [example["captions"] for example in source]
    assert kept == [["a dog"], ["a cat"], ["a dog"], ["a dog", "a puppy"], ["a cat"]]  # without any it is left out
    assert [example["id"] for example in source] == [0, 1, 0, 3, 1]


def test_a_missing_caption_column_is_not_taken_for_that_of_ids(tmp_path):
    (tmp_path / "a.csv").write_text("image,deutsch\nx.png,ein Bild\n")
    with pytest.raises(ConfigError, match=r"^data.source.caption_columns=None: .* set it to one of 'image', 'deutsch'"):
        open_source({"name": "tables", "path": str(tmp_path / "a.csv")}, split="train")
