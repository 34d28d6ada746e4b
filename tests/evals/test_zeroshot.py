import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.zeroshot import Evaluator, class_embeddings
from support.towers import Source, Towers, data_sharding, image, reference

NAMES = ["circle", "square", "star", "cross", "ring", "moon", "cube"]
TEMPLATES = ["a {}.", "a photo of a {} on {}", "{}"]


def classes(n=41, seed=0):
    rng = np.random.default_rng(seed)
    # Unequal classes, and one that never occurs.
    labels = rng.choice(6, n, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    source = Source({"image": image(rng), "captions": ["x"], "label": int(label)} for label in labels)
    source.class_names, source.templates = list(NAMES), list(TEMPLATES)
    return source


def evaluate(source, towers, *, embedder=None, **options):
    return Evaluator(lambda split: source, **options)(towers.embedder(**(embedder or {})).bind(towers.params))


def reference_classes(towers, source, templates=TEMPLATES):
    rows = []
    for name in NAMES:
        zi, zt = reference(towers, source, [t.replace("{}", name) for t in templates])
        mean = zt.mean(0)
        rows.append(mean / np.linalg.norm(mean))
    return zi, np.stack(rows)


@pytest.mark.parametrize("seed", [0, 3])
def test_accuracies_equal_sorting_by_hand(seed):
    source, towers = classes(seed=seed), Towers(seed=seed)
    source.held_out = [False, True, False, True, False, False, False]
    zi, zc = reference_classes(towers, source)
    order = np.argsort(-(zi @ zc.T), axis=1)
    labels = np.asarray([e["label"] for e in source])
    hit = order[:, 0] == labels
    got = evaluate(source, towers)
    assert got["acc@1"] == pytest.approx(hit.mean())
    assert got["acc@5"] == pytest.approx(np.mean([y in row[:5] for y, row in zip(labels, order, strict=True)]))
    assert got["mean_per_class"] == pytest.approx(np.mean([hit[labels == y].mean() for y in set(labels)]))
    unseen = np.isin(labels, [1, 3])
    a, b = hit[~unseen].mean(), hit[unseen].mean()
    assert got["acc@1_seen"] == pytest.approx(a) and got["acc@1_held_out"] == pytest.approx(b)
    assert got["acc@1_harmonic"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
    assert (got["num_images"], got["num_classes"], got["tie_gap"]) == (41, 7, 0)
    assert got["acc@1"] != got["mean_per_class"]


def test_eight_devices_equal_one():
    source, towers = classes(), Towers()
    assert evaluate(source, towers, embedder={"batch_size": 16, "row_sharding": data_sharding()}) == evaluate(
        source, towers
    )


def test_class_embeddings_normalise_average_normalise():
    source, towers = classes(3), Towers()
    got = class_embeddings(towers.embedder().bind(towers.params).texts, NAMES, TEMPLATES)
    np.testing.assert_allclose(got, reference_classes(towers, source)[1], atol=2e-6)


def test_given_templates_replace_those_of_the_source():
    source, towers = classes(), Towers()
    zi, zc = reference_classes(towers, source, ["only {}"])
    labels = [e["label"] for e in source]
    got = evaluate(source, towers, templates=("only {}",))
    assert got["acc@1"] == pytest.approx(np.mean(np.argmax(zi @ zc.T, 1) == labels))


def test_a_source_without_templates_gets_the_usual_one():
    source = classes()
    source.templates = None
    assert Evaluator(lambda split: source).templates == ("a photo of a {}.",)


def test_classes_of_one_embedding_score_zero():
    source, towers = classes(), Towers()
    towers.params["text"] = np.ones_like(towers.params["text"])
    got = evaluate(source, towers)
    assert got["acc@1"] == got["acc@5"] == got["mean_per_class"] == 0 and got["tie_gap"] == 1
    assert evaluate(source, towers, ties="optimistic")["acc@1"] == 1


def test_what_a_source_does_not_say_is_not_reported():
    source, towers = classes(), Towers()
    source.class_names = NAMES[:5]
    for example in source:
        example["label"] %= 5
    got = evaluate(source, towers)
    assert "acc@5" not in got and "acc@1_seen" not in got
    source.held_out = [False] * 5
    assert "acc@1_harmonic" not in evaluate(source, towers)


def test_a_harmonic_mean_of_nothing_is_zero():
    source, towers = classes(), Towers()
    source.held_out = [True] + [False] * 6
    towers.params["text"] = np.ones_like(towers.params["text"])
    assert evaluate(source, towers)["acc@1_harmonic"] == 0


def test_mistakes_are_named():
    source, towers = classes(), Towers()
    with pytest.raises(ConfigError, match=r"templates.*without"):
        evaluate(source, towers, templates=("a photo", "without"))
    source.templates = []
    with pytest.raises(ConfigError, match=r"templates=\(\)"):
        evaluate(source, towers)
    source.templates = TEMPLATES
    source.held_out = [True]
    with pytest.raises(ValueError, match="held_out has 1 values for 7 classes"):
        evaluate(source, towers)
    del source.held_out
    source[4]["label"] = 7
    with pytest.raises(ValueError, match="example 4: label=7"):
        evaluate(source, towers)
    source.class_names = []
    with pytest.raises(ConfigError, match="no class_names"):
        evaluate(source, towers)
