from pathlib import Path

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals import aro
from mmjax.evals.aro import Evaluator
from support.benchmarks import Planted, gray, open_source, write_json
from support.pictures import encoded

LEVELS = range(30, 42)
RELATIONS = ("on", "to the left of", "near")  # the authors leave the last one out


def entries(kind, n=60):
    """Regions of few pictures; each region has a gray level of its own."""
    rng = np.random.default_rng(len(kind))
    made = []
    for i in range(n):
        level = int(rng.choice(LEVELS))
        x, y = 4 * ((level - LEVELS[0]) % 4), 4 * ((level - LEVELS[0]) // 4)
        box = {"bbox_x": x, "bbox_y": y, "bbox_w": 4, "bbox_h": 4}
        a, b = f"{kind} {rng.integers(5)}", f"{kind} {rng.integers(5)}"
        made.append(
            {"image_id": "1", "image_path": "one.jpg", "true_caption": a + " " + b, "false_caption": b + " " + a}
        )
        if kind == "relation":
            made[-1] |= {"relation_name": RELATIONS[i % 5 % 3], "predicate": "x", **box}
        else:
            made[-1] |= {"attributes": ["red", "big"] if i % 3 else ["old", "wet"], "obj1_name": "x", **box}
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("aro")
    for kind in ("relation", "attribution"):
        write_json(root / "aro" / f"visual_genome_{kind}.json", entries(kind))
    grid = np.arange(LEVELS[0], LEVELS[0] + 12, dtype=np.uint8).reshape(3, 4).repeat(4, 0).repeat(4, 1)
    (root / "aro" / "images").mkdir()
    (root / "aro" / "images" / "one.jpg").write_bytes(encoded(np.repeat(grid[..., None], 3, 2), "PNG"))
    return root


def texts(kind):
    return [entry[key] for entry in entries(kind) for key in ("true_caption", "false_caption")]


def evaluate(root, name, model, **options):
    return Evaluator(open_source, **Evaluator.find(root)[name], **options)(model.bind())


def level_of(entry):
    return LEVELS[0] + entry["bbox_x"] // 4 + 4 * (entry["bbox_y"] // 4)


@pytest.mark.parametrize("kind", ["relation", "attribution"])
def test_means_over_groups_equal_a_loop_over_the_entries(root, kind):
    model = Planted.random(LEVELS, texts(kind))
    mean = np.mean([model.image(level) for level in {level_of(e) for e in entries(kind)}], axis=0)
    won, blind = {}, {}
    for e in entries(kind):
        group = e["relation_name"] if kind == "relation" else tuple(e["attributes"])
        same = e["true_caption"] == e["false_caption"]
        for result, z in ((won, model.image(level_of(e))), (blind, mean)):
            gap = z @ model.text(e["true_caption"]) - z @ model.text(e["false_caption"])
            result.setdefault(group, []).append(gap > 0 and not same)
    got = evaluate(root, f"aro_{kind}", model)
    for result, suffix in ((won, ""), (blind, "_blind")):
        assert got[f"micro{suffix}"] == pytest.approx(np.mean([w for group in result.values() for w in group]))
        means = {group: np.mean(w) for group, w in result.items() if kind == "relation" or len(w) >= 25}
        assert got[f"macro{suffix}"] == pytest.approx(np.mean(list(means.values())))
        if kind == "relation":
            kept = [mean for group, mean in means.items() if group != "near"]
            assert got[f"macro_asymmetric{suffix}"] == pytest.approx(np.mean(kept))
    assert got["num_groups_macro"] == (3 if kind == "relation" else 1)
    assert got["num_pairs"] == 60 and got["tie_rate"] == got["identical_rate"] > 0


def test_the_list_of_relations_and_the_least_count_are_options(root, tmp_path):
    model = Planted.random(LEVELS, texts("relation") + texts("attribution"))
    (tmp_path / "list.txt").write_text("on\n\nto the left of\n")
    ours, theirs = (evaluate(root, "aro_relation", model, left_out=x) for x in (str(tmp_path / "list.txt"), None))
    assert ours["num_groups_macro_asymmetric"] == 1 and theirs["num_groups_macro_asymmetric"] == 2
    assert ours["macro"] == theirs["macro"]
    assert evaluate(root, "aro_attribution", model, min_count=20)["num_groups_macro"] == 2  # of 20 and 40 pairs
    none = evaluate(root, "aro_attribution", model, min_count=61)
    assert none["num_groups_macro"] == 0 and "macro" not in none
    shipped = aro._read_lines(Path(aro.__file__).parent / "aro_left_out.txt")
    assert "next to" in shipped and not any("#" in name for name in shipped)  # its source stands above the list
    with pytest.raises(ConfigError, match=r"left_out=.*none\.txt"):
        evaluate(root, "aro_relation", model, left_out=str(tmp_path / "none.txt"))


def test_a_perfect_model_scores_one_and_a_constant_one_nothing(root):
    true = [e["true_caption"] for e in entries("relation") if e["true_caption"] != e["false_caption"]]
    assert evaluate(root, "aro_relation", Planted.constant(LEVELS, texts("relation")))["macro_asymmetric"] == 0
    content = [e | {"false_caption": f"not {e['true_caption']}"} for e in entries("relation")]
    write_json(root / "perfect" / "aro" / "visual_genome_relation.json", content)
    (root / "perfect" / "aro" / "images").symlink_to(root / "aro" / "images")
    up, down = np.ones(12), -np.ones(12)
    vectors = {e[key]: v for e in content for key, v in (("true_caption", up), ("false_caption", down))}
    got = evaluate(root / "perfect", "aro_relation", Planted(dict.fromkeys(LEVELS, up), vectors))
    assert true and got["micro"] == got["macro"] == got["macro_asymmetric"] == 1


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("aro_coco_order", "coco/coco_karpathy_test.json", "val2014"),
        ("aro_flickr30k_order", "flickr30k/flickr30k_test.json", "flickr30k-images"),
        ("aro_coco_order", "coco/annotations/coco_karpathy_test.json", "val2014"),  # as retrieval finds it
    ],
)
def test_a_caption_must_beat_all_of_its_shuffles(tmp_path, name, file, folder):
    rng = np.random.default_rng(0)
    captions = [
        [f"w{a} w{b} w{c} w{d} w{e}" for a, b, c, d, e in rng.integers(9, size=(1 + i % 3, 5))] for i in range(6)
    ]
    content = [{"image": f"{folder}/{i}.jpg", "caption": texts} for i, texts in enumerate(captions)]
    write_json(tmp_path / file, content)
    for i in range(6):
        gray(tmp_path / file.partition("/")[0] / folder / f"{i}.jpg", 50 + i)
    source = open_source("test", **Evaluator.find(tmp_path)[name]["source"])
    negatives = [(i, *pair) for i in range(6) for pair in source[i]["negatives"]]
    model = Planted.random(range(50, 56), [text for _, _, *pair in negatives for text in pair])
    won = {}
    for i, _, true, false in negatives:
        won.setdefault((i, true), []).append(model.image(50 + i) @ (model.text(true) - model.text(false)) > 0)
    got = evaluate(tmp_path, name, model)
    assert got["precision@1"] == pytest.approx(np.mean([all(pairs) for pairs in won.values()]))
    assert got["num_negatives"] == pytest.approx(np.mean([len(pairs) for pairs in won.values()]))
    assert got["precision@1"] < got["micro"] and {"shuffle_trigrams", "precision@1_blind"} <= got.keys()
    up, down = np.ones(12), -np.ones(12)
    planted = {false: down for *_, false in negatives} | {true: up for _, _, true, _ in negatives}
    perfect = Planted(dict.fromkeys(range(50, 56), up), planted)
    assert evaluate(tmp_path, name, perfect)["precision@1"] == 1
    assert evaluate(tmp_path, name, Planted.constant(range(50, 56), planted))["precision@1"] == 0


def test_what_is_not_there_is_not_found(root, tmp_path, caplog):
    assert Evaluator.find(root).keys() == {"aro_relation", "aro_attribution"}
    write_json(tmp_path / "visual_genome_relation.json", [])
    assert Evaluator.find(tmp_path) == {} and "put them into aro/images" in caplog.text
    assert {p.dataset for p in Evaluator.published} == {"aro_relation", "aro_attribution"}
