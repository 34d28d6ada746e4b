import itertools
import shutil

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.common.linear_models import GRID, fit_logistic, fit_ridge, make_folds
from mmjax.evals.linear_probe import Evaluator
from support import archives
from support.benchmarks import Planted, gray, open_source
from support.towers import Source, Towers, image, reference


def problem(n=40, width=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    centers = rng.standard_normal((classes, width))
    return (centers[labels] + 0.8 * rng.standard_normal((n, width))).astype(np.float32), labels


@pytest.mark.parametrize("n", [5, 40])  # fewer images than dimensions, and more
def test_ridge_solves_the_normal_equations_and_chooses_by_cross_validation(n):
    x, labels = problem(n)
    y, x64 = np.eye(3)[labels], x.astype(np.float64)

    def solve(rows, l2):
        x, target = x64[rows] - x64[rows].mean(0), y[rows] - y[rows].mean(0)
        gram = x.T @ x
        weights = np.linalg.solve(gram + l2 * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ target)
        return weights, y[rows].mean(0) - x64[rows].mean(0) @ weights

    for l2 in GRID:
        model = fit_ridge(x, labels, 3, grid=(l2,))
        weights, bias = solve(np.ones(n, bool), l2)
        np.testing.assert_allclose(model.weights, weights, atol=1e-6)
        np.testing.assert_allclose(model.bias, bias, atol=1e-6)
    folds, hits = make_folds(labels), dict.fromkeys(GRID, 0)
    if not folds.any():  # a class has one image
        assert fit_ridge(x, labels, 3).l2 == GRID[-1]
        return
    for l2, fold in itertools.product(GRID, range(folds.max() + 1)):
        weights, bias = solve(folds != fold, l2)
        hits[l2] += sum(np.argmax(x64[folds == fold] @ weights + bias, axis=1) == labels[folds == fold])
    assert fit_ridge(x, labels, 3).l2 == max(l2 for l2 in GRID if hits[l2] == max(hits.values()))
    assert len(set(hits.values())) > 1


def test_folds_have_equal_numbers_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 9], [4, 9, 13]))
    counts = [[np.sum((labels == k) & (make_folds(labels) == fold)) for fold in range(4)] for k in (3, 5, 9)]
    assert counts == [[1, 1, 1, 1], [3, 2, 2, 2], [4, 3, 3, 3]] and make_folds(labels).max() == 3
    assert make_folds(np.arange(4)).max() == 0


def test_one_image_a_class_takes_the_largest_penalty():
    x, labels = problem(3)
    model = fit_ridge(x, labels, 3)
    assert model.l2 == GRID[-1] and (model.predict(x) == labels).all()


def test_logistic_regression_is_at_its_minimum():
    x, labels = problem(60)
    for l2 in (1e-3, 1.0):
        model = fit_logistic(x, labels, 3, grid=(l2,))
        scale = np.sqrt(np.mean(x.astype(np.float64) ** 2))
        scores = x.astype(np.float64) @ model.weights + model.bias
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gap = (p - np.eye(3)[labels]) / len(x)
        np.testing.assert_allclose(x.T.astype(np.float64) / scale @ gap + l2 * model.weights * scale, 0, atol=1e-4)
        np.testing.assert_allclose(gap.sum(0), 0, atol=1e-4)
    chosen = fit_logistic(x, labels, 3, grid=(1e-2, 1e3))
    assert chosen.l2 == 1e-2 and np.mean(chosen.predict(x) == labels) > 0.8


