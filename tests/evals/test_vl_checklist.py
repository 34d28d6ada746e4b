import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.vl_checklist import Evaluator
from support.benchmarks import Planted, gray, open_source, write_json

LISTS = {  # yaml below corpus/v1, its folder of pictures, its number of entries
    "Attribute/color/vg": ("vg", 6),
    "Attribute/color/vaw": ("vg/", 3),
    "Attribute/size/vg": ("vg/", 4),
    "Object/Location/center/hake": ("hake/", 5),
    "Object/Location/mid/vg_obj": ("vg/", 4),
    "Object/Size/large/swig_agent": ("swig/", 3),
    "Relation/action/swig": ("swig/", 7),
}
LEVELS = range(100, 106)


def entries(kind):
    rng = np.random.default_rng(list(LISTS).index(kind))
    word = kind.replace("/", " ")
    return [
        (int(rng.choice(LEVELS)), f"{word} is {rng.integers(4)}", f"{word} is not {rng.integers(4)}")
        for _ in range(LISTS[kind][1])
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vl")
    checkout = root / "vl_checklist"
    for kind, (folder, _) in LISTS.items():
        name = f"data/{kind.lower()}.json"
        # Some lists give several texts a side, of which the first one counts.
        more = ["another text"] * (len(kind) % 2)
        content = [[f"100K/{i}.jpg", {"POS": [t, *more], "NEG": [f, *more]}] for i, t, f in entries(kind)]
        write_json(checkout / name, content)
        yaml = checkout / "corpus" / "v1" / f"{kind}.yaml"
        yaml.parent.mkdir(parents=True, exist_ok=True)
        yaml.write_text(f'ANNO_PATH: "{name}"\nIMG_ROOT: "{folder}"\nTYPE: "TUPLE_JSON"\n')
        for level, *_ in entries(kind):
            gray(root / folder / "100K" / f"{level}.jpg", level)
    # Three lists of the repository are empty, and one is missing.
    for kind, content in (("Object/Size/small/swig_place", []), ("Relation/action/hake", None)):
        yaml = checkout / "corpus" / "v1" / f"{kind}.yaml"
        yaml.parent.mkdir(parents=True, exist_ok=True)
        yaml.write_text(f"ANNO_PATH: data/{yaml.stem}.json\nIMG_ROOT: vg\n")
        if content is not None:
            write_json(checkout / "data" / f"{yaml.stem}.json", content)
    return root


TEXTS = [text for kind in LISTS for _, *pair in entries(kind) for text in pair]


def evaluate(root, model, **options):
    source = Evaluator.find(root)["vl_checklist"]["source"] | options
    return Evaluator(open_source, source=source)(model.bind())


def test_means_up_the_tree_equal_those_by_hand(root):
    model = Planted.random(LEVELS, TEXTS)
    got = evaluate(root, model)
    shown = {(LISTS[kind][0].rstrip("/"), level) for kind in LISTS for level, *_ in entries(kind)}
    mean = np.mean([model.image(level) for _, level in shown], axis=0)
    for suffix, image in (("", model.image), ("_blind", lambda level: mean)):
        a = {k: np.mean([image(i) @ (model.text(t) - model.text(f)) > 0 for i, t, f in entries(k)]) for k in LISTS}
        color = (a["Attribute/color/vg"] + a["Attribute/color/vaw"]) / 2
        location = (a["Object/Location/center/hake"] + a["Object/Location/mid/vg_obj"]) / 2
        expected = {
            "attribute_color_vaw": a["Attribute/color/vaw"],
            "attribute_color": color,
            "attribute": (color + a["Attribute/size/vg"]) / 2,
            "object_location": location,
            "object": (location + a["Object/Size/large/swig_agent"]) / 2,
            "relation": a["Relation/action/swig"],
        }
        expected["macro"] = (expected["attribute"] + expected["object"] + expected["relation"]) / 3
        for name, value in expected.items():
            assert got[f"{name}{suffix}"] == pytest.approx(value), name
    assert got["num_lists"] == len(LISTS) and got["num_pairs"] == len(TEXTS) / 2
    assert got["num_unreadable"] == 1  # the list that is missing


def test_a_perfect_model_scores_one_and_a_constant_one_nothing(root):
    up, down = np.ones(12), -np.ones(12)
    perfect = Planted(dict.fromkeys(LEVELS, up), {text: down if " not " in text else up for text in TEXTS})
    constant = Planted.constant(LEVELS, TEXTS)
    for name in ("macro", "attribute", "object", "relation"):
        assert evaluate(root, perfect)[name] == 1 and evaluate(root, constant)[name] == 0


def test_the_limit_counts_entries_whose_picture_exists(root, tmp_path, caplog):
    model = Planted.random(LEVELS, TEXTS)
    assert evaluate(root, model, limit=3)["num_pairs"] == 3 * len(LISTS)
    (tmp_path / "vl_checklist").symlink_to(root / "vl_checklist")
    kept = list(LEVELS)[2:]
    for level in kept:
        gray(tmp_path / "vg" / "100K" / f"{level}.jpg", level)
    got = evaluate(tmp_path, model, limit=2)
    of_vg = [kind for kind, (folder, _) in LISTS.items() if folder.startswith("vg")]
    assert got["num_pairs"] == sum(min(2, sum(i in kept for i, *_ in entries(kind))) for kind in of_vg)
    assert got["num_lists"] == len(of_vg) and "relation" not in got and got["num_unreadable"] > 5
    with pytest.raises(ConfigError, match=r"limit=0"):
        evaluate(root, model, limit=0)
    with pytest.raises(ConfigError, match=r"path=.*corpus/v1"):
        evaluate(root, model, path=str(tmp_path))


def test_published_results_have_names_of_measured_ones(root):
    names = evaluate(root, Planted.random(LEVELS, TEXTS)).keys()
    assert all(published.metrics.keys() <= names for published in Evaluator.published)
    assert Evaluator.find(root / "vl_checklist") == {}
