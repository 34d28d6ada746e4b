"""The same captioned pictures in every format that a source reads, as options of that source."""

import json
import pickle

import pyarrow.parquet as pq
from array_record.python import array_record_module

from mmjax.data.formats import generated_records
from mmjax.data.formats.generated_records import Record, table_of
from mmjax.data.formats.tf_example import encode
from mmjax.inference.shards import ShardFolder
from support import archives, tables
from support.pictures import encoded, photograph

SIZE = 14


def examples():
    """(name, picture, captions), the same at every call; names sort as they stand."""
    return [
        (
            f"{i:03d}",
            encoded(photograph(20, 24 + i % 3, seed=i), "PNG"),
            [f"number {i}", f"the {i}, of a few"][: 1 + i % 2],
        )
        for i in range(SIZE)
    ]


def write_questions(folder):
    """A question of each picture, in a file beside those of ``sections``."""
    items = [{"image": f"images/{key}.png", "question": texts[0], "answer": "yes"} for key, _, texts in examples()]
    (folder / "questions.json").write_text(json.dumps(items))
    return str(folder / "questions.json")


def write_faces(folder):
    """The pictures under names of UTKFace."""
    folder.mkdir()
    for i, (_, data, _) in enumerate(examples()):
        (folder / f"{10 + i}_{i % 2}_{i % 5}_201701{i:02d}.png").write_bytes(data)
    return str(folder)


def write_pairs(folder):
    """A statement about each picture and the next one, likewise."""
    keys = [f"images/{key}.png" for key, _, _ in examples()]
    pairs = zip(examples(), keys, keys[1:] + keys[:1], strict=True)
    items = [{"images": [a, b], "sentence": texts[0], "label": "True"} for (_, _, texts), a, b in pairs]
    (folder / "pairs.json").write_text(json.dumps(items))
    return str(folder / "pairs.json")


def write_expressions(folder):
    """An expression for each picture, in the files of RefCOCO."""
    refs = [
        {"ref_id": i, "ann_id": 7 * i, "image_id": i, "split": "train", "sentences": [{"sent": texts[0]}]}
        for i, (_, _, texts) in enumerate(examples())
    ]
    pictures = [
        {"id": i, "file_name": f"{key}.png", "width": 8, "height": 8} for i, (key, _, _) in enumerate(examples())
    ]
    boxes = [{"id": 7 * i, "bbox": [1, 2, 3, 4]} for i in range(len(refs))]
    (folder / "refs.p").write_bytes(pickle.dumps(refs))
    (folder / "instances.json").write_text(json.dumps({"images": pictures, "annotations": boxes}))
    return {"path": str(folder / "refs.p"), "image_root": str(folder / "images")}


def sections(folder):
    """For each file-based source, its options for the examples, written below ``folder``; alike under every split."""
    items = examples()
    named = [(f"images/{key}.png", data, captions) for key, data, captions in items]
    made = {}

    archives.write_webdataset(folder / "tars", items, shards=3, extension="png")
    made["webdataset"] = {"path": str(folder / "tars" / "{00000..00002}.tar"), "caption_lines": True}

    archives.write_folder(folder / "folder", items, extension="png", texts=True)
    made["folders"] = {"path": str(folder / "folder")}

    tables.write_images(folder / "table", named)
    tables.write_csv(folder / "table" / "t.csv", named)
    made["tables"] = {"path": str(folder / "table" / "t.csv")}
    made["auto"] = {"path": str(folder / "table" / "t.csv")}

    entries = [{"image": key, "caption": captions} for key, _, captions in named]
    (folder / "table" / "albef.json").write_text(json.dumps(entries))
    made["captions"] = {"path": str(folder / "table" / "albef.json")}

    (folder / "parquet" / "data").mkdir(parents=True)
    pq.write_table(
        tables.embedded(named), folder / "parquet" / "data" / "train-00000-of-00001.parquet", row_group_size=4
    )
    made["huggingface"] = {"path": str(folder / "parquet")}

    records = [encode({"image": [data], "captions": captions}) for _, data, captions in items]
    array_record(folder / "records", records)
    made["arrayrecord"] = {"path": str(folder / "records" / "*.array_record")}

    generated(folder / "generated", items)
    made["generated"] = {"path": str(folder / "generated")}
    return made


def generated(path, items, *, shards=2):
    folder = ShardFolder(
        path, plan_name=generated_records.PLAN, plan={}, kinds=(generated_records.KIND,),
        suffixes=(".array_record", ".parquet"), shards=shards,
    )  # fmt: skip
    records = [
        Record(id=key, image=data, captions=[{"text": text, "source": "raw", "weight": 1.0} for text in captions])
        for key, data, captions in items
    ]
    with folder.locked():
        for number in range(shards):
            own = records[number * len(records) // shards : (number + 1) * len(records) // shards]
            content = {".array_record": [record.to_bytes() for record in own], ".parquet": table_of(own)}
            folder.write(number, {(generated_records.KIND, suffix): value for suffix, value in content.items()})


def array_record(folder, records, *, shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        writer = array_record_module.ArrayRecordWriter(str(folder / f"{i}.array_record"), "group_size:1")
        for record in records[i * len(records) // shards : (i + 1) * len(records) // shards]:
            writer.write(record)
        writer.close()
