"""Files of weights, byte by byte: as they should be, and as they should not."""

import json
import pickle
import struct
import zipfile

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def write_safetensors(path, entries, data=b"", *, header=None):
    """``entries``: {name: (dtype, shape, (start, end))}."""
    listed = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in entries.items()}
    header = json.dumps(listed).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape, strides=None, *, key="0", count, offset=0, storage="FloatStorage"):
    """Instructions that push a tensor, as torch.save writes them."""
    if strides is None:
        strides = [1] * len(shape)
        for i in reversed(range(len(shape) - 1)):
            strides[i] = strides[i + 1] * shape[i + 1]
    stored = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    view = stored + number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def dictionary(entries):
    """Instructions that push an OrderedDict of names and instructions."""
    return b"ccollections\nOrderedDict\n)R(" + b"".join(text(k) + v for k, v in entries.items()) + b"u"


def program(instructions):
    return b"\x80\x02" + instructions + b"."


def write_archive(path, pickled, storages, *, byteorder=b"little", compression=zipfile.ZIP_STORED):
    """A file of torch.save: ``storages`` are {key: bytes}."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write_legacy(path, pickled, storages, *, little_endian=True):
    """The same before 2020: ``storages`` are {key: (count, bytes)}."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
    pickles = [pickle.dumps(value, protocol=2) for value in (1001, system)]
    keys = pickle.dumps(list(storages), protocol=2)
    data = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    path.write_bytes(LEGACY_START + b"".join(pickles) + pickled + keys + data)
    return path
