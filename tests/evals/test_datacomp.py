import io

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.common.result_tables import make_tables
from mmjax.evals.common.results import make_results, summarize
from mmjax.evals.common.suite import DataSet
from mmjax.evals.datacomp import TASKS, Evaluator
from support import archives
from support.benchmarks import Planted, gray, open_source

LEVELS = {level: level % 3 for level in range(10, 22)} | {22: 0, 23: 0}  # unequal classes
REGIONS = {level: (level * 5) % 7 for level in LEVELS}
CLASSES = ("cat", "dog", "owl")


def picture(root, level):
    gray(root / ".one.png", level)
    return (root / ".one.png").read_bytes()


def classification(root, name):
    members = []
    for level, label in LEVELS.items():
        np.save(file := io.BytesIO(), np.array([REGIONS[level], 2000]))
        members += [(f"{level}.png", picture(root, level)), (f"{level}.cls", b"%d" % label)]
        members += [(f"{level}.npy", file.getvalue())]
    archives.write_tar(root / name / "test" / "0.tar", members)
    (root / name / "test" / "nshards.txt").write_text("1")
    (root / name / "classnames.txt").write_text("\n".join(CLASSES))
    (root / name / "zeroshot_classification_templates.txt").write_text("a {c}\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datacomp")
    for name in ("vtab-caltech101", "imagenet1k", "wilds-fmow", "wilds-iwildcam", "dollar_street", "not-a-task"):
        classification(root, f"wds_{name}_test")
    members = []
    for level in LEVELS:
        members += [
            (f"{level}.png", picture(root, level)),
            (f"{level}.txt", "\n".join(["a cat", "a dog"] * 4).encode()),
        ]
    archives.write_tar(root / "wds_flickr30k_test" / "test" / "0.tar", members)
    (root / "wds_flickr30k_test" / "test" / "nshards.txt").write_text("1")
    (root / "wds_flickr30k_test" / "dataset_type.txt").write_text("retrieval")
    return root


def measure(root, seed=0):
    model = Planted.random(LEVELS, [f"a {name}" for name in CLASSES], seed=seed)
    return model, {name: Evaluator(open_source, **own)(model.bind()) for name, own in Evaluator.find(root).items()}


def test_each_task_has_its_own_metric(root):
    model, got = measure(root)
    assert list(got) == [
        "vtab-caltech101", "imagenet1k", "flickr30k", "wilds-iwildcam", "wilds-fmow", "dollar_street",
    ]  # fmt: skip
    classes = np.stack([model.text(f"a {name}") for name in CLASSES])
    labels, regions = np.array(list(LEVELS.values())), np.array(list(REGIONS.values()))
    guess = np.array([np.argmax(classes @ model.image(level)) for level in LEVELS])
    hit = guess == labels
    by_class = [hit[labels == k].mean() for k in range(3)]
    assert got["imagenet1k"]["main"] == pytest.approx(hit.mean())
    assert got["vtab-caltech101"]["main"] == pytest.approx(np.mean(by_class)) != got["imagenet1k"]["main"]
    worst = min(hit[regions == r].mean() for r in set(regions) if r != 5)
    assert got["wilds-fmow"]["main"] == pytest.approx(worst)
    assert got["wilds-fmow"]["num_groups"] == len(set(regions)) - 1
    assert got["wilds-iwildcam"]["main"] == got["wilds-iwildcam"]["f1_macro"]
    assert "main" not in got["dollar_street"]  # of three classes there is no acc@5
    assert got["flickr30k"]["num_captions"] == 5 * len(LEVELS)
    assert got["flickr30k"]["main"] == got["flickr30k"]["mean_recall@1"]


def test_averages_are_over_what_was_measured_and_say_so(root):
    _, got = measure(root)
    main = {name: own["main"] for name, own in got.items() if "main" in own}
    summary = Evaluator.summarize(got)
    assert summary == {
        "imagenet1k": main["imagenet1k"],
        "vtab@1_of_13": main["vtab-caltech101"],
        "retrieval@1_of_3": main["flickr30k"],
        "average@5_of_38": pytest.approx(np.mean(list(main.values()))),
    }
    everything = Evaluator.summarize({name: {"main": float(i)} for i, name in enumerate(TASKS)})
    assert everything["average@38_of_38"] == 18.5 and {"vtab@13_of_13", "dist_shift@6_of_6"} <= everything.keys()
    assert Evaluator.summarize({}) == {}
    results = [
        result
        for model in ("one", "two")
        for name, own in got.items()
        for result in make_results(DataSet(name, "datacomp", {}), own, model=model, weights=model)
    ]
    summarized = [result for result in summarize(results) if result.dataset == "datacomp"]
    assert [(r.model, r.metric) for r in summarized] == [(m, name) for m in ("one", "two") for name in summary]
    rows = [row[0] for row in make_tables([r for r in summarize(results) if r.model == "one"], published=True)[0].rows]
    assert rows == [f"{name}/main" for name in main] + [f"datacomp/{name}" for name in summary]


def test_an_unknown_task_is_named():
    with pytest.raises(ConfigError, match=r"task='imagenet': no such name; did you mean 'imagenet"):
        Evaluator(open_source, task="imagenet")
