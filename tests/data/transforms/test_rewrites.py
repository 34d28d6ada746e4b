import csv
import json
import pickle

import numpy as np
import pytest
from scipy import stats

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample, Unreadable
from mmjax.data.transforms import caption_fields
from mmjax.data.transforms.rewrites import Transform
from support.samples import configured

NOTHING = np.random.default_rng(0)


def table(folder, name, rows):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def sample(key="k", number=5, captions=("the original",), **options):
    return Sample(id=number, key=key, captions=list(captions), **options)


def law(transform, s):
    out = transform(s, NOTHING)
    assert len(out.captions) == len(out.weights) and all(w > 0 for w in out.weights)
    assert abs(sum(out.weights) - 1) < 1e-12
    return {c: round(w, 12) for c, w in zip(out.captions, out.weights, strict=True)}


@pytest.fixture
def tables(tmp_path):
    """The four sources of rewrites that LaCLIP has, in other orders of rows."""
    paths = []
    for k in range(4):
        rows = [{"key": f"k{i}", "caption": f"rewrite {k} of {i}"} for i in range(20)]
        np.random.default_rng(k).shuffle(rows)
        paths.append(table(tmp_path, f"r{k}.{'jsonl' if k % 2 else 'csv'}", rows))
    return tuple(paths)


class TestRewrites:
    def test_original_and_sources_are_as_likely_and_rows_are_found_by_key(self, tables):
        transform = Transform(paths=tables)
        for i in range(20):
            expected = {"the original": 0.2} | {f"rewrite {k} of {i}": 0.2 for k in range(4)}
            assert law(transform, sample(f"k{i}")) == expected

    def test_draws_by_these_weights_are_uniform(self, tables):
        out = Transform(paths=tables)(sample("k3"), NOTHING)
        drawn = np.random.default_rng(1).choice(len(out.captions), 5000, p=out.weights)
        assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > 0.001

    def test_weights_are_of_sources_and_originals_share_theirs(self, tables):
        transform = Transform(paths=tables[:2], weights=(2, 1, 1))
        s = sample("k1", captions=("one", "two"))
        assert law(transform, s) == {"one": 0.25, "two": 0.25, "rewrite 0 of 1": 0.25, "rewrite 1 of 1": 0.25}
        s = sample("k1", captions=("one", "two"), weights=[3, 1])
        assert law(transform, s)["one"] == 0.375 and law(transform, s)["two"] == 0.125
        assert law(Transform(paths=tables[:2], weights=(0, 1, 0)), s) == {"rewrite 0 of 1": 1.0}

    @pytest.mark.parametrize("bad", ["word", "", "  ", " two\u0000", None, []])
    def test_a_rewrite_of_one_word_or_none_leaves_its_weight_to_the_originals(self, tmp_path, bad):
        rows = [{"key": "k", "caption": bad}, {"key": "other", "caption": "two words"}]
        path = table(tmp_path, "a.jsonl", rows)
        assert law(Transform(paths=path), sample()) == {"the original": 1.0}
        assert law(Transform(paths=path, weights=(0, 1)), sample()) == {"the original": 1.0}

    def test_two_words_are_enough_and_several_texts_of_a_source_share(self, tmp_path):
        path = table(
            tmp_path, "a.jsonl", [{"key": "k", "caption": ["a cat", "one", "a dog"]}, {"key": "k", "caption": "x y"}]
        )
        assert law(Transform(paths=path), sample()) == {
            "the original": 0.625, "a cat": 0.125, "a dog": 0.125, "x y": 0.125,
        }  # fmt: skip

    def test_columns_ids_and_other_names(self, tmp_path):
        path = table(tmp_path, "a.csv", [{"uid": 5, "bard": "by bard", "gpt": "by gpt"}])
        options = {"paths": path, "columns": ("bard", "gpt"), "key_column": "uid"}
        assert law(Transform(by="id", **options), sample("z", 5)).keys() == {"the original", "by bard", "by gpt"}
        assert law(Transform(by="key", **options), sample("5", 9)).keys() == {"the original", "by bard", "by gpt"}

    def test_an_example_without_a_row_is_skipped_or_keeps_its_own(self, tables):
        with pytest.raises(Unreadable, match=r"nobody: no caption \(none in .*r0.csv:caption"):
            Transform(paths=tables)(sample("nobody"), NOTHING)
        assert law(Transform(paths=tables, missing="original"), sample("nobody")) == {"the original": 1.0}

    def test_it_is_picklable_and_leaves_the_sample_alone(self, tables):
        s = sample("k2")
        transform = Transform(paths=tables)
        assert law(pickle.loads(pickle.dumps(transform)), s) == law(transform, s)
        assert s.captions == ["the original"] and s.weights is None

    def test_what_cannot_be_is_refused(self, tmp_path, tables):
        empty = tmp_path / "empty.csv"
        empty.write_text("key,caption\n")
        for options, says in [
            ({}, r"paths=\(\)"),
            ({"paths": str(empty)}, "holds no rows"),
            ({"paths": tables[0], "columns": ("text",)}, "line 2: has no 'text'; its fields are key, caption"),
            ({"paths": tables[0], "by": "id"}, "line 2: has no 'id'"),
            ({"paths": tables[0], "by": "line"}, "by='line'"),
            ({"paths": tables[0], "missing": "ignore"}, "missing='ignore'"),
            ({"paths": tables[0], "weights": (1.0,)}, r"weights=\(1.0,\): give 2"),
            ({"paths": tables[0], "weights": (0.0, 0.0)}, "weights="),
            ({"paths": tables[0], "weights": (2.0, -1.0)}, "weights="),
            ({"paths": tables[0], "weights": (float("nan"), 1.0)}, r"weights\[0\]=nan"),
            ({"paths": tables[0], "columns": ("caption", "caption")}, "columns="),
        ]:
            with pytest.raises(ConfigError, match=says):
                configured(Transform, **options)


class TestFields:
    def test_probabilities_are_of_fields_whose_texts_share(self):
        s = sample(fields={"alt": "an alt text", "blip": ["one", "two"]})
        transform = caption_fields.Transform(fields=("captions", "alt", "blip"), weights=(1, 1, 2))
        assert law(transform, s) == {"the original": 0.25, "an alt text": 0.25, "one": 0.25, "two": 0.25}

    @pytest.mark.parametrize("value", [None, "", " \u0000", []])
    def test_what_a_field_lacks_the_others_get(self, value):
        s = sample(fields={"alt": value})
        transform = caption_fields.Transform(fields=("alt", "absent", "captions"), weights=(8, 1, 1))
        assert law(transform, s) == {"the original": 1.0}
        with pytest.raises(Unreadable, match=r"k: no caption \(in alt\)"):
            caption_fields.Transform(fields=("alt",))(s, NOTHING)

    def test_a_field_of_weight_zero_is_not_taken_and_damaged_ones_are_told(self):
        s = sample(fields={"alt": b"\xff", "n": 3})
        assert law(caption_fields.Transform(fields=("captions", "alt"), weights=(1, 0)), s) == {"the original": 1.0}
        for name, reason in (("alt", "caption is not UTF-8"), ("n", "bad row")):
            with pytest.raises(Unreadable, match=f"k: {reason}"):
                caption_fields.Transform(fields=("captions", name))(s, NOTHING)

    def test_what_cannot_be_is_refused(self):
        for options in ({"fields": ()}, {"fields": ("a", "a")}, {"fields": ("a",), "weights": (1.0, 2.0)}):
            with pytest.raises(ConfigError, match="weights" if "weights" in options else "fields="):
                caption_fields.Transform(**options)
