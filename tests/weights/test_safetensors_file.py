"""safetensors files, alone and in shards: every dtype comes back bit for bit, and nothing that lies is believed."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import TensorInfo, WeightsError
from support.weight_files import write_safetensors

DTYPES = [
    np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32,
    np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
]  # fmt: skip


def test_every_dtype_and_shape_comes_back(tmp_path):
    random = np.random.default_rng(0)
    arrays = {np.dtype(dtype).name: random.integers(0, 2, (3, 1, 5)).astype(dtype) for dtype in DTYPES}
    arrays |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = open_tensors(tmp_path / "model.safetensors")
    assert file.tensors == {name: TensorInfo(a.shape, a.dtype) for name, a in arrays.items()}
    for name, array in arrays.items():
        got = file.read(name)
        assert (got.dtype, got.shape) == (array.dtype, array.shape) and got.flags.writeable
        np.testing.assert_array_equal(got, array)


def test_nothing_is_read_but_the_header_and_then_one_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(4, np.float32), "b": np.full(4, 2, np.float32)}, path)
    file = open_tensors(path)
    with open(path, "r+b") as changed:
        changed.seek(-16, os.SEEK_END)
        changed.write(np.full(4, 7, np.float32).tobytes())
    np.testing.assert_array_equal(file.read("b"), np.full(4, 7))
    np.testing.assert_array_equal(file.read("a"), np.ones(4))


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    save_file({"visual.proj": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=r"m.safetensors: holds no tensor 'visual.prj'; did you mean 'visual.proj'"):
        open_tensors(tmp_path / "m.safetensors").read("visual.prj")


ONE = ("F32", [2, 2], [0, 16])
WRONG = {
    "a longer shape": ({"x": ("F32", [2, 3], [0, 16])}, 16, "takes 24 bytes"),
    "an endless shape": ({"x": ("F32", [2**62, 2**62], [0, 16])}, 16, "shape"),
    "a negative shape": ({"x": ("F32", [-2, -2], [0, 16])}, 16, "damaged"),
    "a shape of words": ({"x": ("F32", ["2", "2"], [0, 16])}, 16, "damaged"),
    "no shape": ({"x": ("F32", None, [0, 16])}, 16, "damaged"),
    "a dtype that is none": ({"x": ("F31", [2, 2], [0, 16])}, 16, "dtype 'F31'; known: BF16"),
    "a dtype that is a list": ({"x": (["F32"], [2, 2], [0, 16])}, 16, "damaged"),
    "tensors over each other": ({"x": ONE, "y": ONE}, 16, "'y'"),
    "a gap": ({"x": ONE, "y": ("F32", [1], [20, 24])}, 24, "'y'"),
    "an end behind the file": ({"x": ONE}, 12, "truncated"),
    "more data than tensors": ({"x": ONE}, 20, "truncated or damaged"),
    "backwards": ({"x": ("F32", [0], [16, 0])}, 0, "'x'"),
    "a shape of many long numbers": ({"x": ("F32", [2**62] * 300_000, [0, 16])}, 16, "a shape of 300000 numbers"),
    "a number of many digits": ({"x": ("F32", [10**4000], [0, 16])}, 16, "damaged"),
    "a long name": ({"x" * 10**6: ("F31", [1], [0, 4])}, 4, "dtype 'F31'"),
    "a name that moves the cursor": ({"x\n\x1b[2J": ("F31", [1], [0, 4])}, 4, r"'x\n\x1b[2J'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_header_that_lies_is_one_line(tmp_path, case):
    entries, size, phrase = WRONG[case]
    path = write_safetensors(tmp_path / "m.safetensors", entries, bytes(size))
    with pytest.raises(WeightsError) as error:
        open_tensors(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and phrase in message and len(message) < 600


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"x": 3}', b'{"x": {}}', b'{"a' + b"[" * 100_000, b"\xff\xfe\x00\x00", b'{"x":NaN}  ']
)
def test_a_header_that_is_none_is_one_line(tmp_path, header):
    with pytest.raises(WeightsError) as error:
        open_tensors(write_safetensors(tmp_path / "m.safetensors", {}, b"", header=header))
    assert "\n" not in str(error.value) and "m.safetensors" in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 8, 9, 40, -1])
def test_a_truncated_file_is_one_line(tmp_path, kept):
    path = tmp_path / "m.safetensors"
    save_file({"x": np.ones((2, 2), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"m.safetensors: "):
        open_tensors(path)


def sharded(folder, weight_map):
    save_file({"a": np.ones(3, np.float32)}, folder / "model-1.safetensors")
    save_file({"b": np.zeros((2, 2), np.float16), "c": np.ones(1, np.int64)}, folder / "model-2.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map}))
    return path


def test_shards_are_one_file(tmp_path):
    one, two = "model-1.safetensors", "model-2.safetensors"
    file = open_tensors(sharded(tmp_path, {"a": one, "b": two, "c": two}))
    assert {name: info.shape for name, info in file.tensors.items()} == {"a": (3,), "b": (2, 2), "c": (1,)}
    assert file.read("b").dtype == np.float16 and file.read("c") == [1]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("../model-1.safetensors", "outside"),
        ("/etc/passwd", "outside"),
        ("model-2.safetensors", "lacks it"),
        ("model-3.safetensors", "model-3.safetensors: cannot be read"),
        ("a\0b", "no name of a file"),
        ("a\nb", r"'a\\nb', which is no name of a file"),
        ("x" * 10**6, "no name of a file"),
        ("./model-1.safetensors", "no file of tensors beside it"),
        ("device.safetensors", "not a regular file"),
        ("loop.safetensors", "cannot be read"),
    ],
)
def test_an_index_points_into_its_folder_and_at_what_is_there(tmp_path, name, phrase):
    os.symlink("/dev/zero", tmp_path / "device.safetensors")
    os.symlink("loop.safetensors", tmp_path / "loop.safetensors")
    with pytest.raises(WeightsError, match=phrase) as error:
        open_tensors(sharded(tmp_path, {"a": name}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_the_index_says_which_shard_counts(tmp_path):
    path = sharded(tmp_path, {"a": "model-3.safetensors"})
    save_file({"a": np.full(3, 7, np.float32)}, tmp_path / "model-3.safetensors")
    np.testing.assert_array_equal(open_tensors(path).read("a"), np.full(3, 7))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"index.json: "):
        open_tensors(tmp_path / "model.safetensors.index.json")


def test_an_index_does_not_lead_to_itself(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"weight_map": {"x": "a.json"}}')
    with pytest.raises(WeightsError, match=r"a.json: "):
        open_tensors(path)


def test_what_is_no_file_of_weights_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (tmp_path / "page.pt").write_text("<!doctype html>")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name, phrase in [
        ("pipe.pt", "not a regular file"), ("pointer.bin", "git lfs pull"), ("page.pt", "neither a safetensors file"),
        ("empty.npz", "neither a safetensors file"), ("none.pt", "No such file"), (".", "not a regular file"),
    ]:  # fmt: skip
        with pytest.raises(WeightsError, match=phrase):
            open_tensors(tmp_path / name)
