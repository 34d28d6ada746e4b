import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.winoground import Evaluator
from support.benchmarks import Planted, gray, open_source, plain
from support.towers import Source, Towers, data_sharding, image, reference


def twins(pairs=25, seed=0, kinds=("swap_color", "relation")):
    rng = np.random.default_rng(seed)
    source = Source()
    for i in range(2 * pairs):
        example = {"image": image(rng), "captions": [f"caption {rng.integers(50)} {i}", "not used"]}
        source.append(example | ({"kind": kinds[(i // 2) % len(kinds)]} if kinds else {}))
    return source


def evaluate(source, towers=None, *, embedder=None):
    towers = towers or Towers()
    return Evaluator(lambda split: source)(towers.embedder(**(embedder or {})).bind(towers.params))


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_the_definition_pair_by_pair(seed):
    source, towers = twins(seed=seed), Towers(seed=seed)
    zi, zt = reference(towers, source, [e["captions"][0] for e in source])
    rows = []
    for p in range(0, len(source), 2):
        s = zi[p : p + 2] @ zt[p : p + 2].T
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        picture = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        rows.append((source[p]["kind"], text, picture, text and picture))
    got = evaluate(source, towers)
    for column, name in enumerate(("text_score", "image_score", "group_score"), 1):
        assert got[name] == pytest.approx(np.mean([r[column] for r in rows]))
        for kind in ("swap_color", "relation"):
            assert got[f"{name}_{kind}"] == pytest.approx(np.mean([r[column] for r in rows if r[0] == kind]))
    assert got["num_pairs"] == 25 and got["tie_rate"] == 0
    assert any(r[1] != r[2] for r in rows) and got["group_score"] > 0  # the sample can tell rows from columns


def test_eight_devices_equal_one():
    assert evaluate(twins(), embedder={"batch_size": 8, "row_sharding": data_sharding()}) == evaluate(twins())


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_sees_nothing_scores_zero(tower):
    source, towers = twins(kinds=()), Towers()
    if tower == "image":
        for example in source:
            example["image"] = source[0]["image"]
    else:
        for example in source:
            example["captions"] = ["the same"]
    got = evaluate(source, towers)
    assert got["text_score"] == got["image_score"] == got["group_score"] == 0 and got["tie_rate"] == 1


def test_items_without_a_kind_have_no_scores_by_kind():
    scores, quality = {"text_score", "image_score", "group_score"}, {"tie_rate", "identical_rate"}
    assert set(evaluate(twins(kinds=()))) == scores | quality | {"num_pairs", "num_unreadable"}


def test_an_odd_number_of_items_is_refused():
    with pytest.raises(ConfigError, match="3 examples; pairs need an even number"):
        evaluate(Source(twins()[:3]))


TAGS = ("Object", "Relation", "Both")


def published_rows(pairs=6):
    """Rows as they are published, for pictures of the gray levels 2k and 2k + 1."""
    return [
        {
            "id": k,
            "image_0": f"ex_{k}_img_0",
            "image_1": f"ex_{k}_img_1",
            "caption_0": f"a {k} on b",
            "caption_1": f"b on a {k}",
            "tag": "x",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": TAGS[k % 3],
        }
        for k in range(pairs)
    ]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The benchmark in both of its layouts."""
    root = tmp_path_factory.mktemp("winoground")
    for k, row in enumerate(published_rows()):
        for i in (0, 1):
            gray(root / "jsonl" / "winoground" / "data" / "images" / f"{row[f'image_{i}']}.png", 2 * k + i)
    lines = "".join(json.dumps(row) + "\n" for row in published_rows())
    (root / "jsonl" / "winoground" / "data" / "examples.jsonl").write_text(lines)
    table = pa.Table.from_pylist(
        [
            row | {f"image_{i}": {"bytes": plain(2 * k + i), "path": f"{row[f'image_{i}']}.png"} for i in (0, 1)}
            for k, row in enumerate(published_rows())
        ]
    )
    (root / "parquet" / "winoground" / "data").mkdir(parents=True)
    pq.write_table(table, root / "parquet" / "winoground" / "data" / "test-00000-of-00001.parquet", row_group_size=4)
    return root


def measure(root, model):
    return Evaluator(open_source, **Evaluator.find(root)["winoground"])(model.bind())


TEXTS = [row[f"caption_{i}"] for row in published_rows() for i in (0, 1)]


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_published_files_give_the_scores_of_their_definition(roots, layout):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((12, 12))
    noisy = vectors + 3 * rng.standard_normal((12, 12))
    model = Planted(dict(enumerate(noisy)), dict(zip(TEXTS, vectors, strict=True)))
    rows = []
    for k, row in enumerate(published_rows()):
        s = [[model.image(2 * k + i) @ model.text(row[f"caption_{c}"]) for c in (0, 1)] for i in (0, 1)]
        text, picture = s[0][0] > s[0][1] and s[1][1] > s[1][0], s[0][0] > s[1][0] and s[1][1] > s[0][1]
        rows.append((text, picture, text and picture))
    got = measure(roots / layout, model)
    for column, name in enumerate(("text_score", "image_score", "group_score")):
        assert got[name] == pytest.approx(np.mean([row[column] for row in rows]))
        for tag, kind in enumerate(("object", "relation", "both")):
            assert got[f"{name}_{kind}"] == pytest.approx(np.mean([row[column] for row in rows[tag::3]]))
    assert got["num_pairs"] == 6 and got["num_unreadable"] == got["truncation_rate"] == 0
    assert 0 < got["group_score"] < 1 and got["group_score"] < got["text_score"] + got["image_score"] < 2
    assert all(published.metrics.keys() <= got.keys() for published in Evaluator.published)


def test_both_layouts_are_one_data_set_for_a_perfect_and_a_constant_model(roots):
    vectors = np.eye(12)
    perfect = Planted(dict(enumerate(vectors)), dict(zip(TEXTS, vectors, strict=True)))
    constant = Planted.constant(range(12), TEXTS)
    for layout in ("jsonl", "parquet"):
        assert measure(roots / layout, perfect)["group_score"] == 1
        assert measure(roots / layout, constant)["text_score"] == 0 == measure(roots / layout, constant)["image_score"]
    sources = [open_source("test", **Evaluator.find(roots / x)["winoground"]["source"]) for x in ("jsonl", "parquet")]
    assert pickle.loads(pickle.dumps(sources[1]))[3]["captions"] == sources[0][3]["captions"] == ["b on a 1"]
    assert [len(source) for source in sources] == [12, 12] and sources[0].group == sources[1].group == 2


def test_pairs_with_a_missing_or_damaged_picture_are_left_out(roots, tmp_path, caplog):
    shutil.copytree(roots / "jsonl", tmp_path, dirs_exist_ok=True)
    images = tmp_path / "winoground" / "data" / "images"
    (images / "ex_1_img_1.png").unlink()
    (images / "ex_3_img_0.png").write_bytes(b"\x89PNG damaged")
    got = measure(tmp_path, Planted.random(range(12), TEXTS))
    assert got["num_pairs"] == 4 and got["num_unreadable"] == 2 and "ex_1_img_1" in caplog.text
    for path in images.glob("*_img_0.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no pair has both.*empty image|empty image.*no pair has both"):
        measure(tmp_path, Planted.random(range(12), TEXTS))
    shutil.rmtree(images)
    assert Evaluator.find(tmp_path) == {} and "put them into winoground/images" in caplog.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "bad row"), ("[]", "bad row"), ('{"image_0": "ex_0_img_0"}', "bad row"), ("", None)],
)
def test_bad_lines_are_listed(roots, tmp_path, line, reason):
    good = json.dumps(published_rows()[0])
    (tmp_path / "examples.jsonl").write_text(f"{line}\n{good}\n")
    section = {"path": str(tmp_path / "examples.jsonl"), "image_root": str(roots / "jsonl" / "winoground/data/images")}
    source = open_source("test", name="mmjax.data.benchmarks.winoground", **section)
    assert len(source) == 2 and [why for _, why, _ in source.unreadable] == ([reason] if reason else [])
    (tmp_path / "examples.jsonl").write_text(line)
    with pytest.raises(ConfigError, match="no pair can be used"):
        open_source("test", name="mmjax.data.benchmarks.winoground", **section)
