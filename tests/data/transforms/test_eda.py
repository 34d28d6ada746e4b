import collections
import json
import pickle

import numpy as np
import pytest
from scipy import stats

from mmjax.core.config import ConfigError
from mmjax.data.sample import Sample
from mmjax.data.transforms.eda import Transform
from support.samples import configured

CAPTION = "a quick brown fox jumps over the lazy dog , again"
WORDS = CAPTION.split()


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.jsonl"
    rows = [{"word": "Quick", "synonym": ["fast", "rapid_fire", "quick"]}, {"word": "dog", "synonym": "hound"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def only(edit, alpha=0.1, **options):
    return Transform(**{"probability": 1.0, "swap": 0.0, "delete": 0.0} | options | {edit: alpha})


def edited(transform, caption=CAPTION, draws=300):
    for k in range(draws):
        s = Sample(id=1, key="k", captions=[caption])
        out = transform(s, np.random.default_rng(k))
        assert s.captions == [caption]
        yield out.captions[0].split()


class TestEdits:
    def test_replacement_takes_synonyms_at_the_words_places(self, synonyms):
        seen = collections.Counter()
        for words in edited(only("replace", synonyms=synonyms, insert=0.0)):
            text = " ".join(words)
            seen[text.replace("rapid fire", "fast2")] += 1
        base = CAPTION.split(" ")
        expected = set()
        for place, new in ((1, "fast"), (1, "fast2"), (8, "hound")):
            expected.add(" ".join([*base[:place], new, *base[place + 1 :]]))
        assert set(seen) == expected
        hound = sum(n for text, n in seen.items() if "hound" in text)
        assert abs(hound / 300 - 0.5) < 0.1

    def test_replacement_keeps_punctuation_and_changes_no_more_than_n(self, synonyms):
        transform = only("replace", 1.0, synonyms=synonyms, insert=0.0)
        for words in edited(transform, 'DOG, (dog)! "dog\'s" dogma', draws=5):
            assert words == ["hound,", "(hound)!", '"dog\'s"', "dogma"]
        for words in edited(only("replace", 0.4, synonyms=synonyms, insert=0.0), "dog " * 10, draws=20):
            assert words.count("hound") == 4

    def test_insertion_adds_n_synonyms_anywhere(self, synonyms):
        places = collections.Counter()
        for words in edited(only("insert", 0.1, synonyms=synonyms, replace=0.0), "one dog two", draws=800):
            assert [w for w in words if w != "hound"] == ["one", "dog", "two"] and len(words) == 4
            places[words.index("hound")] += 1
        assert stats.chisquare([places[k] for k in range(4)]).pvalue > 0.001
        for words in edited(only("insert", 0.5, synonyms=synonyms, replace=0.0), "one dog two four", draws=20):
            assert words.count("hound") == 2

    def test_one_swap_exchanges_any_two_words(self):
        pairs = collections.Counter()
        for words in edited(only("swap"), "a b c d", draws=900):
            changed = tuple(k for k in range(4) if words[k] != "abcd"[k])
            assert len(changed) == 2 and sorted(words) == list("abcd")
            pairs[changed] += 1
        assert len(pairs) == 6 and stats.chisquare(list(pairs.values())).pvalue > 0.001
        assert all(sorted(w) == sorted(WORDS) for w in edited(only("swap", 0.9), draws=20))

    def test_deletion_takes_each_word_with_its_probability_in_order_and_leaves_one(self):
        kept = np.zeros(len(WORDS))
        for words in edited(only("delete", 0.3), draws=1000):
            rest = iter(WORDS)
            assert all(word in rest for word in words)
            kept += [word in words for word in WORDS]
        assert abs(kept / 1000 - 0.7).max() < 0.06
        last = collections.Counter(tuple(words) for words in edited(only("delete", 1.0), "a b c", draws=600))
        assert set(last) == {("a",), ("b",), ("c",)} and stats.chisquare(list(last.values())).pvalue > 0.001

    @pytest.mark.parametrize("caption", ["", "   ", "word", "dog", "!?", "\u2003"])
    def test_short_captions_survive_all_edits(self, synonyms, caption):
        transform = Transform(probability=1.0, synonyms=synonyms, swap=1.0, delete=1.0)
        for words in edited(transform, caption, draws=40):
            assert bool(words) == bool(caption.split())


class TestChoice:
    def test_edits_that_are_on_are_as_likely(self, synonyms):
        kinds = collections.Counter()
        for words in edited(Transform(probability=1.0, synonyms=synonyms, delete=1.0), "dog b c d e", draws=1200):
            if len(words) == 1:
                kinds["delete"] += 1
            elif len(words) == 6:
                kinds["insert"] += 1
            else:
                kinds["replace" if "hound" in words else "swap"] += 1
        assert len(kinds) == 4 and stats.chisquare(list(kinds.values())).pvalue > 0.001

    def test_without_a_table_the_first_two_are_off(self):
        for words in edited(Transform(probability=1.0, delete=0.0)):
            assert sorted(words) == sorted(WORDS)
            assert words != WORDS

    def test_the_probability_is_that_of_a_caption(self):
        changed = [words != WORDS for words in edited(Transform(probability=0.3, delete=0.0), draws=1000)]
        assert abs(np.mean(changed) - 0.3) < 0.05
        s = Sample(id=1, key="k", captions=["  as  it is "])
        assert Transform(probability=0.0)(s, np.random.default_rng(0)).captions == ["  as  it is "]

    def test_it_is_deterministic_and_picklable(self, synonyms):
        transform = Transform(synonyms=synonyms)
        assert list(edited(transform)) == list(edited(pickle.loads(pickle.dumps(transform))))

    def test_what_cannot_be_is_refused(self, tmp_path):
        table = tmp_path / "s.csv"
        table.write_text("word,synonym\ncat,cat\n")
        for options, says in [
            ({"replace": 0.1}, r"replace=0\.1: needs a table"),
            ({"insert": 0.1}, r"insert=0\.1: needs a table"),
            ({"swap": 0.0, "delete": 0.0}, "no edit is left"),
            ({"swap": 1.5}, r"swap=1\.5"),
            ({"probability": -1.0}, r"probability=-1\.0"),
            ({"synonyms": str(table)}, "holds no synonyms"),
        ]:
            with pytest.raises(ConfigError, match=says):
                configured(Transform, **options)
