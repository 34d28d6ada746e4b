"""The report of a comparison: a valid page and Markdown that show every figure, in every shape of results."""

import itertools

import pytest

from mmjax.report import comparison
from support.html_page import Page

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def row(name, *, fraction=None, metric="test/rsum", mean=100.0, change=None, verdict="noise", n=3):
    found = {"recipe": name, "fraction": fraction, "metric": metric, "values": [mean] * n, "n": n, "mean": mean}
    found |= {"sd": 1.5 if n > 1 else None, "low": mean - 2 if n > 1 else None, "high": mean + 2 if n > 1 else None}
    if change is not None:
        d = {"n": n, "mean": change, "sd": 2.0, "low": change - 3, "high": change + 3, "p": 0.04, "p_holm": 0.5}
        d |= {"up": 2, "down": 1, "verdict": verdict, "detectable": 6.5, "improves": change > 0}
        if n == 1:
            d |= dict.fromkeys(("sd", "low", "high", "p", "p_holm", "detectable"))
        found |= {"difference": d, "sentence": f"{name} against none: <{verdict}>"}
    return found


def results(*, names=("a & b", "c"), fractions=(None,), n=3, steps=True):
    examples = {f: None if f is None else int(4096 * f) for f in fractions}
    rows = []
    for metric, fraction in itertools.product(("test/rsum", "zeroshot/acc@1"), fractions):
        rows.append(row("none", fraction=fraction, metric=metric, n=n))
        for number, name in enumerate(names):
            verdict = "unknown" if n == 1 else ("clear", "noise", "uncorrected")[number % 3]
            change = {"change": 5.0 - 4 * number, "verdict": verdict}
            rows.append(row(name, fraction=fraction, metric=metric, mean=100.0 + number, n=n, **change))
    order = [
        {"recipe": r["recipe"], "difference": r.get("difference"), "is_baseline": r["recipe"] == "none"} for r in rows
    ]
    order = order[1 : len(names) + 1] + order[:1]
    curves = [
        {"metric": "val/rsum", "fraction": f, "recipe": name, "points": [[1, 2.0, 0.5], [2, 3.0, 0.25]]}
        for f in fractions
        for name in ("none", *names)
    ]
    found = {
        "version": "1", "config": "scenes", "overrides": [["steps", "6"]], "baseline": "none", "seeds": list(range(n)),
        "metrics": ["test/rsum", "zeroshot/acc@1"], "tests": 2 * len(names) * len(fractions), "detect": None,
        "sizes": [{"fraction": f, "examples": examples[f], "label": f"with {examples[f]} examples"} for f in fractions],
        "recipes": [
            {"name": "none", "overrides": [], "changes": [], "unequal": [], "steps": 9},
            *({"name": name, "overrides": [["augment", "(('x', {}),)"]], "changes": [["augment", [], [["x", {}]]]],
               "unequal": ["steps is 9"], "steps": 9} for name in names),
        ],
        "rows": rows, "curves": curves,
        "rankings": [{"fraction": f, "order": order, "sentence": f"{names[0]} comes first"} for f in fractions],
    }  # fmt: skip
    if steps:
        time = {
            "seconds": 0.012,
            "first_seconds": 0.009,
            "ratio": 1.25,
            "low": 1.2,
            "high": 1.3,
            "batch_seconds": 0.003,
            "batch_ratio": 1.1,
        }
        found["step_times"] = [time | {"recipe": name} for name in ("none", *names)]
        pictures = [[[PIXEL, True], True], [[PIXEL, True], False]]
        entry = {"caption": "a <red> dot", "recipe": names[0], "image": [PIXEL, True]}
        entry |= {"ranks": {"none": [9] * n, names[0]: [1] * n}, "retrieved": {"none": pictures, names[0]: pictures}}
        found["rank_changes"] = {"split": "test", "images": 1000, "seeds": list(range(n))[:3], "entries": [entry]}
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 1, "steps": False},
        {"fractions": (0.25, 1.0)},
        {"names": tuple(f"recipe{i}" for i in range(12)), "fractions": (0.25, 0.5, 1.0), "n": 8},
    ],
)
def test_the_page_and_the_markdown_show_it_all(options, tmp_path):
    found = results(**options)
    text = comparison.write(tmp_path, found).read_text()
    page = Page(text)
    assert all(link.startswith("data:") for link in page.links)
    markdown = (tmp_path / "report.md").read_text()
    for r in found["rows"]:
        assert r["recipe"] in page.text and r["recipe"] in markdown
        if "difference" in r:
            assert comparison.with_interval(r["difference"]) in page.text
            assert comparison.with_interval(r["difference"]) in markdown
    for line in (*comparison.verdict_lines(found), *comparison.warnings(found)):
        assert line in page.text and line in markdown
    assert page.text.count("test/rsum") >= 2 and "--config=scenes --config.steps=6" in page.text
    cells = {line.count("|") for line in markdown.replace(r"\|", "").splitlines() if line.startswith("|")}
    assert cells <= {7, 9, len(found["sizes"]) + 2}  # every row of a table is whole
    assert ("What changed in retrieval" in page.text) == ("step_times" in found)
    if "rank_changes" in found:
        which = "of the seeds 0, 1, 2" if len(found["seeds"]) > 3 else "seed"
        assert f"one number for each {which};" in page.text and f"its rank with each {which}\n" in markdown
    assert ("Which recipe for which data" in page.text) == (len(found["sizes"]) > 1)
    charts = text.count("<figure><figcaption>")
    groups = -(-len(options.get("names", "ab")) // 5)
    assert charts == groups * (len(found["sizes"]) + (len(found["sizes"]) > 1))
    assert text.count('class="band') == (0 if options.get("n") == 1 else text.count('class="line'))


def test_warnings_name_what_is_not_to_be_trusted():
    lines = list(comparison.warnings(results()))
    assert "Not an equal budget: steps is 9." in lines
    assert "Inside the noise, so no result either way: c." in lines
    assert not any("noise" in line and "a & b" in line for line in lines)  # which is clear


def test_a_report_says_that_budgets_are_equal_where_they_are(tmp_path):
    found = results()
    for equal in (False, True):
        if equal:
            found["recipes"] = [recipe | {"unequal": []} for recipe in found["recipes"]]
        page = Page(comparison.write(tmp_path, found).read_text()).text
        for text in (page, (tmp_path / "report.md").read_text()):
            assert ("number of steps" in text) == equal
            assert ("budgets differ" in text) == ("Not an equal budget" in text) == (not equal)


def equal_time(found):
    return [line for line in comparison.warnings(found) if "equal time" in line]


def test_a_better_recipe_that_takes_longer_is_to_be_compared_with_longer_plain_training():
    found = results()  # of its recipes the first is better, and all take 1.25 times as long
    (line,) = equal_time(found)
    assert "a step of a & b takes 1.25 times that of none, which trains 11 steps in the time of its 9" in line
    assert "--variant='same time:steps=11'" in line

    found["recipes"][0]["overrides"] = [["augment", "(('x', {}),)"]]  # a variant would have to repeat these
    (line,) = equal_time(found)
    assert "--variant" not in line

    found["recipes"][2] |= {"name": "long", "steps": 11, "changes": [["steps", 9, 11]]}
    (line,) = equal_time(found)
    assert line.endswith("in the time of its 9, as long does.")
    found["recipes"][2]["steps"] = 9
    assert "as long" not in equal_time(found)[0]

    found["recipes"][1]["steps"] = 7  # in which time it does no more than none in 9
    assert not equal_time(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("step_times"),
        lambda found: [time.update(low=1.05) for time in found["step_times"]],
        lambda found: [r["difference"].update(verdict="noise") for r in found["rows"] if "difference" in r],
        lambda found: [r["difference"].update(improves=False) for r in found["rows"] if "difference" in r],
    ],
    ids=["not timed", "no longer", "inside the noise", "worse"],
)
def test_others_need_no_such_comparison(change):
    found = results()
    change(found)
    assert not equal_time(found)


def test_intervals_of_a_table_share_a_scale_with_zero():
    rows = [row("none"), row("a", change=5.0), row("b", change=-1.0)]
    none, a, b = comparison._bars(rows)
    assert none is None and a.zero == b.zero
    scale = a.width / 6  # percent for one unit, as both intervals are 6 wide
    for bar, mean in ((a, 5), (b, -1)):
        assert bar.mean - bar.zero == pytest.approx(mean * scale, abs=0.02)
        assert 0 <= bar.low <= bar.mean <= bar.low + bar.width <= 100
    assert comparison._bars([row("none"), row("a", change=1.0, n=1)]) == [None, None]
