"""From the files in which COCO and Flickr are passed on to the numbers."""

import json

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.retrieval import Evaluator
from support import archives
from support.benchmarks import Planted, gray, open_source, write_json

LEVELS = range(10, 16)
CAPTIONS = {  # ragged, with commas, and one that two images have
    level: [f"caption {level}, the {i}th"[:40] for i in range(1 + level % 3)] + ["a man, riding a wave"] * (level < 12)
    for level in LEVELS
}
TEXTS = [text for texts in CAPTIONS.values() for text in texts]


def model(seed=0):
    return Planted.random(LEVELS, TEXTS, seed=seed)


def png(root, level):
    gray(root / ".one.png", level)
    return (root / ".one.png").read_bytes()


def karpathy(root, folder, prefix):
    images = [
        {"filename": f"{level}.png", "split": "test", "sentences": [{"raw": text} for text in texts]}
        | ({"filepath": prefix} if prefix else {})
        for level, texts in CAPTIONS.items()
    ]
    images.append({"filename": "gone.png", "split": "train", "sentences": [{"raw": "another split"}]})
    write_json(folder, {"images": images, "dataset": "x"})


def albef(root, folder, prefix):
    write_json(folder, [{"image": f"{prefix}/{level}.png", "caption": texts} for level, texts in CAPTIONS.items()])


def official(root, folder, prefix):
    notes = [
        {"image_id": level, "id": i, "caption": t} for level, texts in CAPTIONS.items() for i, t in enumerate(texts)
    ]
    write_json(folder, {"images": [{"id": n, "file_name": f"{n}.png"} for n in LEVELS], "annotations": notes})


def csv(root, folder, prefix):
    folder.write_text("image,caption\n" + "".join(f"{n}.png,{t}\n" for n, texts in CAPTIONS.items() for t in texts))


def parquet(root, folder, prefix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [{"bytes": png(root, level), "path": None} for level in LEVELS]
    pq.write_table(pa.table({"image": pictures, "caption": list(CAPTIONS.values())}), folder)


def webdataset(root, folder, prefix):
    samples = [
        [(f"s{n:07}.png", png(root, n)), (f"s{n:07}.txt", "\n".join(texts).encode())] for n, texts in CAPTIONS.items()
    ]
    for shard in range(2):
        archives.write_tar(
            folder / "test" / f"{shard}.tar", [member for sample in samples[shard::2] for member in sample]
        )
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "dataset_type.txt").write_text("retrieval")


LAYOUTS = {
    "karpathy coco": (karpathy, "coco/dataset_coco.json", "coco/val2014", "val2014", "coco"),
    "karpathy flickr": (karpathy, "flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k-images", "", "flickr30k"),
    "albef coco": (albef, "coco_karpathy_test.json", "coco/images/val2014", "val2014", "coco"),
    "albef flickr": (
        albef,
        "flickr30k/flickr30k_test.json",
        "flickr30k/flickr30k-images",
        "flickr30k-images",
        "flickr30k",
    ),
    "coco's own": (official, "coco/annotations/captions_val2017.json", "coco/val2017", "", "coco_val2017"),
    "csv with commas": (csv, "flickr8k/flickr8k_test_karpathy.txt", "flickr8k/Images", "", "flickr8k"),
    "parquet": (parquet, "flickr_1k_test_image_text_retrieval/data/test-00000-of-00001.parquet", "", "", "flickr30k"),
    "webdataset": (webdataset, "wds_mscoco_captions", "", "", "coco"),
}


def write(root, layout):
    make, annotations, images, prefix, name = LAYOUTS[layout]
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    make(root, root / annotations, prefix)
    if images:
        for level in LEVELS:
            gray(root / images / f"{level}.png", level)
    return name


def written(root, layout):
    write(root, layout)
    return root


