import dataclasses
import json

import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.common import results, suite
from mmjax.evals.common.result_tables import make_tables
from mmjax.evals.common.results import ResultsFile, make_results, read_results
from mmjax.evals.common.suite import DataSet, find_data_sets, make_evaluator, measure
from mmjax.evals.sugarcrepe import Evaluator as SugarCrepe
from support.towers import Source, Towers, retrieval_source

COCO = DataSet("coco", "retrieval", {"split": "test", "source": {"name": "captions", "path": "/a", "x": (1, 2)}})
FOLDS = COCO._replace(options={**COCO.options, "folds": 5})
METRICS = {"rsum": 300.0, "image_to_text_R@1": 0.5, "text_to_image_R@1": float("nan"), "num_images": 5.0}
METRICS |= {"num_captions": 25.0}


def made(data_set=COCO, weights="w", model="m", **changes):
    return make_results(data_set, METRICS | changes, model=model, weights=weights)


def test_what_is_in_the_file_is_found_again_and_nothing_else(tmp_path):
    file = ResultsFile(tmp_path / "r.jsonl")
    file.add(made())
    file.add(made(FOLDS, rsum=400.0))
    again = ResultsFile(tmp_path / "r.jsonl")
    assert again.find(COCO, weights="w") == made() and again.find(FOLDS, weights="w")[0].value == 400
    assert not again.find(COCO, weights="other") and not again.find(COCO._replace(name="x"), weights="w")
    assert not again.find(COCO._replace(task="zeroshot"), weights="w")
    again.add(made(rsum=1.0))  # replaces the measurement with the same key
    assert [r.value for r in read_results(tmp_path / "r.jsonl", flag="--output") if r.metric == "rsum"] == [400, 1]
    assert [r.count for r in made()] == [5, 5, 25, None, None]
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[2])["value"] is None


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output=.*/file/r.jsonl: cannot be written \(.*\); name another file"):
        ResultsFile(tmp_path / "file" / "r.jsonl").prepare()
    new = ResultsFile(tmp_path / "new" / "folder" / "r.jsonl")
    new.prepare()
    new.add(made())
    assert (tmp_path / "new" / "folder" / "r.jsonl").exists()


def test_results_of_another_version_are_measured_again(tmp_path, monkeypatch):
    file = ResultsFile(tmp_path / "r.jsonl")
    file.add(made())
    monkeypatch.setattr(results.mmjax, "__version__", "9.9")
    assert not ResultsFile(tmp_path / "r.jsonl").find(COCO, weights="w")


def test_another_processes_results_stay(tmp_path):
    one, two = ResultsFile(tmp_path / "r.jsonl"), ResultsFile(tmp_path / "r.jsonl")
    one.add(made(model="one", weights="1"))
    two.add(made(model="two", weights="2"))
    assert {r.model for r in read_results(tmp_path / "r.jsonl", flag="--output")} == {"one", "two"}


