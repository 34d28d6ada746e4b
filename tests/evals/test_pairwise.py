import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.pairwise import Evaluator
from support.towers import Source, Tokenizer, Towers, data_sharding, image, reference

KINDS = ("replace_shape", "swap_obj", "add_att")


def pairs(n=23, seed=0):
    rng = np.random.default_rng(seed)
    source = Source()
    for i in range(n):
        # Ragged: from none to all kinds.
        negatives = [(kind, f"true {rng.integers(9)}", f"false {rng.integers(9)}") for kind in KINDS[: i % 4]]
        source.append({"image": image(rng), "captions": ["x"]} | ({"negatives": negatives} if negatives else {}))
    return source


def evaluate(source, towers=None, *, embedder=None, **options):
    towers = towers or Towers()
    return Evaluator(lambda split: source, **options)(towers.embedder(**(embedder or {})).bind(towers.params))


@pytest.mark.parametrize("seed", [0, 1])
def test_accuracies_equal_pair_by_pair_scores(seed):
    source, towers = pairs(seed=seed), Towers(seed=seed)
    won, blind = {}, {}
    mean = reference(towers, source, ["x"])[0].mean(0)
    for example in source:
        for kind, true, false in example.get("negatives", ()):
            (z,), (t, f) = reference(towers, [example], [true, false])
            won.setdefault(kind, []).append(z @ t > z @ f)
            blind.setdefault(kind, []).append(mean @ t > mean @ f)
    got = evaluate(source, towers)
    for kind in KINDS:
        assert got[kind] == pytest.approx(np.mean(won[kind]))
        assert got[f"{kind}_blind"] == pytest.approx(np.mean(blind[kind]))
    assert got["macro"] == pytest.approx(np.mean([np.mean(won[k]) for k in KINDS]))
    assert got["macro_blind"] == pytest.approx(np.mean([np.mean(blind[k]) for k in KINDS]))
    assert got["micro"] == pytest.approx(np.mean(np.concatenate(list(won.values()))))
    assert got["num_pairs"] == sum(map(len, won.values()))
    assert got["macro"] != got["micro"]


def test_eight_devices_equal_one():
    assert evaluate(pairs(), embedder={"batch_size": 16, "row_sharding": data_sharding()}) == evaluate(pairs())


def test_captions_that_tokenise_equally_are_ties_and_lost():
    source = pairs()
    got = evaluate(source, embedder={"tokenizer": Tokenizer(context_length=1)})
    # One letter is left of each caption, "t" or "f": no ties. Equal sentences: nothing but ties.
    assert got["tie_rate"] == 0
    for example in source:
        example["negatives"] = [(k, t + " tail", t + " other") for k, t, _ in example.get("negatives", ())]
    got = evaluate(source, embedder={"tokenizer": Tokenizer(context_length=6)})
    assert got["tie_rate"] == 1 and got["macro"] == got["micro"] == got["macro_blind"] == 0


def test_a_model_without_a_number_wins_nothing():
    towers = Towers()
    towers.params["image"][:] = np.nan
    assert evaluate(pairs(), towers)["macro"] == 0


def test_only_the_kinds_asked_for():
    got = evaluate(pairs(), kinds=("swap_obj",))
    assert "replace_shape" not in got and got["macro"] == got["swap_obj"] == evaluate(pairs())["swap_obj"]


def test_mistakes_are_named():
    source = pairs()
    with pytest.raises(ConfigError, match=r"kinds=.*swap_att.*add_att, replace_shape, swap_obj"):
        evaluate(source, kinds=("swap_att",))
    with pytest.raises(ConfigError, match=r"split='val'.*no example has negatives"):
        evaluate(Source(source[:1]))
