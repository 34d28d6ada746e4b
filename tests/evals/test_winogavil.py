import csv
import json

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.winogavil import Evaluator, jaccard, prompt
from support.benchmarks import Planted, gray, open_source
from support.towers import Source, image

NAMES = [f"word {i}" for i in range(16)]
COLUMNS = ("candidates", "cue", "associations", "score_fool_the_ai", "num_associations", "num_candidates", "ID")


def rows():
    rng = np.random.default_rng(5)
    made = []
    for i, size in enumerate([5, 6, 10, 12] * 5):
        candidates = rng.choice(NAMES, size, replace=False).tolist()
        made.append((candidates, ("apple", "Bald", "tree, old", "U-turn")[i % 4] + str(i), candidates[: 1 + i % 4]))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gavil")
    (root / "winogavil").mkdir()
    with open(root / "winogavil" / "winogavil_dataset.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for i, (candidates, cue, associations) in enumerate(rows()):
            counts = (len(associations), len(candidates), i)
            table.writerow((json.dumps(candidates), cue, json.dumps(associations), 0, *counts))
    for level, name in enumerate(NAMES):
        gray(root / "winogavil" / "winogavil_images" / f"{name}.jpg", level)
    return root


PROMPTS = [prompt(cue) for _, cue, _ in rows()]


def evaluate(root, model):
    return Evaluator(open_source, **Evaluator.find(root)["winogavil"])(model.bind())


def test_the_index_equals_a_loop_over_the_rows(root):
    model = Planted.random(range(16), PROMPTS)
    mean = np.mean([model.text(text) for text in PROMPTS], axis=0)
    expected = {"": [], "_5-6": [], "_10-12": []}
    for candidates, cue, associations in rows():
        pair = []
        for text in (model.text(prompt(cue)), mean):
            best = sorted(candidates, key=lambda name: -float(model.image(NAMES.index(name)) @ text))
            chosen, true = set(best[: len(associations)]), set(associations)
            pair.append(len(chosen & true) / len(chosen | true))
        for name in ("", "_5-6" if len(candidates) < 7 else "_10-12"):
            expected[name].append(pair)
    got = evaluate(root, model)
    for name, pairs in expected.items():
        assert (got[f"jaccard{name}"], got[f"jaccard{name}_blind"]) == pytest.approx(tuple(np.mean(pairs, axis=0)))
    assert got["num_cues"] == 20 and got["tie_rate"] == got["num_unreadable"] == 0 and 0 < got["jaccard"] < 1
    assert all(published.metrics.keys() <= got.keys() for published in Evaluator.published)


def test_a_perfect_index_is_one_and_ties_are_lost(root):
    assert jaccard(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])) == (1, False)
    assert jaccard(np.array([3.0, 1.0, 2.0]), np.array([True, True, False])) == (1 / 3, False)
    assert jaccard(np.ones(5), np.array([True, True, False, False, False])) == (0, True)
    assert jaccard(np.ones(3), np.array([True, True, False])) == (1 / 3, True)  # one of the two must be chosen
    assert jaccard(np.ones(2), np.array([True, True])) == (1, False)
    assert jaccard(np.full(3, np.nan), np.array([True, False, False]))[0] == 0
    constant = evaluate(root, Planted.constant(range(16), PROMPTS))
    assert constant["tie_rate"] == 1 and constant["jaccard_10-12"] == constant["jaccard_10-12_blind"] == 0


def test_prompts_have_an_article():
    assert [prompt(cue) for cue in ("Apple", "bald", "U-turn")] == ["An apple", "A bald", "An u-turn"]


def test_cues_without_all_of_their_pictures_are_left_out(root, tmp_path):
    images = tmp_path / "winogavil" / "winogavil_images"
    for level, name in enumerate(NAMES[:-1]):
        gray(images / f"{name}.jpg", level)
    (tmp_path / "winogavil" / "winogavil_dataset.csv").symlink_to(root / "winogavil" / "winogavil_dataset.csv")
    got = evaluate(tmp_path, Planted.random(range(16), PROMPTS))
    assert got["num_cues"] == sum(NAMES[-1] not in candidates for candidates, *_ in rows()) < 20
    assert got["num_unreadable"] == 1
    for name in NAMES[1:-1]:
        (images / f"{name}.jpg").unlink()
    with pytest.raises(ConfigError, match="no cue has all of its pictures"):
        evaluate(tmp_path, Planted.random(range(16), PROMPTS))
    with pytest.raises(ConfigError, match="no example has cues"):
        Evaluator(lambda split: Source([{"image": image(np.random.default_rng(0)), "captions": ["x"]}]))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('"[""a"", ""b""]",cue,"[""c""]"', "must be some of the candidates"),
        ('"[""a"", ""a""]",cue,"[""a""]"', "which differ"),
        ('"[""a"", ""b""]",cue,[]', "must be some"),
        ("no list,cue,[]", "JSONDecodeError"),
        ('"[""a"", ""b""]",,"[""a""]"', "cue is empty"),
        ('"[""../a"", ""b""]",cue,"[""b""]"', "nothing in the folder"),
        ('"[7, ""b""]",cue,"[""b""]"', "type int"),
        ('"[""a"", ""b""]",cue', "TypeError"),
        ("short", "JSONDecodeError"),
    ],
)
def test_bad_rows_are_listed(root, tmp_path, row, problem):
    (tmp_path / "table.csv").write_text(
        f'candidates,cue,associations\n{row}\n"[""{NAMES[0]}"", ""{NAMES[1]}""]",cue,"[""{NAMES[0]}""]"\n'
    )
    section = {"name": "mmjax.data.benchmarks.winogavil", "image_root": str(root / "winogavil" / "winogavil_images")}
    source = open_source("test", path=str(tmp_path / "table.csv"), **section)
    ((key, _, detail),) = source.unreadable
    assert key.endswith("table.csv:0") and problem in detail and len(source) == 2
    assert source[0]["cues"] == [(1, "cue", True, 2)] and source[1]["cues"] == [(1, "cue", False, 2)]
    (tmp_path / "table.csv").write_text("candidates,cue\n")
    with pytest.raises(ConfigError, match=r"no column 'associations'"):
        open_source("test", path=str(tmp_path / "table.csv"), **section)
