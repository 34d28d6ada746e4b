import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.sugarcrepe_pp import Evaluator
from support.benchmarks import Planted, gray, open_source, write_json
from support.towers import Source, Towers, image

KINDS = ("replace_obj", "swap_att")
LEVELS = range(20, 25)


def entries(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    return [
        {
            "id": i,
            "filename": f"{rng.choice(LEVELS):012d}.jpg",
            "caption": f"a {kind} {rng.integers(9)}",
            "caption2": f"one {kind} {rng.integers(9)}",
            "negative_caption": f"no {kind} {rng.integers(9)}",
        }
        for i in range(8 + KINDS.index(kind))
    ]


def every(key):
    return [entry[key] for kind in KINDS for entry in entries(kind)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scpp")
    for kind in KINDS:
        write_json(root / "sugarcrepe_pp" / f"{kind}.json", entries(kind))
    for level in LEVELS:
        gray(root / "coco" / "val2017" / f"{level:012d}.jpg", level)
    return root


def evaluate(root, model):
    return Evaluator(open_source, **Evaluator.find(root)["sugarcrepe_pp"])(model.bind())


def test_both_tasks_equal_their_definitions(root):
    model = Planted.random(LEVELS, every("caption") + every("caption2") + every("negative_caption"))
    mean = np.mean([model.image(int(name[:12])) for name in set(every("filename"))], axis=0)
    got, image_accuracy, text_accuracy = evaluate(root, model), [], []
    for kind in KINDS:
        with_image, blind, without = [], [], []
        for e in entries(kind):
            z = model.image(int(e["filename"][:12]))
            p, q, n = (model.text(e[key]) for key in ("caption", "caption2", "negative_caption"))
            with_image.append(z @ p > z @ n and z @ q > z @ n)
            blind.append(mean @ p > mean @ n and mean @ q > mean @ n)
            without.append(p @ q > p @ n and p @ q > q @ n)
        assert got[kind] == pytest.approx(np.mean(with_image)) and got[f"{kind}_blind"] == pytest.approx(np.mean(blind))
        assert got[f"{kind}_text"] == pytest.approx(np.mean(without))
        image_accuracy.append(np.mean(with_image))
        text_accuracy.append(np.mean(without))
    assert got["macro"] == pytest.approx(np.mean(image_accuracy))
    assert got["macro_text"] == pytest.approx(np.mean(text_accuracy))
    assert got["num_pairs"] == 2 * len(every("id")) and 0 < got["macro"] < 1 and 0 < got["macro_text"] < 1


def test_a_perfect_model_scores_one_and_a_constant_one_nothing(root):
    up, down = np.ones(12), -np.ones(12)
    true, false = every("caption") + every("caption2"), every("negative_caption")
    perfect = evaluate(root, Planted(dict.fromkeys(LEVELS, up), dict.fromkeys(true, up) | dict.fromkeys(false, down)))
    constant = evaluate(root, Planted.constant(LEVELS, true + false))
    for name in ("macro", "macro_text", *KINDS):
        assert perfect[name] == 1 and constant[name] == 0


def test_negatives_without_a_second_caption_are_refused():
    example = {"image": image(np.random.default_rng(0)), "captions": ["x"], "negatives": [("swap", "a", "b")]}
    towers = Towers()
    with pytest.raises(ConfigError, match="two true ones"):
        Evaluator(lambda split: Source([example]))(towers.embedder().bind(towers.params))
