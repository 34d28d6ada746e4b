"""One small set of captioned images in every format that sources of tables read."""

import csv
import io
import json
import pathlib
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(number, size=4):
    data = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), number, np.uint8)).save(data, "png")
    return data.getvalue()


def examples(count=6):
    """(key, picture, captions): one to three captions, with commas, quotes, tabs in none, and other alphabets."""
    texts = ['a "red" circle, left', "one; two | three", "naïve café 日本", "plain", "it's 5\" wide, or so"]
    return [
        (f"images/{i:03d}.png", png(i), [f"{texts[(i + c) % len(texts)]} {i}-{c}" for c in range(1 + i % 3)])
        for i in range(count)
    ]


def rows(items):
    """One for each caption."""
    return [(key, caption) for key, _, captions in items for caption in captions]


def write_images(folder, items):
    for key, data, _ in items:
        path = pathlib.Path(folder) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_csv(path, items, *, separator="\t", names=("filepath", "title")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([names, *rows(items)])


def write_jsonl(path, items, *, names=("filepath", "caption"), lists=False):
    pairs = [(key, captions) for key, _, captions in items] if lists else rows(items)
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))


def write_parquet(path, items, *, names=("filepath", "caption"), **options):
    """Names of images."""
    columns = zip(*rows(items), strict=True)
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), path, **options)


def embedded(items, *, paths=False):
    """A table that holds its pictures as the ``datasets`` library does."""
    cells = [{"bytes": None if paths else data, "path": key} for key, data, _ in items]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(cells, kind), "caption": [captions for _, _, captions in items]})


def masked_crc(data):
    """CRC-32C with the rotation and offset of TFRecord, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tfrecord(records):
    """The bytes of a TFRecord file."""
    parts = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, struct.pack("<I", masked_crc(length)), record, struct.pack("<I", masked_crc(record))]
    return b"".join(parts)
