"""The report on captions as training data: each number by hand, and the text."""

import pytest

from mmjax.evals.captions.metrics import score_captions
from mmjax.evals.captions.quality import format_quality, measure_quality

GROUPS = {
    "source": [["A red dog.", "a red dog"], ["a blue cat"], ["a blue cat", "two birds fly over a lake"]],
    "rewrite": [["a crimson dog"], [], ["Two birds fly over a lake!", "..."]],
    "none": [[], [], []],
}


@pytest.fixture(scope="module")
def report():
    return measure_quality(
        GROUPS,
        source="source",
        is_true=lambda image, text: image != 1 and "dog" in text,
        clip_scores={"source": {"clip_score": 0.8, "clip_score_shuffled": 0.2}},
    )


def test_repeats_are_counted_within_and_across_images(report):
    source = report["source"]
    assert source["images"] == 3 and source["captions"] == 5 and source["per_image"] == pytest.approx(5 / 3)
    assert source["repeated"] == pytest.approx(1 / 5)  # of the first image
    assert source["shared"] == pytest.approx(1 / 5)  # the cat of the last one
    assert source["most_frequent"] == [["a blue cat", 2]]
    assert source["vocabulary"] == 10
    assert source["length_median"] == 3 and source["length_range"] == "3 to 5"


def test_other_kinds_are_compared_with_the_source_of_their_image(report):
    rewrite = report["rewrite"]
    assert rewrite["images"] == 2 and rewrite["empty"] == pytest.approx(1 / 3)
    assert rewrite["copies"] == pytest.approx(1 / 3)
    assert rewrite["new_words"] == pytest.approx(1 / 9)  # crimson, of 3 + 6 + 0 words
    assert rewrite["rouge_l"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    candidates, sources = ["a crimson dog", "two birds fly over a lake", "..."], GROUPS["source"]
    scores, _ = score_captions(candidates, [sources[0], sources[2], sources[2]])
    assert {name: rewrite[name] for name in ("bleu_4", "cider")} == {name: scores[name] for name in ("bleu_4", "cider")}
    assert rewrite["true"] == pytest.approx(1 / 3) and report["source"]["true"] == pytest.approx(2 / 5)
    assert report["source"]["clip_score_shuffled"] == 0.2 and "clip_score" not in rewrite
    assert report["none"] == {"images": 0} | {key: 0 for key in report["none"] if key != "images"}


def test_the_text_has_a_column_for_each_kind(report):
    lines = format_quality({"groups": report, "unreadable": 2}).splitlines()
    assert lines[0].split() == ["source", "rewrite", "none"]
    by_title = {line.split("  ")[0].strip(): line for line in lines}
    assert by_title["captions"].split() == ["captions", "5", "3", "0"]
    assert by_title["equal to a source caption"].endswith("33.3%")
    assert by_title["CLIPScore"].split() == ["CLIPScore", "0.800"]
    assert "most frequent of source: 'a blue cat' 2" in lines and lines[-1].startswith("2 examples could not be read")
    assert len({len(by_title[title]) for title in ("images", "captions", "vocabulary")}) == 1  # columns are aligned
