import io
import json

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.common.classification import mean_average_precision
from mmjax.evals.zeroshot import Evaluator, class_embeddings
from support import archives
from support.benchmarks import Planted, gray, open_source
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
    assert Evaluator(lambda split: source).prompts[1] == ["a photo of a square."]


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


def test_prompts_are_averaged_on_the_device_in_any_number_of_batches():
    source, towers = classes(3), Towers()
    for batch_size, sharding in ((4, None), (5, None), (64, None), (16, data_sharding())):
        bound = towers.embedder(batch_size=batch_size, row_sharding=sharding).bind(towers.params)
        prompts = [[t.replace("{}", name) for t in TEMPLATES[: 1 + i % 3]] for i, name in enumerate(NAMES)]
        expected = []
        for texts in prompts:
            mean = reference(towers, source, texts)[1].mean(0)
            expected.append(mean / np.linalg.norm(mean))
        np.testing.assert_allclose(bound.text_means(prompts), expected, atol=2e-6)
        calls = bound._embedder.tokenizer.calls
        bound.text_means(prompts)
        assert bound._embedder.tokenizer.calls == calls and bound._texts is None  # kept, and without single prompts


def test_several_labels_have_average_precision_and_any_of_them_is_a_hit():
    source, towers = classes(), Towers()
    rng = np.random.default_rng(1)
    for example in source:
        del example["label"]
        example["labels"] = sorted(rng.choice(6, rng.integers(0, 3), replace=False).tolist())
    zi, zc = reference_classes(towers, source)
    got = evaluate(source, towers)
    top = np.argmax(zi @ zc.T, axis=1)
    labeled = [(t, e["labels"]) for t, e in zip(top, source, strict=True) if e["labels"]]
    assert got["acc@1"] == pytest.approx(np.mean([t in labels for t, labels in labeled]))
    positive = np.array([[c in e["labels"] for c in range(7)] for e in source])
    assert got["mAP"] == pytest.approx(mean_average_precision(zi, zc, positive))
    assert got["num_images"] == len(source) and "mean_per_class" not in got
    towers.params["image"] = np.zeros_like(towers.params["image"])
    rate = positive[:, positive.any(0)].mean(0)
    assert evaluate(source, towers)["mAP"] == pytest.approx(rate.mean())  # of a constant model


def test_the_worst_group_of_images_counts():
    source, towers = classes(), Towers()
    for i, example in enumerate(source):
        example["metadata"] = [i, i % 4]
    zi, zc = reference_classes(towers, source)
    hit = np.argmax(zi @ zc.T, axis=1) == [e["label"] for e in source]
    rates = [hit[g::4].mean() for g in range(4)]
    got = evaluate(source, towers, group=1)
    assert got["acc@1_worst_group"] == pytest.approx(min(rates)) and got["num_groups"] == 4
    rest = evaluate(source, towers, group=1, ignored_groups=(int(np.argmin(rates)),))
    assert rest["acc@1_worst_group"] == pytest.approx(sorted(rates)[1])
    with pytest.raises(ConfigError, match="group=2: example 0 has 2 numbers"):
        evaluate(source, towers, group=2)


def test_names_and_prompts_come_from_files_of_several_data_sets(tmp_path):
    source = classes()
    renamed = [f"{name}s" for name in NAMES]
    (tmp_path / "en_classnames.json").write_text(json.dumps({"shapes": renamed, "other": ["x"]}))
    (tmp_path / "templates.json").write_text(json.dumps({"shapes": ["two {c}", "{c}"], "other": ["x {c}"]}))
    (tmp_path / "cupl.json").write_text(json.dumps({name: [f"{name} it is"] for name in NAMES}))
    options = {"class_names": str(tmp_path / "en_classnames.json"), "templates": str(tmp_path / "templates.json")}
    made = Evaluator(lambda split: source, **options, dataset="shapes")
    assert made.class_names == renamed and made.prompts[0] == ["two circles", "circles"]
    assert Evaluator(lambda split: source, templates=str(tmp_path / "cupl.json")).prompts[2] == ["star it is"]
    for wrong, message in (
        ({**options, "dataset": "shape"}, "class_names=.*has nothing for dataset='shape'; did you mean 'shapes'"),
        ({**options, "dataset": "other"}, "1 names for 7 classes; name all of them"),
        ({"templates": str(tmp_path / "en_classnames.json")}, "has no list of prompts for the class 'circle'"),
        ({"class_names": str(tmp_path / "cupl.json")}, "class_names=.*set dataset="),
    ):
        with pytest.raises(ConfigError, match=message):
            Evaluator(lambda split: source, **wrong)


LEVELS = {10: 0, 11: 1, 12: 2, 13: 0, 14: 2}
CLASSES = ("a cat", "a dog", "an owl")


def from_files(root):
    """What the evaluator finds and measures, and the accuracy of a loop."""
    prompts = [f"{c} it is" for c in CLASSES]
    model = Planted.random(LEVELS, prompts, seed=3)
    classes = np.stack([model.text(prompt) for prompt in prompts])
    expected = np.mean([np.argmax(classes @ model.image(level)) == label for level, label in LEVELS.items()])
    [(name, found)] = Evaluator.find(root).items()
    return name, Evaluator(open_source, **found)(model.bind()), expected


def picture(root, level):
    gray(root / ".one.png", level)
    return (root / ".one.png").read_bytes()


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_clip_benchmarks_layout_is_found_and_measured(tmp_path, kind):
    members = []
    for level, label in LEVELS.items():
        np.save(file := io.BytesIO(), np.arange(3) == label)
        members += [(f"{level}.webp", picture(tmp_path, level)), (f"{level}.cls", str(label).encode())]
        members += [(f"{level}.npy", file.getvalue())]
    folder = tmp_path / "wds_vtab-pets_test"
    archives.write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("{c} it is\n")
    (folder / "dataset_type.txt").write_text(kind)
    name, got, expected = from_files(tmp_path)
    assert name == "vtab-pets" and got["acc@1"] == pytest.approx(expected)
    assert ("mAP" in got) == (kind == "multilabel") and got["num_images"] == len(LEVELS)


def test_folders_of_classes_are_found_with_their_names(tmp_path, caplog):
    for level, label in LEVELS.items():
        gray(tmp_path / "animals" / "val" / f"n0000000{label}" / f"{level}.png", level)
    assert Evaluator.find(tmp_path) == {} and "n00000000 and so on, which says nothing in a prompt" in caplog.text
    (tmp_path / "animals" / "classnames.txt").write_text("\n".join(CLASSES))
    (tmp_path / "animals" / "templates.txt").write_text("{} it is\n")
    name, got, expected = from_files(tmp_path)
    assert name == "animals" and got["acc@1"] == pytest.approx(expected)


def test_prepared_tfds_with_labels_are_found(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        (tmp_path / "cars" / version).mkdir(parents=True)
        (tmp_path / "cars" / version / "label.labels.txt").write_text("a\nb\n")
        info = {"splits": [{"name": "train"}, {"name": "validation"}]}
        (tmp_path / "cars" / version / "dataset_info.json").write_text(json.dumps(info))
    assert Evaluator.find(tmp_path) == {
        "cars": {"split": "validation", "source": {"name": "tfds", "path": str(tmp_path / "cars")}}
    }
