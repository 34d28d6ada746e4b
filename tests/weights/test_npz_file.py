""".npz files: arrays in any order and dtype, bfloat16 as numpy leaves it, and archives that are no such files."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import WeightsError


def test_arrays_come_back_compressed_or_not(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "params/img/kernel": random.normal(size=(3, 4)).astype(np.float32),
        "columns": np.asfortranarray(random.normal(size=(3, 4))),
        "big_endian": np.arange(4, dtype=">i4"),
        "t": np.float32([2.3]),
        "scalar": np.float16(1.5),
        "none": np.zeros((0, 2)),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "w.npz", **arrays)
        file = open_tensors(tmp_path / "w.npz")
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            got, info = file.read(name), file.tensors[name]
            assert got.flags.c_contiguous and got.dtype.isnative and (got.shape, got.dtype) == (info.shape, info.dtype)
            np.testing.assert_array_equal(got, array)


def test_bfloat16_is_recovered(tmp_path):
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "w.npz", x=array)
    file = open_tensors(tmp_path / "w.npz")
    assert file.tensors["x"].dtype == file.read("x").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(file.read("x"), array)


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def npy(array, **how):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **how)
    return stream.getvalue()


def lying(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(16)


WRONG = {
    "a longer shape": ({"x.npy": lying((5,))}, "expected 20"),
    "an endless shape": ({"x.npy": lying((2**40, 2**40))}, "16 bytes of data"),
    "a negative shape": ({"x.npy": lying((-2, -2))}, "x.npy"),
    "objects": ({"x.npy": npy([{}])}, "Python objects"),
    "a record": ({"x.npy": npy(np.zeros(2, [("a", "f4")]))}, "Python objects"),
    "words": ({"x.npy": npy(["a", "b"])}, "numbers"),
    "bytes without a meaning": ({"x.npy": npy(np.zeros(2, "V3"))}, "numbers"),
    "no array": ({"x.npy": b"hello"}, "damaged"),
    "code in the header": ({"x.npy": b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('touch x') "}, "damaged"),
    "a way out": ({"../x.npy": npy([1.0])}, "outside"),
    "an absolute path": ({"/x.npy": npy([1.0])}, "outside"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_archive_that_lies_is_one_line(tmp_path, case):
    members, phrase = WRONG[case]
    path = archive(tmp_path / "w.npz", members)
    with pytest.raises(WeightsError) as error:
        open_tensors(path)
    assert phrase in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


def test_a_bomb_is_not_opened(tmp_path):
    data = lying((2**25,))[:-16] + bytes(2**27)
    path = archive(tmp_path / "w.npz", {"x.npy": data}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(WeightsError, match="would expand"):
        open_tensors(path)


@pytest.mark.parametrize("kept", [10, 200, -1, -30])
def test_a_truncated_archive_is_one_line(tmp_path, kept):
    np.savez(tmp_path / "w.npz", x=np.ones(50))
    (tmp_path / "w.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"w.npz: "):
        open_tensors(tmp_path / "w.npz")


def test_changed_bytes_are_noticed(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, x=np.ones(50))
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"w.npz: damaged"):
        open_tensors(path).read("x")
