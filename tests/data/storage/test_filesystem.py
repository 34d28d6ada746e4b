import os
import pickle
import subprocess
import sys
import threading

import fsspec
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.storage import filesystem, open_files, path_patterns


@pytest.fixture
def memory():
    """A folder of fsspec's in-memory store."""
    fs = fsspec.filesystem("memory")
    yield lambda name, data: fs.pipe_file(f"/storage/{name}", data)
    if fs.exists("/storage"):
        fs.rm("/storage", recursive=True)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


class TestExpand:
    def test_braces_globs_joins_and_lists(self, tmp_path):
        touch(tmp_path, *[f"{i:05d}.tar" for i in range(12)], *[f"s-{i}.tar" for i in (1, 2, 10)], "a/x", "b/x")
        root = str(tmp_path)
        assert path_patterns.expand(f"{root}/{{00000..00011}}.tar") == [f"{root}/{i:05d}.tar" for i in range(12)]
        assert path_patterns.expand(f"{root}/{{00000..00010..5}}.tar") == [f"{root}/{i:05d}.tar" for i in (0, 5, 10)]
        assert path_patterns.expand(f"{root}/s-*.tar") == [f"{root}/s-{i}.tar" for i in (1, 2, 10)]
        assert path_patterns.expand(f"{root}/{{b,a}}/x::{root}/s-1.tar") == [
            f"{root}/b/x",
            f"{root}/a/x",
            f"{root}/s-1.tar",
        ]
        assert path_patterns.expand([f"{root}/s-2.tar", f"{root}/a/*"]) == [f"{root}/s-2.tar", f"{root}/a/x"]
        assert path_patterns.expand(tmp_path / "a") == [f"{root}/a"]

    def test_braces_inside_braces_and_beside_them(self):
        assert path_patterns.expand_braces("{a,b{1..3}}-{x,y}") == [
            f"{a}-{x}" for a in ("a", "b1", "b2", "b3") for x in "xy"
        ]
        assert path_patterns.expand_braces("{3..1}{08..10}") == [f"{a}{b}" for a in "321" for b in ("08", "09", "10")]
        assert path_patterns.expand_braces("{split}/{one}") == ["{split}/{one}"]
        with pytest.raises(ConfigError, match="more than"):
            path_patterns.expand_braces("{0..99999999}")
        with pytest.raises(ConfigError, match="more than"):
            path_patterns.expand_braces("{0..99999}{0..99999}")

    def test_what_is_there_as_it_is_written_is_taken_so(self, tmp_path):
        touch(tmp_path, "[a]*.tar", "a.tar")
        assert path_patterns.expand(f"{tmp_path}/[a]*.tar") == [f"{tmp_path}/[a]*.tar"]

    def test_nothing_and_half_of_it_are_errors(self, tmp_path):
        touch(tmp_path, "0.tar", "2.tar")
        with pytest.raises(ConfigError, match=r"path=.*no file matches"):
            path_patterns.expand(f"{tmp_path}/*.zip")
        with pytest.raises(ConfigError, match=r"images=.*no such file or folder"):
            path_patterns.expand(f"{tmp_path}/9.tar", key="images")
        with pytest.raises(ConfigError, match=r"1 of 3 do not exist, such as '.*/1.tar'"):
            path_patterns.expand(f"{tmp_path}/{{0..2}}.tar")
        with pytest.raises(ConfigError, match="twice"):
            path_patterns.expand(f"{tmp_path}/0.tar::{tmp_path}/*.tar")
        for nothing in ("", [], [""], 3, [None]):
            with pytest.raises(ConfigError, match="expected a path"):
                path_patterns.expand(nothing)

    def test_pipes_and_devices_are_no_data(self, tmp_path):
        os.mkfifo(tmp_path / "a.csv")
        for path in (f"{tmp_path}/a.csv", f"{tmp_path}/*", "/dev/zero"):
            with pytest.raises(ConfigError, match="neither a file nor a folder"):
                path_patterns.expand(path)

    def test_a_split_that_is_not_there_is_answered_with_those_that_are(self, tmp_path):
        touch(tmp_path, "train/0.tar", "val/0.tar", "val/1.tar", "c-train.csv", "c-test.csv")
        assert path_patterns.expand(f"{tmp_path}/{{split}}/{{0..1}}.tar", split="val") == [
            f"{tmp_path}/val/{i}.tar" for i in (0, 1)
        ]
        with pytest.raises(ConfigError, match=r"split='test'.*there are train, val$"):
            path_patterns.expand(f"{tmp_path}/{{split}}/*.tar", split="test")
        with pytest.raises(ConfigError, match=r"split='dev'.*there are test, train$"):
            path_patterns.expand(f"{tmp_path}/c-{{split}}.csv", split="dev")
        assert path_patterns.list_splits(f"{tmp_path}/{{split}}/0.tar") == ["train", "val"]

    def test_home(self, tmp_path, monkeypatch):
        touch(tmp_path, "x.csv")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert path_patterns.expand("~/x.csv") == [f"{tmp_path}/x.csv"] and filesystem.read("~/x.csv") == b"x.csv"

    def test_urls(self, tmp_path, memory):
        for i in (1, 2, 10):
            memory(f"{i}.tar", b"x")
        assert path_patterns.expand("memory://storage/*.tar") == [f"memory:///storage/{i}.tar" for i in (1, 2, 10)]
        assert path_patterns.expand("memory://storage/{1..2}.tar") == [f"memory://storage/{i}.tar" for i in (1, 2)]
        touch(tmp_path, "1.tar")
        assert path_patterns.expand(f"file://{tmp_path}/*.tar::memory://storage/2.tar") == [
            f"{tmp_path}/1.tar",
            "memory://storage/2.tar",
        ]
        with pytest.raises(ConfigError, match="no such file"):
            path_patterns.expand("memory://storage/3.tar")
        with pytest.raises(ConfigError, match=r"1 of 2 do not exist"):
            path_patterns.expand("memory://storage/{2..3}.tar")
        with pytest.raises(ConfigError, match=r"path='nosuch://.*://"):
            path_patterns.expand("nosuch://x/y")


