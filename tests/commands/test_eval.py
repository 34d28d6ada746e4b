"""``mmjax eval`` on weights of others: any data, suites, results and their comparison."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmjax import cli
from mmjax.commands import eval as command
from mmjax.commands.common import evaluating
from mmjax.commands.common.trained_model import open_model
from mmjax.commands.comparing.recipes import make_recipes
from mmjax.commands.comparing.runs import check, list_runs
from mmjax.core.config import ConfigError
from mmjax.evals.common.suite import DataSet, find_suite
from mmjax.experiment import EvalConfig
from mmjax.train.evaluation import Evaluation
from support import models_in_use, pictures

COUNT = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """COCO in Karpathy's layout, and one of SugarCrepe's data sets without its images."""
    root = tmp_path_factory.mktemp("benchmarks")
    (root / "coco" / "val2014").mkdir(parents=True)
    images = []
    for i in range(COUNT):
        picture = pictures.encoded(pictures.photograph(40, 32 + 3 * i, seed=i))
        (root / "coco" / "val2014" / f"{i}.jpg").write_bytes(picture)
        texts = models_in_use.CAPTIONS[i % 4 :][:2]
        sentences = [{"raw": text} for text in (*texts, f"a red circle {i} and a very long sentence after it all")]
        images.append({"filepath": "val2014", "filename": f"{i}.jpg", "split": "test", "sentences": sentences})
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images}))
    (root / "flickr8k").mkdir()
    (root / "flickr8k" / "dataset_flickr8k.json").write_text("{")
    return root


def run(capsys, *words):
    status = cli.main(["eval", *map(str, words)])
    return status, capsys.readouterr()


def test_a_suite_on_weights_of_others_is_measured_once_and_compared(model, root, tmp_path, capsys):
    output = tmp_path / "r.jsonl"
    words = [f"--model={model}", "--suite=retrieval,sugarcrepe", f"--root={root}", "--batch-size=8"]
    status, printed = run(capsys, *words, f"--output={output}", "--json")
    assert status == 1  # flickr8k is damaged
    metrics = json.loads(printed.out)
    assert {"coco/rsum", "coco/num_truncated"} <= metrics.keys() and metrics["coco/num_images"] == COUNT
    assert metrics["coco/num_truncated"] == COUNT + sum(i % 4 in (1, 2) for i in range(COUNT))  # of nine tokens
    assert "sugarcrepe: skipped" in printed.err
    assert "flickr8k could not be measured by retrieval: flickr8k.source.path=" in printed.err
    before = output.read_text()
    assert {json.loads(line)["dataset"] for line in before.splitlines()} == {"coco"}
    status, printed = run(capsys, *words, f"--output={output}", f"--against={output}")
    assert "1 of 2 data sets are in" in printed.err and output.read_text() == before
    head, *rows = [line.split() for line in printed.out.splitlines()]
    assert head == ["n", "value", "[1]", "difference"]
    assert rows[0][0] == "coco/image_to_text_R@1" and rows[0][1] == str(COUNT) and rows[0][-1] == "+0"


def test_a_process_without_the_file_measures_what_the_first_one_does(model, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluating.collectives, "all_gather", lambda own: [[0], own] if own == [] else [own])
    words = [f"--model={model}", "--suite=retrieval", f"--root={root}", "--batch-size=8", "--json"]
    status, printed = run(capsys, *words, f"--output={tmp_path / 'r.jsonl'}")
    assert "1 of 2 data sets are in" in printed.err and json.loads(printed.out) == {}
    assert status == 1 and not (tmp_path / "r.jsonl").exists()  # flickr8k is damaged, coco is measured already


def test_any_data_is_measured_by_what_it_has(model, root, capsys):
    path = root / "coco" / "dataset_coco.json"
    words = [f"--model={model}", f"--path={path}", "--option", "max_captions=1", "--batch-size=8", "--markdown"]
    status, printed = run(capsys, *words, "--option=retrieval.merge_repeats=False")
    assert status == 0
    assert f"| dataset_coco/test/text_to_image_R@1 | {COUNT} |" in printed.out and "zeroshot" not in printed.out
    assert "no splits" not in printed.err


def test_data_without_splits_is_said_to_be_measured_as_a_whole(root, tmp_path, monkeypatch, caplog):
    (tmp_path / "t.csv").write_text(f"filepath,title\n{root}/coco/val2014/0.jpg,a dog\n")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for words, split in (([], "test"), (["--split=val", "--tasks=retrieval"], "val")):
        args = parser.parse_args(["--model=m", f"--path={tmp_path / 't.csv'}", *words])
        args.overrides = []
        caplog.clear()
        with caplog.at_level("INFO"):
            assert [data_set.name for data_set in evaluating._data_sets(args, None, {})] == [f"t/{split}"]
        assert caplog.messages == [
            f"{tmp_path / 't.csv'} has no splits: all of its 1 examples are measured as {split!r}"
        ]


def test_the_suite_of_a_runs_config_is_measured_beside_its_own_data(root, monkeypatch):
    config = EvalConfig(suite=("retrieval",), root=str(root), options={"retrieval": {"folds": 2, "split": "val"}})
    monkeypatch.setattr(evaluating, "_config_of_run", lambda args: config)
    own = DataSet("val", "retrieval", {}, "val")
    towers = SimpleNamespace(embedder=SimpleNamespace(heads=(), answers=()))
    model = SimpleNamespace(
        experiment=SimpleNamespace(eval=config), own_data_sets=lambda tasks, splits: [own], evaluation=towers
    )

    def data_sets(*words):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        args = parser.parse_args(["--workdir=run", *words])
        evaluating.check_flags(args)
        return evaluating._data_sets(args, model, evaluating.split_options(args.option)[1])

    first, coco, flickr = data_sets("--option=retrieval.ties=optimistic")
    assert first == own and (coco.name, flickr.name) == ("coco", "flickr8k")
    assert coco.options["folds"] == 2 and coco.options["split"] == "test" and coco.options["ties"] == "optimistic"
    assert [data_set.name for data_set in data_sets(f"--root={root}")] == ["coco", "flickr8k"]
    assert data_sets("--tasks=retrieval", "--split=val") == [own]
    one = data_sets("--suite=retrieval:flickr8k", f"--root={root}")
    assert [(data_set.task, data_set.name) for data_set in one] == [("retrieval", "flickr8k")]
    with pytest.raises(ConfigError, match=r"^--suite: retrieval='flickr': no such name; did you mean 'flickr8k'"):
        data_sets("--suite=retrieval:flickr", f"--root={root}")
    with pytest.raises(ConfigError, match=r"--root=.*: has none of the data sets of --suite=winoground"):
        data_sets("--suite=winoground")
    with pytest.raises(
        ConfigError, match=rf"^--root={root}/coco: has none of .*; {root} has coco, flickr8k; name that"
    ):
        data_sets("--suite=retrieval", f"--root={root}/coco")


@pytest.mark.parametrize("answers, asked", [(("yes", "no"), False), (("neutral", "entailment", "contradiction"), True)])
def test_all_asks_of_a_model_what_it_can_answer(model, root, monkeypatch, answers, asked):
    """By the command and by a run's config."""
    monkeypatch.setattr("mmjax.evals.snli_ve.Evaluator.find", lambda root: {"snli_ve": {}})
    trained = open_model(str(model), options={}, batch_size=8)
    embedder = trained.evaluation.embedder
    monkeypatch.setattr(type(embedder), "heads", {"answer"})
    monkeypatch.setattr(embedder, "answers", answers)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([f"--model={model}", "--suite=all", f"--root={root}"])
    evaluating.check_flags(args)
    of_command = {data_set.task for data_set in evaluating._data_sets(args, trained, {})}
    config = EvalConfig(tasks=(), final_tasks=(), suite=("all",), root=str(root))
    evaluation = Evaluation(config, embedder, lambda split, own: None)
    evaluation.open()
    assert of_command == {data_set.task for data_set in evaluation._suite}
    assert "retrieval" in of_command and ("snli_ve" in of_command) is asked


