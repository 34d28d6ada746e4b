import gzip
import io
import os
import tarfile
import time

import fsspec
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.formats import tar_headers
from mmjax.data.storage import filesystem
from support.archives import write_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def by_tarfile(path):
    """The regular files as Python's own reader finds them."""
    with tarfile.open(path, "r:", errors="surrogateescape") as tar:
        return [(m.name.encode("utf-8", "surrogateescape"), m.offset_data, m.size) for m in tar if m.isreg()]


def found(path):
    members = tar_headers.members(str(path))
    return list(zip(members.names, members.offsets, members.sizes, strict=True))


def files(count, *, seed=0, sizes=(0, 1, 511, 512, 513, 5000)):
    random = np.random.default_rng(seed)
    return [(f"{i:05d}.bin", random.bytes(int(random.choice(sizes)))) for i in range(count)]


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_of_pythons_own_reader(tmp_path, format):
    members = files(60)
    if format != tarfile.USTAR_FORMAT:
        members += [("long/" * 60 + f"{i}.jpg", b"x" * i) for i in (0, 1, 700)]
    members += [("a/" * 60 + "in-the-prefix.jpg", b"abc"), ("ünï/ß.jpg", b"")]
    path = write_tar(tmp_path / "a.tar", members, format=format)
    assert found(path) == by_tarfile(path) and len(found(path)) == len(members)
    assert tar_headers.members(str(path)).truncation == ""
    for (name, data), (_, offset, size) in zip(members, found(path), strict=True):
        assert filesystem.read_range(str(path), offset, size) == data, name


def test_links_devices_folders_and_sparse_files_are_no_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind-{kind.decode()}.jpg")
            info.type, info.linkname, info.size = kind, "/etc/passwd" * 20, 5000  # a size without data
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("../../etc/evil.jpg")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
        info = tarfile.TarInfo("/absolute.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abs"))
    members = tar_headers.members(str(path))
    assert members.names == [b"../../etc/evil.jpg", b"/absolute.jpg"] and members.truncation == ""
    assert found(path) == by_tarfile(path)
    assert [filesystem.read_range(str(path), o, s) for o, s in zip(members.offsets, members.sizes, strict=True)] == [
        b"evil",
        b"abs",
    ]


def test_gnu_sparse_files_are_passed_over(tmp_path):
    def header(name, size, kind, *, more=0):
        block = bytearray(512)
        block[:100] = name.ljust(100, b"\0")
        block[124:136] = b"%011o\0" % size
        block[156:157] = kind
        block[257:265] = b"ustar  \0"
        block[482] = more
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    extension = bytearray(512)
    data = header(b"sparse.jpg", 512, b"S", more=1) + bytes(extension[:504] + b"\1" + extension[505:]) + bytes(512)
    data += b"s" * 512 + header(b"next.jpg", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    members = tar_headers.members(str(tmp_path / "a.tar"))
    assert members.names == [b"next.jpg"] and members.truncation == ""
    assert filesystem.read_range(str(tmp_path / "a.tar"), members.offsets[0], 3) == b"abc"


def test_pax_headers_for_one_and_for_all(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 900}) as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size, info.pax_headers = 5, {"comment": "ü" * 400, "mtime": "1.5"} if i == 1 else {}
            tar.addfile(info, io.BytesIO(b"12345"))
    assert found(path) == by_tarfile(path) and len(found(path)) == 3


def test_sizes_in_base_256_and_signed_checksums(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("ü.jpg", b"x" * 700), ("b.jpg", b"y")], format=tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    data[148:156] = b" " * 8
    signed = sum(b - 256 if b > 127 else b for b in data[:512])
    data[148:156] = b"%06o\0 " % signed
    path.write_bytes(data)
    assert [(n, s) for n, _, s in found(path)] == [("ü.jpg".encode(), 700), (b"b.jpg", 1)]


