"""Files of torch.save without torch: views of storages as they were, and no code of a pickle is ever run."""

import contextlib
import gc
import os
import pickle
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.tensors import TensorInfo, WeightsError
from support import weight_files as files

F32 = np.arange(24, dtype=np.float32)
STATE = {
    "whole": files.tensor([2, 3, 4], count=24),
    "turned": files.tensor([4, 6], [1, 4], count=24),
    "within": files.tensor([2, 2], [3, 1], count=24, offset=5),
    "tied": files.tensor([24], count=24),
    "scalar": files.tensor([], count=24, offset=7),
    "none": files.tensor([0, 3], count=24),
    "half": files.tensor([3], key="1", count=3, storage="BFloat16Storage"),
    "steps": files.tensor([1], key="2", count=1, storage="LongStorage"),
}
STORAGES = {
    "0": (24, F32.tobytes()),
    "1": (3, np.array([1, 2, 3], ml_dtypes.bfloat16).tobytes()),
    "2": (1, np.int64([5]).tobytes()),
}
EXPECTED = {
    "whole": F32.reshape(2, 3, 4),
    "turned": F32.reshape(6, 4).T,
    "within": np.float32([[5, 6], [8, 9]]),
    "tied": F32,
    "scalar": np.float32(7),
    "none": np.zeros((0, 3), np.float32),
    "half": np.array([1, 2, 3], ml_dtypes.bfloat16),
    "steps": np.int64([5]),
}


def write(folder, instructions, form="archive"):
    pickled = files.program(instructions)
    if form == "legacy":
        return files.write_legacy(folder / "model.pt", pickled, STORAGES)
    return files.write_archive(folder / "model.pt", pickled, {key: data for key, (_, data) in STORAGES.items()})


@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_views_of_storages_are_the_tensors_that_were_saved(tmp_path, form):
    file = open_tensors(write(tmp_path, files.dictionary(STATE), form))
    assert file.tensors == {name: TensorInfo(a.shape, a.dtype) for name, a in EXPECTED.items()}
    for name, array in EXPECTED.items():
        got = file.read(name)
        assert got.dtype == array.dtype and got.flags.c_contiguous and got.flags.writeable
        np.testing.assert_array_equal(got, array)
    tied = file.read("tied")
    tied[:] = 0
    np.testing.assert_array_equal(file.read("whole"), EXPECTED["whole"])


def test_tensors_in_dictionaries_and_lists_have_the_way_to_them_as_name(tmp_path):
    inner = files.dictionary({"visual.proj": files.tensor([24], count=24)})
    several = b"](" + files.tensor([2], count=24) + files.tensor([3], count=24) + b"e"
    state = {"epoch": files.number(3), "name": files.text("x"), "state_dict": inner, "moments": several}
    file = open_tensors(write(tmp_path, files.dictionary(state)))
    assert list(file.tensors) == ["state_dict.visual.proj", "moments.0", "moments.1"]


def test_parameters_and_the_attributes_of_a_script_are_tensors_too(tmp_path):
    tensor = files.tensor([24], count=24)
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"\x88ccollections\nOrderedDict\n)RtR"
    script = b"c__torch__.model\nVisual\n)\x81}(" + files.text("proj") + tensor + b"ub"
    file = open_tensors(write(tmp_path, files.dictionary({"scale": parameter, "visual": script})))
    assert list(file.tensors) == ["scale", "visual.proj"]


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


MARKER = "was-run"
ATTACKS = {
    "system": lambda: pickle.dumps(Evil(os.system, f"touch {MARKER}"), protocol=2),
    "eval": lambda: pickle.dumps(Evil(eval, f"open('{MARKER}','w')"), protocol=2),
    "protocol 0": lambda: pickle.dumps(Evil(os.system, f"touch {MARKER}"), protocol=0),
    "protocol 5": lambda: pickle.dumps({"a": [Evil(exec, f"open('{MARKER}','w')")]}, protocol=5),
    "an instance": lambda: b"(S'touch was-run'\nios\nsystem\n.",
    "a name of torch": lambda: files.program(b"ctorch.hub\nload\n(" + files.text("x") + b"tR"),
    "a tensor's function": lambda: files.program(b"ctorch._utils\n_rebuild_tensor_v2\n}(" + files.text("x") + b"Nub"),
    "a call of a dtype": lambda: files.program(b"ctorch\nfloat32\n)R"),
    "a registered name": lambda: files.program(b"\x82\x01"),
    "a memo without end": lambda: files.program(b"}r\xff\xff\xff\x7f" + b"j\xfe\xff\xff\x7f"),
    "a string without end": lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.",
    "nothing on the stack": lambda: files.program(b"R"),
    "no mark": lambda: files.program(b"t"),
    "no end": lambda: b"\x80\x02}",
    "itself within": lambda: files.program(b"}q\x00(" + files.text("x") + b"h\x00u"),
    "a key that is a list": lambda: files.program(b"}(](" + files.number(1) + b"e" + files.number(1) + b"u"),
    "doubled forty times": lambda: files.program(b")q\x00" + b"h\x00h\x00\x86q\x00" * 40),
    "itself a thousand times within": lambda: files.program(
        b"}q\x00(" + b"".join(files.text(str(k)) + b"h\x00" for k in range(20_000)) + b"u"
    ),
    "a million instructions": lambda: files.program(b"N0" * 500_000 + b"N"),
}