def test_a_run_measures_its_suite_at_its_end(model, root, caplog):
    """The evaluation that training ends with, over a model that is there already."""
    caplog.set_level("INFO")
    trained = open_model(str(model), options={}, batch_size=8)
    open_source = trained.evaluation.open_source

    def final(**sections):
        config = EvalConfig(tasks=(), final_tasks=(), **sections)
        evaluation = Evaluation(config, trained.evaluation.embedder, lambda split, own: open_source(split, **own))
        evaluation.open()
        return evaluation.run_final(trained.params)

    suite = {"suite": ("retrieval",), "root": str(root), "options": {"retrieval": {"max_captions": 2}}}
    metrics = final(**suite)
    assert metrics["coco/num_images"] == COUNT and metrics["coco/num_truncated"] < COUNT  # of two captions each
    assert 0 <= metrics["coco/rsum"] <= 600 and not any(name.startswith("flickr8k") for name in metrics)
    assert "flickr8k could not be measured by retrieval: flickr8k.source.path=" in caplog.text
    assert "coco (retrieval)" in caplog.text and final() == {}
    for sections, message in (
        ({"suite": ("retreival",), "root": str(root)}, r"^eval.suite='retreival': no such name; did you mean"),
        ({"suite": ("retrieval",)}, r"^eval.root=None: no such folder"),
        ({"suite": ("winoground",), "root": str(root)}, r"^eval.root=.*: has none of the data sets of eval.suite=wino"),
        ({"suite": ("vqa",), "root": str(root)}, r"^eval.suite: 'vqa' needs model.fusion.answers with images=1, which"),
        ({"options": {"aro": {"fold": 2}}}, r"^eval.options.aro.fold=2: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            final(**sections)


def test_an_evaluator_without_published_data_is_named(root, caplog):
    with pytest.raises(ConfigError, match=r"^--suite=captioning: knows no published data; .* --tasks=captioning"):
        find_suite(("captioning",), str(root), {})
    with caplog.at_level("INFO"):
        assert {data_set.task for data_set in find_suite(("captioning", "retrieval"), str(root), {})} == {"retrieval"}
    assert "captioning: skipped, because it knows no published data" in caplog.text


def test_what_a_model_lacks_is_named_on_any_data(model, root, capsys):
    words = [f"--model={model}", f"--path={root / 'coco' / 'dataset_coco.json'}", "--tasks=vqa", "--batch-size=8"]
    status, printed = run(capsys, *words)
    assert status == 2 and "dataset_coco/test/vqa: 'vqa' needs model.fusion.answers with images=1" in printed.err


def test_metrics_of_a_suite_are_known_before_a_comparison_trains(root):
    config = str(Path(__file__).parents[2] / "configs" / "quickstart.py")
    suite = [("eval.suite", "('retrieval','sugarcrepe')"), ("eval.root", repr(str(root)))]

    def check_runs(*metrics, suite=suite):
        check(list_runs(make_recipes(config, suite, names=("none", "mixup")), seeds=[0]), metrics=metrics)

    check_runs("coco/rsum", "flickr8k/num_images", "test/rsum")
    for metric in ("coco/rsun", "cocoo/rsum", "test/rsun", "rsum"):
        with pytest.raises(ConfigError, match=f"--metrics='{metric}': no evaluation gives such a metric"):
            check_runs(metric)
    with pytest.raises(ConfigError, match="--metrics='coco/rsum': no evaluation gives such a metric"):
        check_runs("coco/rsum", suite=())
    with pytest.raises(ConfigError, match=r"^eval.root=None: no such folder"):
        check_runs("coco/rsum", suite=suite[:1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=M", "--suite=all"], "--suite=all: goes with --root=DIR; give both"),
        (["--model=M", "--root=/"], "--root=/: goes with --suite=NAMES or --suite=all; give both"),
        (["--model=M", "--suite=all", "--root=/", "--path=x"], "--suite=all: goes without --path"),
        (["--model=M", "--suite=all", "--root=/nope"], "--root=/nope: no such folder"),
        (["--model=M", "--step=3"], "--step=3: goes with --workdir; write --model=M@3"),
        (["--model=M", "--tasks=retreival"], "--tasks='retreival': no such name; did you mean 'retrieval'?"),
        (["--model=M", "--option=retrieval.fold=5"], "--option.retrieval.fold=5: unknown key; did you mean 'folds'?"),
        (["--model=M", "--option=retrieval.folds=x"], "--option.retrieval.folds='x': expected int, got str"),
        (["--model=M", "--option=retreival.folds=5"], "--option='retreival': no such name; did you mean 'retrieval'?"),
        (["--model=M", "--option=retrieval.folds"], "--option retrieval.folds: has no value; write EVALUATOR.KEY"),
        (["--model=M", "--option=folds=5"], "--option folds=5: is of a source; give --path, or write EVALUATOR.KEY"),
        (["--model=M", "--against=/nope"], "--against=/nope: cannot be read"),
        (["--model=M", "--batch-size=0"], "--batch-size=0: must be at least 1"),
        (["--model=/nope/x"], "/nope/x"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(capsys, words, message):
    status, printed = run(capsys, *words)
    assert status == 2 and message in printed.err and printed.err.count("\n") == 1


def test_weights_without_data_ask_for_some(model, capsys):
    status, printed = run(capsys, f"--model={model}")
    assert status == 2 and f"--path: is missing, and '{model}' is no run with data of its own" in printed.err
