import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.sugarcrepe import Evaluator
from support.benchmarks import Planted, gray, open_source, write_json

KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
LEVELS = range(10, 16)


def entries(kind):
    """Ragged, with gaps in the keys, several entries of one picture, and equal captions of two pictures."""
    rng = np.random.default_rng(KINDS.index(kind))
    return {
        str(3 * i): {
            "filename": f"{rng.choice(LEVELS):012d}.jpg",
            "caption": f"true {kind} {rng.integers(4)}",
            "negative_caption": f"false {kind} {rng.integers(4)}",
        }
        for i in range(2 + KINDS.index(kind))
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sugarcrepe")
    for kind in KINDS:
        write_json(root / "sugarcrepe" / f"{kind}.json", entries(kind))
    for level in LEVELS:
        gray(root / "coco" / "val2017" / f"{level:012d}.jpg", level)
    return root


def texts(key):
    return [entry[key] for kind in KINDS for entry in entries(kind).values()]


def evaluate(root, model, **options):
    ((name, found),) = Evaluator.find(root).items()
    assert name == "sugarcrepe"
    return Evaluator(open_source, **found, **options)(model.bind())


def test_it_equals_a_loop_over_the_entries(root):
    model = Planted.random(LEVELS, texts("caption") + texts("negative_caption"))
    shown = {int(e["filename"][:12]) for kind in KINDS for e in entries(kind).values()}
    mean = np.mean([model.image(level) for level in shown], axis=0)
    won, blind = {}, {}
    for kind in KINDS:
        for entry in entries(kind).values():
            gap = model.text(entry["caption"]) - model.text(entry["negative_caption"])
            won.setdefault(kind, []).append(model.image(int(entry["filename"][:12])) @ gap > 0)
            blind.setdefault(kind, []).append(mean @ gap > 0)
    got = evaluate(root, model)
    for kind in KINDS:
        assert got[kind] == pytest.approx(np.mean(won[kind]))
        assert got[f"{kind}_blind"] == pytest.approx(np.mean(blind[kind]))
    for change in ("replace", "swap", "add"):
        of_change = [kind for kind in KINDS if kind.startswith(change)]
        assert got[change] == pytest.approx(np.mean([np.mean(won[kind]) for kind in of_change]))
        assert got[f"{change}_blind"] == pytest.approx(np.mean([np.mean(blind[kind]) for kind in of_change]))
    assert got["macro"] == pytest.approx(np.mean([np.mean(won[kind]) for kind in KINDS]))
    assert got["micro"] == pytest.approx(np.mean([pair for pairs in won.values() for pair in pairs]))
    assert got["num_pairs"] == sum(2 + i for i in range(7)) and got["num_unreadable"] == 0


def test_a_perfect_model_scores_one_and_a_constant_one_nothing(root):
    true, false = texts("caption"), texts("negative_caption")
    up, down = np.ones(12), -np.ones(12)
    perfect = evaluate(root, Planted(dict.fromkeys(LEVELS, up), dict.fromkeys(true, up) | dict.fromkeys(false, down)))
    constant = evaluate(root, Planted.constant(LEVELS, true + false))
    for name in (*KINDS, "replace", "swap", "add", "macro", "micro"):
        assert perfect[name] == 1 and constant[name] == constant[f"{name}_blind"] == 0
    assert constant["tie_rate"] == 1 and constant["identical_rate"] == 0 and perfect["tie_rate"] == 0


def test_captions_that_are_cut_to_equal_tokens_are_lost_and_reported(root, tmp_path):
    pairs = [("a red dog", "a red cat"), ("red dog", "red cat"), ("a b", "c d e")]
    content = {
        str(i): {"filename": f"{10:012d}.jpg", "caption": t, "negative_caption": f} for i, (t, f) in enumerate(pairs)
    }
    write_json(tmp_path / "sugarcrepe" / "add_obj.json", content)
    (tmp_path / "coco").symlink_to(root / "coco")
    up, down = np.ones(12), -np.ones(12)
    model = Planted({10: up}, {"a red": up, "red dog": up, "a b": up, "red cat": down, "c d": down}, words=2)
    got = evaluate(tmp_path, model)
    assert got["identical_rate"] == got["tie_rate"] == pytest.approx(1 / 3)
    assert got["truncation_rate"] == pytest.approx(2 / 3)  # one caption of a pair is enough
    assert got["add_obj"] == got["add"] == got["macro"] == pytest.approx(2 / 3)
    assert "replace" not in got  # a mean over nothing is no number


def test_missing_pictures_are_counted_and_named_and_not_fatal(root, tmp_path, caplog):
    (tmp_path / "sugarcrepe").symlink_to(root / "sugarcrepe")
    for level in list(LEVELS)[1:]:
        gray(tmp_path / "coco" / "val2017" / f"{level:012d}.jpg", level)
    got = evaluate(tmp_path, Planted.random(LEVELS, texts("caption") + texts("negative_caption")))
    absent = sum(e["filename"] == f"{LEVELS[0]:012d}.jpg" for kind in KINDS for e in entries(kind).values())
    assert got["num_unreadable"] == 1 and got["num_pairs"] == sum(2 + i for i in range(7)) - absent < 35
    assert f"{LEVELS[0]:012d}.jpg: missing file" in caplog.text


def test_what_is_not_there_is_not_found(root, tmp_path, caplog):
    assert Evaluator.find(tmp_path) == {}
    (tmp_path / "sugarcrepe").symlink_to(root / "sugarcrepe")
    assert Evaluator.find(tmp_path) == {} and "not its images" in caplog.text
    with pytest.raises(ConfigError, match=r"replace_obj\.json"):
        open_source("test", name="mmjax.data.benchmarks.sugarcrepe", path=str(tmp_path), image_root=str(tmp_path))
    folder = {"name": "mmjax.data.benchmarks.sugarcrepe", "path": str(root / "sugarcrepe")}
    with pytest.raises(ConfigError, match=r"nothing of the benchmark.*missing file.*image_root"):
        open_source("test", image_root=str(tmp_path), **folder)


def test_published_results_are_in_the_units_and_names_of_measured_ones(root):
    got = evaluate(root, Planted.random(LEVELS, texts("caption") + texts("negative_caption")))
    for published in Evaluator.published:
        assert published.source and published.metrics.keys() <= got.keys()
        assert all(0.3 < value <= 1 for value in published.metrics.values())
