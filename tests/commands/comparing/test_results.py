"""From recorded metrics to verdicts: every figure of the report worked out again with numpy and scipy."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from mmjax.commands.comparing import comparison, diff, verdicts
from mmjax.commands.comparing.results import collect
from mmjax.commands.comparing.runs import list_runs
from mmjax.core.config import ConfigError
from mmjax.report import comparison as report
from support import command
from support.compared import recipe, write_run

SEEDS = range(4)
BASE = np.array([100.0, 110.0, 105.0, 95.0])
CHANGES = {  # of test/rsum, by recipe
    "better": np.array([20.0, 22.0, 18.0, 21.0]),
    "same": np.array([3.0, -4.0, 2.0, -2.0]),
    "maybe": np.array([2.0, 10.0, 5.0, 8.0]),
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    spec = str(command.config_file(tmp_path_factory.mktemp("config")))
    rates = {name: {"optimizer__learning_rate": f"{i}e-3"} for i, name in enumerate(CHANGES, 1)}
    rates["same"] |= {"steps": "12"}
    made = {name: recipe(name, spec, **own) for name, own in rates.items()}
    made["maybe"] = dataclasses.replace(made["maybe"], own=(("log.every_steps", "5"), *made["maybe"].own,
                                                            ("log.every_steps", "4")))  # fmt: skip
    return [recipe("none", spec), *made.values()]


def record(recipes, workdir, *, fractions=(None,), seeds=SEEDS, scale=1.0):
    runs = list_runs(recipes, seeds=seeds, fractions=fractions)
    for run in runs:
        number = run.seed % len(BASE)
        change = 0.0 if run.recipe.name == "none" else float(CHANGES[run.recipe.name][number])
        rsum = BASE[number] + change * scale * (run.fraction or 1)
        write_run(
            run,
            workdir,
            curve={3: rsum / 2, 6: rsum},
            final={"test/rsum": rsum, "test/modality_gap": 1 - rsum / 1000, "val/rsum": 0.0, "zeroshot/acc@1": 0.5},
        )
    return runs


@pytest.fixture(scope="module")
def results(recipes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs")
    runs = record(recipes, workdir)
    metrics = ["test/rsum", "test/modality_gap"]
    found = collect(runs, workdir=workdir, metrics=metrics, detect=None, examples={})
    return json.loads(json.dumps(found))


def test_of_overrides_of_one_key_the_last_is_shown(results):
    (maybe,) = [one["overrides"] for one in results["recipes"] if one["name"] == "maybe"]
    assert maybe == [["optimizer.learning_rate", "3e-3"], ["log.every_steps", "4"]]


def row_of(results, name, metric="test/rsum"):
    return next(row for row in results["rows"] if row["recipe"] == name and row["metric"] == metric)


def test_means_differences_and_correction_are_those_of_scipy(results):
    tests = []
    for name, change in CHANGES.items():
        row = row_of(results, name)
        values = BASE + change
        np.testing.assert_allclose([row["mean"], row["sd"]], [values.mean(), values.std(ddof=1)])
        reference = stats.ttest_rel(values, BASE)
        d = row["difference"]
        interval = reference.confidence_interval()
        np.testing.assert_allclose([d["mean"], d["low"], d["high"]], [change.mean(), interval.low, interval.high])
        np.testing.assert_allclose(d["p"], reference.pvalue)
        assert (d["up"], d["down"], d["n"]) == (sum(change > 0), sum(change < 0), 4)
        tests += [d["p"], row_of(results, name, "test/modality_gap")["difference"]["p"]]
    assert results["tests"] == 6  # three recipes by two metrics
    order = np.argsort(tests)
    corrected = np.maximum.accumulate(np.array(tests)[order] * (6 - np.arange(6))).clip(max=1)
    pairs = [row_of(results, n, m)["difference"]["p_holm"] for n in CHANGES for m in results["metrics"]]
    np.testing.assert_allclose(np.array(pairs)[order], corrected)


def test_verdicts_say_what_the_figures_allow_and_no_more(results):
    verdict = {name: row_of(results, name)["difference"]["verdict"] for name in CHANGES}
    assert verdict == {"better": "clear", "same": "noise", "maybe": "uncorrected"}
    better, same, maybe = (row_of(results, name)["sentence"] for name in CHANGES)
    assert better.startswith("better raises test/rsum by 20.2 against none (95 % interval +17.5 to +23, 4 of 4 seeds;")
    assert "after Holm's correction for 6 comparisons" in better
    assert [row_of(results, name)["difference"]["improves"] for name in CHANGES] == [True, False, True]
    assert row_of(results, "better", "test/modality_gap")["difference"]["improves"]
    assert "same and none cannot be told apart in test/rsum: -0.25," in same and "inside the noise" in same
    assert "raises test/rsum by 6.25 against none if looked at alone" in maybe and "but not among all" in maybe
    lines = list(report.warnings(results))
    assert "Inside the noise, so no result either way: same." in lines
    assert "Not an equal budget: same has steps=12 in place of 6 of none." in lines
    ranking = results["rankings"][0]
    assert [entry["recipe"] for entry in ranking["order"]] == ["better", "maybe", "none", "same"]
    assert [entry["level_with_first"] for entry in ranking["order"]] == [True, False, False, False]
    assert ranking["sentence"].startswith("better comes first in test/rsum, +20.2 [+17.5, +23] against none, clear")


def test_where_less_is_better_the_ranking_turns_round(results):
    gaps = [row for row in results["rows"] if row["metric"] == "test/modality_gap"]
    assert verdicts.lower_is_better("test/modality_gap") and not verdicts.lower_is_better("test/image_to_text_mrr")
    assert verdicts.rank_recipes(gaps, baseline="none")[0]["recipe"] == "better"


def test_what_comes_first_but_is_level_with_others_is_not_called_the_winner():
    rows = [
        {"recipe": name, "metric": "m", "values": values, "mean": float(np.mean(values))}
        for name, values in (("none", [1.0, 2.0, 3.0]), ("a", [2.0, 2.0, 2.0]), ("b", [9.0, 9.0, 9.0]))
    ]
    ranking = verdicts.rank_recipes(rows[:2], baseline="none")
    line = verdicts.ranking_sentence(ranking, metric="m", baseline="none", size="with 8 examples")
    assert line == "With 8 examples: nothing beats none in m; a cannot be told from it."


def test_the_wanted_difference_decides_how_many_seeds(recipes, results, tmp_path):
    runs = record(recipes, tmp_path)
    found = collect(runs, workdir=tmp_path, metrics=["test/rsum"], detect=1.0, examples={})
    d = row_of(found, "same")["difference"]
    sd = CHANGES["same"].std(ddof=1)
    n = d["seeds_needed"]  # the power of n pairs, with the noncentral t distribution of scipy.stats

    def power(n):
        limit = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(limit, n - 1, np.sqrt(n) / sd) + stats.nct.cdf(-limit, n - 1, np.sqrt(n) / sd)

    assert power(n) >= 0.8 > power(n - 1)
    assert d["seeds_sentence"].startswith(f"{n:,} seeds (between ") and d["seeds_sentence"].endswith(" for one of 1")
    assert row_of(results, "same")["difference"]["seeds_needed"] > n  # of the measured 0.25


def test_curves_are_mean_and_spread_over_seeds(results):
    [curve] = [c for c in results["curves"] if c["metric"] == "val/rsum" and c["recipe"] == "better"]
    values = BASE + CHANGES["better"]
    expected = [[3, (values / 2).mean(), (values / 2).std(ddof=1)], [6, values.mean(), values.std(ddof=1)]]
    np.testing.assert_allclose(curve["points"], expected)  # and not the last measurement, which is another one
    assert {c["metric"] for c in results["curves"]} == {"val/rsum", "train/loss"}


def test_one_seed_gives_no_verdict(recipes, tmp_path):
    runs = record(recipes[:2], tmp_path, seeds=[0])
    found = collect(runs, workdir=tmp_path, metrics=[], detect=None, examples={})
    assert found["metrics"] == ["test/rsum", "val/rsum", "zeroshot/acc@1"]
    d = row_of(found, "better")["difference"]
    assert d["verdict"] == "unknown" and "one seed, which says nothing" in row_of(found, "better")["sentence"]
    assert "One seed only" in next(report.warnings(found))
    with pytest.raises(ConfigError, match=r"--metrics='test/rank'"):
        collect(runs, workdir=tmp_path, metrics=["test/rank"], detect=None, examples={})


def test_sizes_of_the_data(recipes, tmp_path):
    fractions = {0.25: 12, 0.5: 24, 1.0: 48}
    runs = record(recipes, tmp_path, fractions=tuple(fractions))
    assert (tmp_path / "better" / "fraction0.25" / "seed0").is_dir() and (tmp_path / "better" / "seed0").is_dir()
    found = collect(runs, workdir=tmp_path, metrics=["test/rsum"], detect=None, examples=fractions)
    assert found["tests"] == 9
    means = [row["difference"]["mean"] for row in found["rows"] if row["recipe"] == "better"]
    np.testing.assert_allclose(means, CHANGES["better"].mean() * np.array([0.25, 0.5, 1]))
    sentences = [ranking["sentence"] for ranking in found["rankings"]]
    assert sentences[0].startswith("With 12 examples (0.25 of the data): better comes first")
    text = report.format_markdown(found)
    assert "| test/rsum | 12 examples | 24 examples | 48 examples |" in text
    assert "test/rsum with 24 examples (0.5 of the data)" in text


def test_sizes_from_words():
    assert comparison.parse_sizes(["1", "0.25", "0.5"], examples=10) == [0.25, 0.5, 1]
    assert comparison.parse_sizes(["1k", "4096"], examples=4096) == [0.2442, 1]
    assert comparison.parse_sizes(["0.002M"], examples=3000) == comparison.parse_sizes(["2k"], examples=3000)
    for word in ("0", "-1", "1.5", "x", "0.5x", "nan", "inf", "", "k"):
        with pytest.raises(ConfigError, match="--fractions="):
            comparison.parse_sizes([word], examples=100)
    with pytest.raises(ConfigError, match="has 100 examples; name fewer"):
        comparison.parse_sizes(["101"], examples=100)


@pytest.mark.parametrize("examples", [7, 48, 4096, 29_783, 3_000_000])
def test_a_number_of_examples_is_exactly_the_floor_of_its_fraction(examples):
    from fractions import Fraction

    for count in {1, 2, 5, examples // 3, examples // 2, examples - 1, examples}:
        fraction = comparison.fraction_of(count, examples)
        assert Fraction(str(fraction)) * examples // 1 == count and 0 < fraction <= 1


def test_two_reports_are_compared_seed_by_seed(recipes, tmp_path):
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder, scale in zip(folders, (1.0, 1.5), strict=True):
        folder.mkdir()
        names = recipes if scale == 1 else recipes[:3]
        runs = record(names, folder, scale=scale)
        found = collect(runs, workdir=folder, metrics=["test/rsum"], detect=None, examples={})
        (folder / "comparison.json").write_text(json.dumps(found | {"version": f"{scale}"}))
    changed = diff.compare_results(*folders)
    assert changed["paired"] and changed["only_old"] == ["maybe"] and changed["only_new"] == []
    assert changed["settings"] == [["version", "1.0", "1.5"]]
    better = next(row for row in changed["rows"] if row["new"]["recipe"] == "better")
    reference = stats.ttest_1samp(CHANGES["better"] / 2, 0).confidence_interval()
    np.testing.assert_allclose([better["change"]["low"], better["change"]["high"]], reference)
    text = diff.format_markdown(changed)
    assert "| better | test/rsum |" in text and "only in" in text and "seed by seed; 1 of 3 exclude zero" in text
    (folders[1] / "comparison.json").write_text("{")
    with pytest.raises(ConfigError, match=r"new: has no readable comparison\.json"):
        diff.compare_results(*folders)


def test_reports_of_other_seeds_are_compared_by_welch(recipes, tmp_path):
    for name, seeds in (("old", range(3)), ("new", range(1, 4))):
        (tmp_path / name).mkdir()
        runs = record(recipes[:2], tmp_path / name, seeds=seeds)
        found = collect(runs, workdir=tmp_path / name, metrics=["test/rsum"], detect=None, examples={})
        (tmp_path / name / "comparison.json").write_text(json.dumps(found))
    changed = diff.compare_results(tmp_path / "old", tmp_path / "new")
    assert not changed["paired"] and changed["settings"] == [["seeds", [0, 1, 2], [1, 2, 3]]]
    interval = stats.ttest_ind(BASE[1:], BASE[:3], equal_var=False).confidence_interval()
    change = changed["rows"][0]["change"]
    np.testing.assert_allclose([change["low"], change["high"]], [interval.low, interval.high])
    assert "by Welch's interval, as the seeds differ" in diff.format_markdown(changed)