def test_names_that_are_not_utf8(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    data = bytearray(path.read_bytes())
    data[0] = 0xFF
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert [name for name, _, _ in found(path)] == [b"\xff.jpg"]


class TestDamage:
    def test_an_archive_that_ends_anywhere_keeps_what_is_whole(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", files(12), format=tarfile.GNU_FORMAT)
        whole, data = found(path), path.read_bytes()
        last = whole[-1][1] + -(-whole[-1][2] // 512) * 512
        random = np.random.default_rng(0)
        cuts = [0, 1, 511, 512, 513, last, last + 1, last + 511, *random.integers(last, size=150).tolist()]
        for cut in cuts:
            path.write_bytes(data[:cut])
            members = tar_headers.members(str(path))
            kept = [m for m in whole if m[1] + m[2] <= cut and m[1] <= cut]
            assert found(path) == kept and members.truncation, cut
            half = [name for name, start, size in whole if start <= cut < start + size]
            assert members.truncated_name == (half[0] if half else b""), cut
        path.write_bytes(data[: last + 512])  # one block of zeros is an end mark
        assert found(path) == whole and tar_headers.members(str(path)).truncation == ""

    def test_a_broken_header_ends_reading(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", files(12))
        whole, data = found(path), bytearray(path.read_bytes())
        for place in range(12):
            damaged = bytearray(data)
            damaged[whole[place][1] - 512 + 3] ^= 0x10
            path.write_bytes(damaged)
            assert found(path) == whole[:place]
            assert tar_headers.members(str(path)).truncation == f"no valid header at byte {whole[place][1] - 512}"

    def test_flipped_bits_and_noise_neither_crash_nor_hang(self, tmp_path):
        path = tmp_path / "a.tar"
        members = [*files(6), ("long/" * 40 + "name.jpg", b"x" * 20)]
        originals = [write_tar(path, members, format=format).read_bytes() for format in FORMATS[1:]]
        random = np.random.default_rng(0)
        begin = time.monotonic()
        for trial in range(600):
            data = bytearray(originals[trial % 2])
            for place in random.integers(len(data), size=random.integers(1, 30)):
                data[place] = random.integers(256)
            if trial % 3 == 0:  # with the checksum made right again, the fields themselves are tried
                for start in range(0, len(data) - 511, 512):
                    if data[start + 257 : start + 262] == b"ustar":
                        data[start + 124 + random.integers(12)] = random.integers(256)
                        data[start + 156] = random.choice(list(b"0123456789xgLKSXVMDN\0\xff"))
                        data[start + 148 : start + 156] = b" " * 8
                        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
            path.write_bytes(data)
            for name, offset, size in found(path):
                assert isinstance(name, bytes) and size >= 0
                assert len(filesystem.read_range(str(path), offset, size)) == size
        for _ in range(100):
            path.write_bytes(random.bytes(int(random.integers(3000))))
            assert found(path) == []
        assert time.monotonic() - begin < 30

    @pytest.mark.parametrize(
        "records",
        [b"0 path=x\n", b"9999999 path=x\n", b"x path=x\n", b"11 path", b"6 pathx", b"99999999999999999999999 a=b"],
    )
    def test_broken_pax_records(self, tmp_path, records):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("pax")
            info.size, info.type = len(records), b"x"
            tar.addfile(info, io.BytesIO(records))
        assert tar_headers.members(str(path)).truncation == "no valid pax header at byte 0"

    def test_headers_that_claim_much(self, tmp_path):
        path = tmp_path / "a.tar"
        for kind in (b"x", b"g", b"L", b"K"):
            info = tarfile.TarInfo("claims")
            info.size, info.type = 1 << 40, kind
            path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(5000))
            assert "claims 1099511627776 bytes" in tar_headers.members(str(path)).truncation

    def test_archives_joined_by_their_bytes_are_reported(self, tmp_path):
        one = write_tar(tmp_path / "1.tar", files(3))
        two = write_tar(tmp_path / "2.tar", files(3))
        both = tmp_path / "both.tar"
        both.write_bytes(one.read_bytes() + two.read_bytes())
        assert found(both) == found(one)
        assert "follow the end mark" in tar_headers.members(str(both)).truncation

    def test_empty(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [])
        assert tar_headers.members(str(path)) == tar_headers.Members([], [], [])
        path.write_bytes(b"")
        assert tar_headers.members(str(path)).truncation

    def test_compressed_archives_say_what_to_do(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", files(3))
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(ConfigError, match=r"path=.*gzip.*random access; decompress"):
            tar_headers.members(str(tmp_path / "a.tar.gz"))
        with pytest.raises(FileNotFoundError):
            tar_headers.members(str(tmp_path / "b.tar"))


class TestCost:
    def test_ten_thousand_members_take_little_time_and_little_reading(self, tmp_path, monkeypatch):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(10_000):
                info = tarfile.TarInfo(f"{i // 2:09d}.{'jpg' if i % 2 else 'txt'}")
                info.size = 1 << 16 if i % 2 else 30
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        read = []
        real = filesystem.read_range
        monkeypatch.setattr(filesystem, "read_range", lambda p, o, n: read.append(n) or real(p, o, n))
        begin = time.perf_counter()
        assert len(tar_headers.members(str(path)).names) == 10_000
        assert time.perf_counter() - begin < 2  # 0.1 s on an idle core
        assert sum(read) < 0.3 * os.path.getsize(path)

    def test_urls_are_read_in_few_large_pieces(self, tmp_path, monkeypatch):
        path = write_tar(tmp_path / "a.tar", files(2000))
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/archive/a.tar", path.read_bytes())
        calls = []
        real = filesystem.read_range
        monkeypatch.setattr(filesystem, "read_range", lambda p, o, n: calls.append(n) or real(p, o, n))
        assert found("memory://archive/a.tar") == by_tarfile(path)
        assert len(calls) <= os.path.getsize(path) / (1 << 20) + 3 and max(calls) <= 1 << 20
        fs.rm("/archive", recursive=True)