def by_hand(model):
    """R@k of float64 scores, with every caption and picture by itself."""
    z, t = (np.stack(rows) for rows in ([model.image(n) for n in LEVELS], [model.text(text) for text in TEXTS]))
    owner = np.repeat(np.arange(len(CAPTIONS)), [len(texts) for texts in CAPTIONS.values()])
    scores, own = z @ t.T, np.arange(len(CAPTIONS))[:, None] == owner
    image_rank = [(s[~o] >= s[o].max() - 1e-9).sum() for s, o in zip(scores, own, strict=True)]
    text_rank = [(np.delete(scores[:, j], owner[j]) >= scores[owner[j], j] - 1e-9).sum() for j in range(len(TEXTS))]
    return {
        f"{name}_R@{k}": np.mean(np.array(rank) < k)
        for name, rank in (("image_to_text", image_rank), ("text_to_image", text_rank))
        for k in (1, 5, 10)
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_format_gives_the_numbers_of_a_loop(tmp_path, layout):
    name = write(tmp_path, layout)
    found = Evaluator.find(tmp_path)
    assert list(found) == [name]
    planted = model()
    got = Evaluator(open_source, **found[name])(planted.bind())
    expected = by_hand(planted)
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    assert 0 < got["text_to_image_R@1"] < 1 and got["rsum"] == pytest.approx(100 * sum(expected.values()))
    assert (got["num_images"], got["num_captions"], got["num_repeated_captions"]) == (len(LEVELS), len(TEXTS), 0)
    assert got["num_truncated"] == got["num_unreadable"] == 0


LINES = {
    "token": "".join(f"{n}.jpg#{i}\t{text}\n" for n, texts in CAPTIONS.items() for i, text in enumerate(texts)),
    "results": "image_name| comment_number| comment\n"
    + "".join(f"{n}.jpg| {i}| {text}\n" for n, texts in CAPTIONS.items() for i, text in enumerate(texts)),
    "train list": json.dumps(
        [
            {"image": f"{n}.jpg", "caption": text, "image_id": f"c_{n}"}
            for n, texts in CAPTIONS.items()
            for text in texts
        ]
    ),
    "negclip": "title\tfilepath\tneg_caption\tneg_image\n"
    + "".join(f"{text}\t{n}.jpg\t['not {n}']\t[1]\n" for n, texts in CAPTIONS.items() for text in texts),
    "jsonl": "".join(json.dumps({"filepath": f"{n}.jpg", "captions": texts}) + "\n" for n, texts in CAPTIONS.items()),
}


@pytest.mark.parametrize("kind", LINES)
def test_any_other_caption_file_gives_the_same_numbers(tmp_path, kind):
    for level in LEVELS:
        gray(tmp_path / f"{level}.jpg", level)
    (tmp_path / "captions.txt").write_text(LINES[kind])
    source = {"name": "auto", "path": str(tmp_path / "captions.txt")}
    planted = model()
    got = Evaluator(open_source, split="test", source=source, merge_repeats=False)(planted.bind())
    expected = by_hand(planted)
    assert {key: got[key] for key in expected} == pytest.approx(expected)


def test_captions_are_cleaned_limited_and_merged_as_the_options_say(tmp_path):
    found = Evaluator.find(written(tmp_path, "karpathy coco"))["coco"]
    cleaned = [text.replace(",", "") for text in TEXTS]
    planted = Planted.random(LEVELS, TEXTS + cleaned, words=3)
    measure = lambda **options: Evaluator(open_source, **{**found, **options})(planted.bind())  # noqa: E731
    assert measure(max_captions=1)["num_captions"] == len(LEVELS)
    merged = measure(merge_repeats=True)
    assert (merged["num_repeated_captions"], merged["num_captions"]) == (1, len(TEXTS) - 1)
    assert measure(caption_norm="albef")["rsum"] != measure()["rsum"]
    assert measure()["num_truncated"] == sum(len(text.split()) > 3 for text in TEXTS) > 0


def test_the_first_layout_with_its_images_counts_and_a_missing_one_is_a_line(tmp_path, caplog):
    caplog.set_level("WARNING")
    write(tmp_path, "webdataset")
    write_json(tmp_path / "coco" / "dataset_coco.json", {"images": []})
    assert Evaluator.find(tmp_path)["coco"]["source"]["name"] == "webdataset"
    [line] = caplog.messages
    assert "coco/dataset_coco.json is there, but not its images; put them into coco/val2014" in line
    assert Evaluator.find(tmp_path / "wds_mscoco_captions") == {}


def test_folds_are_means_over_equal_parts(tmp_path):
    found = Evaluator.find(written(tmp_path, "webdataset"))["coco"]
    planted = model(1)
    folds = Evaluator(open_source, **found, folds=2)(planted.bind())
    assert folds["rsum"] > Evaluator(open_source, **found)(planted.bind())["rsum"]
    with pytest.raises(ConfigError, match="folds=7: must lie between 1 and the 6 images"):
        Evaluator(open_source, **found, folds=7)