def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch):
    file = ResultsFile(tmp_path / "r.jsonl")
    file.add(made())
    before = (tmp_path / "r.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmjax.core.atomic.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        file.add(made(FOLDS))
    assert (tmp_path / "r.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("line", ["{", "[]", '"text"', '{"model": 1}', '{"model": "m", "extra": 2}', "\x00"])
def test_other_files_are_named_by_their_first_wrong_line(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(made()[0])) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=r"--against=.*r.jsonl: line 2 is no result of mmjax eval"):
        read_results(path, flag="--against")


def test_a_table_shows_headlines_differences_and_which_are_not_the_same_measurement():
    others = [*made(model="before", rsum=290.0), *made(FOLDS, model="folds", rsum=1.0)]
    [table] = make_tables(made(), against=others)
    assert [row[0] for row in table.rows] == ["coco/rsum", "coco/image_to_text_R@1", "coco/text_to_image_R@1"]
    assert table.rows[0][1:] == ["5", "300", "290", "+10", "1*", "+299"]
    assert table.rows[2][1:] == ["25", "-", "-", "", "-", ""]
    for count, mark in ((5, ""), (6, "*"), (None, "")):
        before = [dataclasses.replace(result, model="before", count=count) for result in made()[:1]]
        assert make_tables(made()[:1], against=before)[0].rows == [["coco/rsum", "5", "300", f"300{mark}", "+0"]]
    text, markdown = table.text(), table.markdown()
    assert "[1] before" in text and "\n\\* measured with other options" in markdown
    assert len(make_tables(made(), every=True)[0].rows) == len(METRICS)
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_published_results_are_marked_as_not_measured():
    data_set = DataSet("sugarcrepe", "sugarcrepe", {})
    [table] = make_tables(make_results(data_set, {"swap_obj": 0.6}, model="m", weights=""), published=True)
    assert len(table.head) == 3 + len(SugarCrepe.published)
    assert all(head.startswith("published [") for head in table.head[3:])
    [row] = table.rows
    assert row[3:] == [f"{entry.metrics['swap_obj']:.4g}" for entry in SugarCrepe.published]
    notes = [line for line in table.footer if line]
    assert len(notes) == len(SugarCrepe.published) and all("not measured here" in line for line in notes)


def test_a_data_set_of_two_evaluators_has_their_names_in_its_metrics():
    both = [DataSet("imagenet1k", task, {}) for task in ("zeroshot", "linear_probe")]
    found = [one for data_set in (*both, COCO) for one in make_results(data_set, {"acc@1": 0.5}, model="", weights="")]
    names = ["imagenet1k/zeroshot/acc@1", "imagenet1k/linear_probe/acc@1", "coco/acc@1"]
    assert results.name_results(found) == names
    assert results.name_results(found[1:]) == ["imagenet1k/acc@1", "coco/acc@1"]
    assert results.name_results(found[1:], data_sets=both) == names[1:]  # the first one could not be measured
    tables = make_tables(found, published=True, every=True)  # one for each evaluator
    assert [[row[0] for row in table.rows] for table in tables] == [[names[0]], [names[1]], [names[2]]]
    assert any(tables[0].rows[0][3:]) and tables[1].head == ["", "n", "value"]  # no probe is published
    assert [row[0] for row in make_tables(found, every=True)[0].rows] == names


PAIRS = {"swap_obj": 0.6, "swap_obj_blind": 0.4, "macro": 0.6, "macro_blind": 0.5, "identical_rate": 0.1}
PAIRS |= {"tie_rate": 0.0, "num_pairs": 9.0}


def test_the_control_that_does_not_look_stands_beside_its_score():
    """Also where the data set has its evaluator's name, all of whose metrics were shown."""
    found = make_results(DataSet("sugarcrepe", "sugarcrepe", {}), PAIRS, model="m", weights="")
    [table] = make_tables(found)
    assert table.head == ["", "n", "value", "blind"]
    rows = [["swap_obj", "", "0.6", "0.4"], ["macro", "9", "0.6", "0.5"], ["tie_rate", "9", "0", ""]]
    assert table.rows == [[f"sugarcrepe/{name}", *cells] for name, *cells in rows]
    assert "blind: " in table.text()
    assert len(make_tables(found, every=True)[0].rows) == len(PAIRS)


def test_a_metric_over_some_examples_does_not_have_the_number_of_all():
    found = make_results(DataSet("sugarcrepe", "sugarcrepe", {}), PAIRS, model="m", weights="")
    counts = {result.metric: result.count for result in found}
    assert {name for name, count in counts.items() if count == 9} == {
        "macro", "macro_blind", "tie_rate", "identical_rate",
    }  # fmt: skip
    scores = {"text_score": 0.5, "text_score_relation": 0.0, "num_pairs": 4.0}
    found = make_results(DataSet("winoground", "winoground", {}), scores, model="m", weights="")
    assert [result.count for result in found] == [4, None, None]


def test_what_one_process_cannot_find_or_open_is_an_error_of_all(monkeypatch):
    """As processes of the same run would see it, whose files differ."""
    towers, others = Towers(), []
    monkeypatch.setattr(suite.collectives, "all_gather", lambda own: [own, *others])
    data_set = DataSet("one", "retrieval", {"split": "a"})

    def outcome():
        open_source = lambda split, **options: retrieval_source(5)  # noqa: E731
        make = lambda one: make_evaluator(one, open_source)  # noqa: E731
        return next(measure([data_set], make=make, embedder=lambda: towers.embedder().bind(towers.params)))

    assert outcome().error is None
    suite.check_same_everywhere([data_set], path="--root=/data")
    others = [None, "OSError: the disk is on fire"]
    assert suite.one_line(outcome().error) == "process 2: OSError: the disk is on fire"
    others = [["one"], ["one", "two"]]
    with pytest.raises(ConfigError, match=r"^--root=/data: process 0 finds one there and process 2 one, two; all"):
        suite.check_same_everywhere([data_set], path="--root=/data")


def test_a_suite_asks_nothing_of_a_model_that_it_lacks(tmp_path, monkeypatch):
    for name in ("vqa", "retrieval"):
        monkeypatch.setattr(f"mmjax.evals.{name}.Evaluator.find", lambda root, name=name: {name: {}})
    find = lambda *tasks, heads: [one.task for one in suite.find_suite(tasks, str(tmp_path), {}, heads=heads)]  # noqa: E731
    assert find("all", heads=()) == ["retrieval"] and find("all", heads=("answer",)) == ["retrieval", "vqa"]
    assert find("vqa", heads=("answer",)) == find("vqa", heads=None) == ["vqa"]
    with pytest.raises(
        ConfigError, match=r"^--suite: 'vqa' needs model.fusion.answers .*, which the model lacks; leave"
    ):
        find("retrieval", "vqa", heads=("match",))


def test_all_leaves_out_questions_with_other_answers_than_the_models(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    for name in ("vqa", "snli_ve"):
        monkeypatch.setattr(f"mmjax.evals.{name}.Evaluator.find", lambda root, name=name: {name: {}})

    def find(*tasks, answers, options):
        found = suite.find_suite(tasks, str(tmp_path), options, heads=("answer",), answers=answers)
        return [one.task for one in found]

    entailment = ("entailment", "neutral", "contradiction")
    assert find("all", answers=entailment, options={}) == find("all", answers=(), options={}) == ["snli_ve", "vqa"]
    lines = lambda: [line for line in caplog.messages if line.startswith("snli_ve")]  # noqa: E731
    assert not lines()
    assert find("all", answers=("yes", "no"), options={}) == ["vqa"]
    assert lines() == ["snli_ve: skipped, because the model's answers lack contradiction, entailment, neutral"]
    asked = {"snli_ve": {"answers": ("no", "maybe", "yes")}}
    assert find("all", answers=("yes", "no"), options=asked) == ["snli_ve", "vqa"]
    assert find("snli_ve", answers=("yes", "no"), options={}) == ["snli_ve"]


def test_missing_families_are_a_line_and_options_reach_those_that_are_there(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("mmjax.evals.retrieval.Evaluator.find", lambda root: {"coco": {"folds": 1, "split": "test"}})
    found = find_data_sets(["retrieval", "winoground"], tmp_path, {"retrieval": {"folds": 5}})
    assert found == [DataSet("coco", "retrieval", {"folds": 5, "split": "test"})]
    assert caplog.messages == [f"winoground: skipped, because none of its data sets lies below {tmp_path}"]


def test_a_data_set_that_fails_costs_no_other_and_neighbors_share_embeddings():
    towers = Towers()
    opened = []

    def open_source(split, **options):
        opened.append(split)
        if options.get("name") == "broken":
            raise OSError("the disk is on fire")
        return retrieval_source(5) if split == "a" else Source()

    def data_set(name, **options):
        return DataSet(name, "retrieval", options)

    broken = {"name": "broken"}
    listed = [data_set("one", split="a"), data_set("two", split="a", folds=2), data_set("three", split="b")]
    listed += [
        data_set("four", split="a", source=broken),
        data_set("five", split="a", fold=1),
        data_set("six", split="a"),
    ]
    embedders = []

    def bind():
        embedders.append(towers.embedder().bind(towers.params))
        return embedders[-1]

    outcomes = list(measure(listed, make=lambda d: make_evaluator(d, open_source), embedder=bind))
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, False, False, True]
    messages = [suite.one_line(outcome.error) for outcome in outcomes if outcome.error]
    assert messages == [
        "three.split='b': the source has no examples there; choose another split",
        "OSError: the disk is on fire",
        "five.fold=1: unknown key; did you mean 'folds'?",
    ]
    assert outcomes[0].metrics == outcomes[-1].metrics and outcomes[0].metrics != outcomes[1].metrics
    assert len(embedders) == 4  # a and a; b; broken; a and a