def labeled(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return Source({"image": image(rng), "captions": ["x"], "label": 5 * (i % 3)} for i in range(n))


def evaluate(train, test, **options):
    towers = Towers()
    evaluator = Evaluator(lambda split: {"zeroshot": test, "train": train}[split], **options)
    return evaluator(towers.embedder().bind(towers.params))


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_it_is_the_classifier_on_the_embeddings(solver):
    train, test, towers = labeled(24, 1), labeled(15, 2), Towers()
    got = evaluate(train, test, train_split="train", solver=solver, penalties=(0.1, 1.0), shots=(2, 8, 9), repeats=2)
    x, z = (reference(towers, source, ["a"])[0].astype(np.float32) for source in (train, test))
    y, truth = (np.array([e["label"] // 5 for e in source]) for source in (train, test))
    model = {"ridge": fit_ridge, "logistic": fit_logistic}[solver](x, y, 3, grid=(0.1, 1.0))
    hit = model.predict(z) == truth
    assert got["acc@1"] == pytest.approx(hit.mean()) and got["l2"] == model.l2
    assert got["mean_per_class"] == pytest.approx(np.mean([hit[truth == k].mean() for k in range(3)]))
    assert (got["num_images"], got["num_train"], got["num_classes"]) == (15, 24, 3)
    assert "acc@1_9_shot" not in got  # no class has nine
    every = fit_ridge(x, y, 3, grid=(0.1, 1.0))  # eight of each class are all of them
    assert got["acc@1_8_shot"] == pytest.approx(np.mean(every.predict(z) == truth)) and got["acc@1_8_shot_sd"] == 0
    assert 0 <= got["acc@1_2_shot"] <= 1


def test_without_a_training_split_each_class_is_halved():
    source = labeled(31)
    got = evaluate(None, source)
    assert (got["num_train"], got["num_images"]) == (16, 15)
    rows = [[r for r in range(31) if r % 3 == k] for k in range(3)]
    train = [r for own in rows for r in own[::2]]
    test = [r for own in rows for r in own[1::2]]
    pick = lambda numbers: Source(source[r] for r in numbers)  # noqa: E731
    assert got["acc@1"] == evaluate(pick(train), pick(test), train_split="train")["acc@1"]


def test_classes_without_training_images_are_lost_and_mistakes_are_named():
    train, test = labeled(12), labeled(12, 3)
    for example in test[:6]:
        example["label"] = 99
    assert evaluate(train, test, train_split="train")["acc@1"] <= 0.5
    with pytest.raises(ConfigError, match="split='train': the examples have no label"):
        evaluate(Source([{"image": image(np.random.default_rng(0)), "captions": ["x"]}]), test, train_split="train")
    with pytest.raises(ConfigError, match="needs two classes"):
        evaluate(Source(train[:1]), test, train_split="train")


def test_data_sets_with_a_training_split_are_found(tmp_path):
    levels = {10: 0, 11: 1, 12: 0, 13: 1, 14: 0, 15: 1}
    for split, chosen in (("train", range(10, 14)), ("test", (14, 15))):
        members = []
        for level in chosen:
            gray(tmp_path / ".one.png", level)
            members += [(f"{level}.png", (tmp_path / ".one.png").read_bytes()), (f"{level}.cls", b"%d" % levels[level])]
        archives.write_tar(tmp_path / "wds_birds_test" / split / "0.tar", members)
        (tmp_path / "wds_birds_test" / split / "nshards.txt").write_text("1")
    (tmp_path / "wds_birds_test" / "classnames.txt").write_text("wren\nrobin\n")
    [(name, found)] = Evaluator.find(tmp_path).items()
    model = Planted({level: np.eye(12)[label] + 0.01 for level, label in levels.items()}, {"x": np.ones(12)})
    got = Evaluator(open_source, **found)(model.bind())
    assert name == "birds" and (got["acc@1"], got["acc@1_1_shot"], got["num_train"]) == (1, 1, 4)


def test_folders_of_classes_need_no_names_but_a_training_split(tmp_path, caplog):
    for split in ("train", "val"):
        for label in ("n00000000", "n00000001"):
            gray(tmp_path / "animals" / split / label / "9.png", 9)
    assert {n: (o["split"], o["train_split"]) for n, o in Evaluator.find(tmp_path).items()} == {
        "animals": ("val", "train")
    }
    shutil.rmtree(tmp_path / "animals" / "train")
    with caplog.at_level("INFO"):
        assert Evaluator.find(tmp_path) == {}
    assert [message.split(": ")[1] for message in caplog.messages] == [
        f"{tmp_path}/animals has no folder train beside val, and is left out"
    ]