class TestJoin:
    def test_names_stay_in_the_folder(self):
        assert filesystem.join("/d", "a/b.jpg") == "/d/a/b.jpg"
        assert filesystem.join("/d", "./a/../b.jpg") == "/d/b.jpg"
        assert filesystem.join("memory://d", "b.jpg") == "memory://d/b.jpg"
        assert filesystem.join("/d", "..b.jpg") == "/d/..b.jpg"
        for name in ("/etc/passwd", "..", "../x", "a/../../x", "", ".", "a/..", "s3://b/x", "//x", "a\0b"):
            with pytest.raises(Unreadable) as error:
                filesystem.join("/d", name)
            assert error.value.reason == "bad row"


def first_byte(path):
    return filesystem.read_range(path, 0, 1)


class TestRead:
    def test_local_files_and_urls_give_the_same(self, tmp_path, memory):
        data = np.random.default_rng(0).bytes(5000)
        (tmp_path / "f").write_bytes(data)
        memory("f", data)
        for path in (f"{tmp_path}/f", f"file://{tmp_path}/f", "memory://storage/f"):
            assert filesystem.exists(path) and not filesystem.is_folder(path) and filesystem.size(path) == 5000
            assert filesystem.read(path) == data
            assert filesystem.read_range(path, 0, 0) == b"" and filesystem.read_range(path, 17, 100) == data[17:117]
            assert filesystem.read_range(path, 4999, 1) == data[-1:]
            for offset, length in ((4999, 2), (5000, 1), (10**12, 1)):
                with pytest.raises(Unreadable, match="beyond the end"):
                    filesystem.read_range(path, offset, length)
            with pytest.raises(ValueError, match="negative"):
                filesystem.read_range(path, -1, 5)
            with filesystem.open_file(path) as file:
                assert file.seek(4000) == 4000 and file.read() == data[4000:]
            for name in ("read", "size", "stamp", "open_file", "list_names"):
                with pytest.raises(FileNotFoundError):
                    getattr(filesystem, name)(path + "x")
            with pytest.raises(FileNotFoundError):
                filesystem.read_range(path + "x", 0, 1)
            assert not filesystem.exists(path + "x") and not filesystem.is_folder(path + "x")

    def test_only_regular_files_are_opened(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (f"{tmp_path}/pipe", "/dev/zero", str(tmp_path)):
            for read in (filesystem.read, filesystem.open_file, filesystem.size, first_byte):
                with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
                    read(path)

    def test_a_limit_of_size(self, tmp_path, memory):
        with open(tmp_path / "terabyte", "wb") as file:
            file.truncate(1 << 40)
        memory("large", bytes((1 << 20) + 1))
        memory("small", bytes(1 << 20))
        for path in (f"{tmp_path}/terabyte", "memory://storage/large"):
            with pytest.raises(Unreadable, match=r"file too large .*max_mib=1") as error:
                filesystem.read(path, max_mib=1)
            assert error.value.reason == "file too large"
        assert len(filesystem.read("memory://storage/small", max_mib=1)) == 1 << 20
        assert filesystem.read("/proc/self/pagemap", max_mib=1) == b""

    def test_folders(self, tmp_path, memory):
        touch(tmp_path, "b/x", "a", "B", "10", "9")
        for name in ("b/x", "a", "B", "10", "9"):
            memory(name, b"")
        for folder in (str(tmp_path), "memory://storage", "memory://storage/"):
            assert filesystem.is_folder(folder)
            assert filesystem.list_entries(folder) == [(n, n == "b") for n in ("10", "9", "B", "a", "b")]
            assert filesystem.list_names(folder) == ["10", "9", "B", "a", "b"]
            with pytest.raises(NotADirectoryError):
                filesystem.list_names(filesystem.join(folder, "a"))

    def test_a_range_of_a_url_transfers_no_more(self, memory, monkeypatch):
        memory("f", bytes(1 << 20))
        asked = []
        cls = type(fsspec.filesystem("memory"))
        real = cls.cat_file
        monkeypatch.setattr(
            cls,
            "cat_file",
            lambda self, p, start=None, end=None: asked.append((start, end)) or real(self, p, start, end),
        )
        filesystem.read_range("memory://storage/f", 1000, 24)
        assert asked == [(1000, 1024)]
        monkeypatch.setattr(cls, "cat_file", lambda self, p, start=None, end=None: bytes(1 << 20))
        with pytest.raises(OSError, match="whole files"):
            filesystem.read_range("memory://storage/f", 1000, 24)

    def test_stamps_change_with_the_file(self, tmp_path, memory):
        touch(tmp_path, "f")
        memory("f", b"1")
        for path, write in ((f"{tmp_path}/f", (tmp_path / "f").write_bytes), ("memory://storage/f", None)):
            first = filesystem.stamp(path)
            assert filesystem.stamp(path) == first
            write(b"12") if write else memory("f", b"12")
            second = filesystem.stamp(path)
            if write:
                os.utime(path, ns=(1, 1))
            else:
                memory("f", b"13")
            assert len({first, second, filesystem.stamp(path)}) == 3
        paths = ["memory://storage/f", f"{tmp_path}/f"]
        assert filesystem.stamps(paths) == [filesystem.stamp(path) for path in paths]

    def test_a_replaced_file_is_read_anew_once_its_stamp_was_asked_for(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"old")
        assert filesystem.read_range(str(path), 0, 3) == b"old"
        (tmp_path / "g").write_bytes(b"new")
        os.replace(tmp_path / "g", path)
        filesystem.stamp(str(path))
        assert filesystem.read_range(str(path), 0, 3) == b"new"


class TestOpenFiles:
    def test_their_number_is_bounded(self, tmp_path):
        touch(tmp_path, *[str(i) for i in range(3 * open_files.LIMIT)])
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for _ in range(2):
            for i in range(3 * open_files.LIMIT):
                assert filesystem.read_range(f"{tmp_path}/{i}", 0, 1) == str(i)[:1].encode()
        if before:
            assert len(os.listdir("/proc/self/fd")) - before <= open_files.LIMIT

    def test_threads_that_push_each_others_files_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr(open_files, "LIMIT", 2)
        contents = [np.random.default_rng(i).bytes(1000) for i in range(8)]
        for i, data in enumerate(contents):
            (tmp_path / str(i)).write_bytes(data)
        wrong = []

        def read(seed):
            random = np.random.default_rng(seed)
            for file, offset in zip(random.integers(8, size=400), random.integers(900, size=400), strict=True):
                try:
                    if filesystem.read_range(f"{tmp_path}/{file}", int(offset), 100) != contents[file][offset:][:100]:
                        wrong.append(file)
                except OSError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_reads_though_the_lock_was_held(self, tmp_path):
        code = (
            "import os, sys\n"
            "from mmjax.data.storage import filesystem, open_files\n"
            "path = sys.argv[1]\n"
            "filesystem.read_range(path, 0, 1)\n"
            "open_files.FILES._lock.acquire()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os._exit(0 if filesystem.read_range(path, 1, 2) == b'bc' else 1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        (tmp_path / "f").write_bytes(b"abcd")
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "0", done.stderr


def test_errors_travel_between_processes():
    with pytest.raises(Unreadable) as error:
        filesystem.join("/d", "../x")
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.reason, again.detail, again.key) == (error.value.reason, error.value.detail, "../x")