@contextlib.contextmanager
def without_collections():
    """One collection of all that a suite has in memory takes seconds."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", ["plain", "archive", "legacy"])
def test_a_pickle_that_is_no_state_is_refused_and_not_run(tmp_path, monkeypatch, attack, form):
    monkeypatch.chdir(tmp_path)
    pickled, path = ATTACKS[attack](), tmp_path / "model.pt"
    if form == "plain":
        path.write_bytes(pickled)
    elif form == "archive":
        files.write_archive(path, pickled, {})
    else:
        files.write_legacy(path, pickled, {})
    with without_collections(), pytest.raises(WeightsError) as error:
        start = time.thread_time()
        open_tensors(path)
    assert time.thread_time() - start < 1
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 500
    assert not (tmp_path / MARKER).exists()


def test_the_name_that_a_pickle_asks_for_is_in_the_message(tmp_path):
    files.write_archive(tmp_path / "m.pt", ATTACKS["system"](), {})
    with pytest.raises(WeightsError, match=r"asks for 'posix\.system', .* safetensors"):
        open_tensors(tmp_path / "m.pt")


LIES = {
    "a longer shape": files.tensor([5, 5], count=24),
    "a longer stride": files.tensor([2, 2], [30, 1], count=24),
    "repeated without end": files.tensor([2**40], [0], count=24),
    "a larger storage": files.tensor([50], count=50),
    "an offset behind the end": files.tensor([2], count=24, offset=23),
    "a negative offset": files.tensor([2], count=24, offset=-1),
    "a negative shape": files.tensor([-1], count=24),
    "a negative stride": files.tensor([2], [-1], count=24, offset=3),
    "a shape of many long numbers": files.tensor([2**62] * 30_000, [0] * 30_000, count=24),
    "strides for another shape": files.tensor([2], [1, 1], count=24),
    "another storage": files.tensor([2], count=24, key="9"),
    "a storage outside": files.tensor([2], count=24, key="../../9"),
    "another kind of number": files.tensor([24], count=24, storage="DoubleStorage"),
    "a kind that is none": files.tensor([24], count=24, storage="QInt8Storage"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_a_tensor_that_lies_is_one_line(tmp_path, lie, form):
    path = write(tmp_path, files.dictionary({"x": LIES[lie]}), form)
    with pytest.raises(WeightsError) as error:
        open_tensors(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_a_truncated_file_is_one_line_wherever_it_ends(tmp_path, form):
    path = write(tmp_path, files.dictionary(STATE), form)
    whole = path.read_bytes()
    for kept in range(0, len(whole), 13):
        path.write_bytes(whole[:kept])
        with pytest.raises(WeightsError, match=r"model.pt: "):
            open_tensors(path)


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    pickled, path = files.program(files.dictionary(STATE)), tmp_path / "m.pt"
    data = {key: data for key, (_, data) in STORAGES.items()}
    with pytest.raises(WeightsError, match="big-endian"):
        open_tensors(files.write_archive(path, pickled, data, byteorder=b"big"))
    with pytest.raises(WeightsError, match="compressed"):
        open_tensors(files.write_archive(path, pickled, data, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsError, match="outside"):
        open_tensors(files.write_archive(path, pickled, data | {"../../../etc/cron.d/x": b"x"}))
    with pytest.raises(WeightsError, match="would expand"):
        files.write_archive(path, pickled, data | {"3": bytes(2**26)}, compression=zipfile.ZIP_DEFLATED)
        open_tensors(path)
    with pytest.raises(WeightsError, match="big-endian"):
        open_tensors(files.write_legacy(path, pickled, STORAGES, little_endian=False))
    with pytest.raises(WeightsError, match="no tensors"):
        open_tensors(files.write_archive(path, files.program(b"}"), {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_what_torch_itself_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    state = {"a": weight, "b": weight.T, "c": weight[1:4, ::2], "d": weight.bfloat16(), "e": torch.tensor(3)}
    state |= {"f": torch.nn.Parameter(weight.half()), "g": torch.zeros(3, dtype=torch.float8_e4m3fn)}
    for legacy in (False, True):
        if legacy:
            del state["g"]
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        file = open_tensors(tmp_path / "m.pt")
        for name, tensor in state.items():
            got = file.read(f"state_dict.{name}")
            np.testing.assert_array_equal(got.astype(np.float32), tensor.detach().float().numpy())
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).eval()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3)), tmp_path / "script.pt")
    file = open_tensors(tmp_path / "script.pt")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(file.read(name), tensor.numpy())
