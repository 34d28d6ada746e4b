import itertools

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.valse import Evaluator
from support.benchmarks import Planted, gray, open_source, write_json

FILES = {  # piece, collection in the annotations, name of the picture file, where it lies
    "existence": ("visual7w", "v7w_{}.jpg", "visual7w/images"),
    "counting-hard": ("visual7w", "v7w_{}.jpg", "visual7w/images"),
    "counting-adversarial": ("visual7w", "v7w_{}.jpg", "visual7w/images"),
    "plurals": ("coco2017", "{:012d}.jpg", "coco/val2017"),
    "relations": ("coco_2017", "{:012d}.jpg", "coco/val2017"),
    "actant-swap": ("SWiG", "exercising_{}.jpg", "swig/images_512"),
    "coreference-standard": ("VisDial_v1.0", "COCO_train2014_{:012d}.jpg", "coco/train2014"),
    "coreference-hard": ("VisDial_v1.0", "VisualDialog_val2018_{:012d}.jpg", "visdial/VisualDialog_val2018"),
    "foil-it": ("FOIL dataset", "COCO_val2014_{:012d}.jpg", "coco/val2014"),
}
LEVELS = range(60, 90)


def level_of(entry):
    return int(entry["image_file"].removesuffix(".jpg").split("_")[-1])


def entries(piece, valid=True):
    rng = np.random.default_rng(list(FILES).index(piece))
    collection, name, _ = FILES[piece]
    made = {}
    for i in range(9):
        votes = int(rng.integers(0, 4))
        made[f"{piece}_{i}"] = {
            "dataset": collection,
            "original_split": "test",
            "image_file": name.format(rng.choice(LEVELS)),
            "linguistic_phenomena": piece,
            "caption": f"{piece} fits {rng.integers(4)}",
            "classes": "x",
            "classes_foil": "y",
            "mturk": {"foil": 3 - votes, "caption": votes, "other": 0},
            "foil": f"{piece} foils {rng.integers(4)}",
        }
    return {key: entry for key, entry in made.items() if not valid or entry["mturk"]["caption"] >= 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("valse")
    for piece, (_, name, folder) in FILES.items():
        file = "relation" if piece == "relations" else piece  # it is passed on under both names
        write_json(root / "valse" / f"{file}.json", entries(piece, valid=False))
        for entry in entries(piece).values():
            gray(root / folder / name.format(level_of(entry)), level_of(entry))
    return root


TEXTS = [f"{piece} {word} {i}" for piece in FILES for word in ("fits", "foils") for i in range(4)]


def evaluate(root, model, **options):
    return Evaluator(open_source, **Evaluator.find(root)["valse"], **options)(model.bind())


def test_pieces_equal_a_loop_over_valid_entries(root):
    model = Planted.random(LEVELS, TEXTS)
    shown = {(FILES[p][2], level_of(e)) for p in FILES for e in entries(p).values()}
    mean = np.mean([model.image(level) for _, level in shown], axis=0)
    got, accuracies, areas = evaluate(root, model), {}, {}
    for piece in FILES:
        for suffix, image in (("", lambda e: model.image(level_of(e))), ("_blind", lambda e: mean)):
            true = [image(e) @ model.text(e["caption"]) for e in entries(piece).values()]
            false = [image(e) @ model.text(e["foil"]) for e in entries(piece).values()]
            accuracies[piece + suffix] = np.mean([t > f for t, f in zip(true, false, strict=True)])
            # Without an image equal captions tie; sums in another order would break these ties.
            pairs = [
                round(t, 9) > round(f, 9) or (round(t, 9) == round(f, 9)) / 2 for t, f in itertools.product(true, false)
            ]
            areas[piece + suffix] = np.mean(pairs)
            assert got[piece + suffix] == pytest.approx(accuracies[piece + suffix])
            assert got[f"{piece}_auroc{suffix}"] == pytest.approx(areas[piece + suffix])
    counting = ("counting-hard", "counting-adversarial")
    for suffix in ("", "_blind"):
        assert got[f"counting{suffix}"] == pytest.approx(np.mean([accuracies[p + suffix] for p in counting]))
        assert got[f"macro{suffix}"] == pytest.approx(np.mean([accuracies[p + suffix] for p in FILES]))
        assert got[f"macro_auroc{suffix}"] == pytest.approx(np.mean([areas[p + suffix] for p in FILES]))
    assert got["num_pairs"] == sum(len(entries(piece)) for piece in FILES) < 9 * len(FILES)
    assert got["num_unreadable"] == 0 and len({round(x, 6) for x in areas.values()}) > 9


def test_a_perfect_model_scores_one_and_a_constant_one_nothing(root):
    up, down = np.ones(12), -np.ones(12)
    perfect = Planted(dict.fromkeys(LEVELS, up), {text: up if "fits" in text else down for text in TEXTS})
    got, constant = evaluate(root, perfect), evaluate(root, Planted.constant(LEVELS, TEXTS))
    assert got["macro"] == got["macro_auroc"] == got["counting"] == 1
    assert constant["macro"] == constant["counting"] == 0 and constant["macro_auroc"] == 0.5


def test_collections_that_are_not_there_are_counted(root, tmp_path, caplog):
    for name in ("valse", "visual7w"):
        (tmp_path / name).symlink_to(root / name)
    options = Evaluator.find(tmp_path)["valse"]
    assert options["source"]["image_roots"] == {"visual7w": str(tmp_path / "visual7w" / "images")}
    got = Evaluator(open_source, **options)(Planted.random(LEVELS, TEXTS).bind())
    there = [piece for piece in FILES if FILES[piece][0] == "visual7w"]
    assert got["num_pairs"] == sum(len(entries(piece)) for piece in there)
    absent = {e["image_file"] for piece in FILES if piece not in there for e in entries(piece).values()}
    assert got["num_unreadable"] == len(absent) and "image_roots.coco2017/" in caplog.text
    assert "relations" not in got
    with pytest.raises(ConfigError, match=r"image_roots\.coco.*visual7w, SWiG, coco2017"):
        open_source("test", **options["source"] | {"image_roots": {"coco": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"path=.*existence\.json"):
        open_source("test", **options["source"] | {"path": str(tmp_path)})
    assert Evaluator.find(tmp_path / "none") == {}


def test_published_results_have_names_of_measured_ones(root):
    names = evaluate(root, Planted.random(LEVELS, TEXTS)).keys() | {"action-replacement"}
    assert all(published.metrics.keys() <= names for published in Evaluator.published)
