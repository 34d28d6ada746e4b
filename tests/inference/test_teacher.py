"""A teacher's embeddings reach the rows that they are of."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.train.data import open_split
from mmjax.train.setup import setup
from support import tiny

WIDTH = 5


def write_store(folder, source, kinds=("images", "texts")):
    """What ``mmjax embed`` writes; embeddings say whose they are. The last example is missing."""
    folder.mkdir()
    plan = {"model": "m", "weights": "w", "precision": "float32", "dimension": WIDTH, "kinds": list(kinds),
            "format": "parquet", "dtype": "float32", "examples": len(source), "shard_rows": 1000, "batch_size": 4,
            "source": {"name": "scenes"}, "split": "train", "modality": "image", "version": 1}  # fmt: skip
    (folder / "embeddings.json").write_text(json.dumps(plan))
    for kind in kinds:
        rows = []
        for index in range(len(source) - 1):
            example = source[index]
            common = {"index": index, "id": int(example["id"]), "key": str(example.get("key", example["id"]))}
            if kind == "images":
                rows.append(common | {"captions": example["captions"], "embedding": embedding(index)})
            else:
                rows += [common | {"caption": c, "embedding": embedding(c)} for c in example["captions"]]
        fields = [("index", pa.int64()), ("id", pa.int64()), ("key", pa.string())]
        caption = ("captions", pa.list_(pa.string())) if kind == "images" else ("caption", pa.string())
        schema = pa.schema([*fields, caption, ("embedding", pa.list_(pa.float32(), WIDTH))])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{kind}-00000-of-00001.parquet",
                       compression="none", use_dictionary=False)  # fmt: skip


def embedding(what):
    z = np.random.default_rng(sum(map(ord, str(what)))).normal(size=WIDTH)
    return (z / np.linalg.norm(z)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    source = open_split(tiny.experiment(), "train")
    write_store(root / "both", source)
    write_store(root / "images", source, kinds=("images",))
    return root


def test_rows_have_the_embeddings_of_their_picture_and_their_caption(folder):
    data = {"data__teacher": {"path": str(folder / "both")}, "data__captions_per_image": 2}
    resolved = setup(tiny.experiment(objective={"name": "distill"}, data__negatives_per_image=1, **data,
                                     data__train__negatives=("swap_color",)))  # fmt: skip
    place_of = {int(resolved.source[i]["id"]): i for i in range(48)}
    for step in range(3):
        batch = resolved.make_batches()[step]
        assert batch["image_teacher"].shape == (16, WIDTH) and batch["text_teacher"].shape == (48, WIDTH)
        assert batch["image_teacher"].dtype == np.float32
        for row, id_ in enumerate(batch["image_ids"][:, 0].tolist()):
            place = place_of[id_]
            wanted = np.zeros(WIDTH) if place == 47 else embedding(place)
            np.testing.assert_allclose(batch["image_teacher"][row], wanted, atol=1e-6)
            captions = [embedding(c) for c in resolved.source[place]["captions"]] if place < 47 else [np.zeros(WIDTH)]
            for text in batch["text_teacher"].reshape(16, 3, WIDTH)[row, :2]:
                assert min(np.abs(text - z).max() for z in captions) < 1e-6
        assert not batch["text_teacher"].reshape(16, 3, WIDTH)[:, 2].any()  # of false captions


def test_other_splits_have_none_and_a_folder_without_texts_is_refused(folder):
    experiment = tiny.experiment(data__teacher={"path": str(folder / "both")})
    assert "teacher" not in open_split(experiment, "val")[0]
    with pytest.raises(ConfigError, match=r"^data\.teacher\.path=.*holds embeddings of images, not of texts"):
        open_split(tiny.experiment(data__teacher={"path": str(folder / "images")}), "train")
