import io
import os
import stat

import numpy as np
import pytest

from mmjax.data.storage import index_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("one")
    return path


class Build:
    """Counts how often it is asked."""

    def __init__(self, **arrays):
        self.arrays = arrays or {"offset": np.arange(3), "name": np.array(["a", "ü"]), "raw": np.array([b"x\xff", b""])}
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_it_is_built_once(data):
    build = Build()
    for _ in range(3):
        equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    assert build.calls == 1


def test_any_names_and_no_arrays(data):
    build = Build(**{"file": np.zeros((2, 0)), "a/b": np.float32([1]), "stamps": np.array(5), "=": np.arange(2)})
    for _ in range(2):
        equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    assert build.calls == 1
    nothing = Build()
    nothing.arrays = {}
    for _ in range(2):
        assert index_cache.load_or_build("none", [], nothing) == {} and nothing.calls == 1


def test_what_it_depends_on(data, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("one")
    build = Build()
    asked = [("table", [data]), ("table x", [data]), ("table", [other]), ("table", [data, other])]
    for number, (kind, paths) in enumerate(asked, 1):
        for _ in range(2):
            index_cache.load_or_build(kind, [str(p) for p in paths], build)
        assert build.calls == number
    data.write_text("longer")
    index_cache.load_or_build("table", [str(data)], build)
    assert build.calls == 5
    os.utime(data, ns=(5, 5))
    index_cache.load_or_build("table", [str(data)], build)
    assert build.calls == 6
    os.utime(other, ns=(5, 5))
    index_cache.load_or_build("table", [str(data), str(other)], build)
    assert build.calls == 7


def test_relative_and_absolute_names_share_an_index(data, monkeypatch):
    build = Build()
    index_cache.load_or_build("table", [str(data)], build)
    monkeypatch.chdir(data.parent)
    index_cache.load_or_build("table", ["data.csv"], build)
    assert build.calls == 1


def test_an_index_takes_the_place_of_its_older_self(data, cache):
    build = Build()
    for text in ("a", "bb", "ccc"):
        data.write_text(text)
        index_cache.load_or_build("table", [str(data)], build)
    assert build.calls == 3 and len(os.listdir(cache)) == 1


def test_what_changed_while_it_was_read_is_not_kept(data):
    build = Build()

    def changing():
        data.write_text("changed while it was read")
        return build()

    equal(index_cache.load_or_build("table", [str(data)], changing), build.arrays)
    index_cache.load_or_build("table", [str(data)], build)
    assert build.calls == 2
    index_cache.load_or_build("table", [str(data)], build)
    assert build.calls == 2


def test_a_damaged_cache_is_built_anew(data, cache):
    build = Build(offset=np.arange(50), name=np.array(["abc", "d"]))
    index_cache.load_or_build("table", [str(data)], build)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for trial in range(300):
        damaged = bytearray(good)
        if trial % 3 == 0:
            damaged = damaged[: random.integers(len(good))]
        elif trial % 3 == 1:
            for place in random.integers(len(good), size=3):
                damaged[place] ^= 1 << random.integers(8)
        else:
            damaged = bytearray(random.bytes(random.integers(len(good))))
        path.write_bytes(damaged)
        equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    assert build.calls > 200
    calls = build.calls
    index_cache.load_or_build("table", [str(data)], build)
    assert build.calls <= calls + 1


def test_every_single_wrong_bit_is_noticed(data, cache):
    build = Build(offset=np.arange(5), name=np.array(["abc", "d"]))
    index_cache.load_or_build("table", [str(data)], build)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
        assert build.calls == place + 2
    # Nor is the index of one thing taken for that of another.
    index_cache.load_or_build("other", [str(data)], Build(x=np.arange(2)))
    (other,) = set(cache.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)


def test_pickles_are_neither_written_nor_read(data, cache):
    with pytest.raises(TypeError, match="Python objects"):
        index_cache.load_or_build("table", [str(data)], Build(a=np.array([object()])))
    build = Build()
    index_cache.load_or_build("table", [str(data)], build)
    (path,) = cache.iterdir()
    with open(path, "rb") as file:
        file.seek(32)
        stamps = np.load(file)["stamps"]
    content = io.BytesIO()
    np.savez(content, stamps=stamps, names=["offset"], **{"=offset": np.array([{"a": 1}], object)})
    path.write_bytes(index_cache._checksum(str(path), [content.getvalue()]) + content.getvalue())
    equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    assert build.calls == 2


@pytest.mark.parametrize("trouble", ["a file is there", "read-only", "half written"])
def test_a_cache_that_cannot_be_written_is_no_error(data, cache, trouble, monkeypatch):
    if trouble == "a file is there":
        cache.write_text("no folder")
    elif trouble == "read-only":
        cache.mkdir()
        cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    else:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    build = Build()
    equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    equal(index_cache.load_or_build("table", [str(data)], build), build.arrays)
    if trouble == "half written":
        assert os.listdir(cache) == [] and build.calls == 2
    if trouble == "read-only":
        cache.chmod(stat.S_IRWXU)


def test_the_default_folder_is_in_the_home_folder(monkeypatch, tmp_path, data):
    monkeypatch.delenv("MMJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    index_cache.load_or_build("table", [str(data)], Build())
    assert len(list((tmp_path / ".cache" / "mmjax" / "index").iterdir())) == 1
