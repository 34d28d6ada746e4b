import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.winoground import Evaluator
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
    assert set(evaluate(twins(kinds=()))) == {"text_score", "image_score", "group_score", "tie_rate", "num_pairs"}


def test_an_odd_number_of_items_is_refused():
    with pytest.raises(ConfigError, match="3 examples; pairs need an even number"):
        evaluate(Source(twins()[:3]))
