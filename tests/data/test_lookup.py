import json
import pickle

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import lookup


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


class TestRows:
    def test_csv_tsv_and_jsonl_say_the_same(self, tmp_path):
        expected = [{"key": "a", "text": 'one, "two"'}, {"key": "ü", "text": "three"}]
        files = {
            "a.csv": '\ufeffkey,text\r\na,"one, ""two"""\r\n\r\nü,three\r\n',
            "a.tsv": 'key\ttext\na\t"one, ""two"""\nü\tthree',
            "a.JSONL": "".join(json.dumps(row) + "\n\n" for row in expected),
        }
        for name, content in files.items():
            found = list(lookup.rows(write(tmp_path, name, content), option="paths"))
            assert [dict(row) for _, row in found] == expected
        assert [number for number, _ in found] == [1, 3]

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.txt", "x", "not a table"),
            ("a.csv", "k,t\na,b,c\n", "line 2 has 3 fields, the first line 2"),
            ("a.csv", 'k,t\na,"b\n', "line 2: a quote is never closed"),
            ("a.csv", b"k,t\na,\xff\n", "line 2 is not UTF-8"),
            ("a.jsonl", '{"k": 1}\n{"k": \n', "line 2 is not a JSON object"),
            ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
            ("a.jsonl", "[" * 100_000, "line 1 is not a JSON object"),
        ],
    )
    def test_what_cannot_be_read_is_told_by_its_line(self, tmp_path, name, content, says):
        with pytest.raises(ConfigError, match=f"^paths='.*{name}'.*{says}"):
            list(lookup.rows(write(tmp_path, name, content), option="paths"))

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"concepts=.*cannot be read"):
            list(lookup.rows(str(tmp_path / "no.csv"), option="concepts"))

    def test_fields(self):
        assert lookup.text_of(" a\u0000  b ", where="x") == "a b" and lookup.text_of(7, where="x") == "7"
        assert lookup.name_of({"id": "12"}, "id", where="x") == 12
        assert lookup.name_of({"uid": 12}, "key", where="x", column="uid") == "12"
        for call, says in [
            (lambda: lookup.text_of(None, where="line 3"), "line 3: expected a text, found NoneType"),
            (lambda: lookup.text_of("\ud800", where="line 3"), "line 3: caption is not UTF-8"),
            (lambda: lookup.name_of({"id": "x"}, "id", where="line 3"), "line 3: 'x' is not an id"),
            (lambda: lookup.name_of({"uid": "x"}, "key", where="line 3"), "line 3: has no 'key'; its fields are uid"),
        ]:
            with pytest.raises(ConfigError, match=says):
                call()


class TestTexts:
    def test_it_is_a_dictionary_of_lists(self):
        g = np.random.default_rng(0)
        for names in ([f"k{i}" for i in range(300)], list(range(300))):
            pairs = [(names[i], f"tëxt {n}") for n, i in enumerate(g.integers(0, 250, 1000).tolist())]
            expected = {}
            for name, text in pairs:
                expected.setdefault(name, []).append(text)
            texts = pickle.loads(pickle.dumps(lookup.Texts(iter(pairs))))
            assert len(texts) == 1000
            assert all(texts[name] == expected.get(name, []) for name in names)

    def test_empty_ones(self):
        assert lookup.Texts([])["a"] == [] and len(lookup.Texts([])) == 0
        assert lookup.Texts([("a", ""), ("b", "x"), ("a", "")])["a"] == ["", ""]

    def test_it_takes_little_more_than_the_bytes(self):
        texts = lookup.Texts((i, "x" * 50) for i in range(10_000))
        assert len(pickle.dumps(texts)) < 10_000 * 80
