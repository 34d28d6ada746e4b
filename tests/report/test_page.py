import base64
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from mmjax import report
from mmjax.report.chart import BOTTOM, HEIGHT, TOP, Series, line_chart, number, thin
from mmjax.runs.metrics_file import MetricsWriter
from support.html_page import Page


def retrieval(value):
    metrics = {f"{d}_R@{k}": value for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    return metrics | {"rsum": 600 * value, "num_images": 1000.0, "num_captions": 5000.0}


def prefixed(prefix, metrics):
    return {f"{prefix}/{k}": v for k, v in metrics.items()}


@pytest.fixture
def workdir(tmp_path):
    run = tmp_path / "my-run"
    with MetricsWriter(run) as writer:
        for step in range(1, 61):
            writer.write(
                step, {"train/loss": 4 / step, "train/learning_rate": 1e-3, "train/examples_per_second": 500.0}
            )
            if step % 20 == 0:
                writer.write(step, prefixed("val", retrieval(0.5 if step == 40 else 0.25)))
        final = prefixed("test", retrieval(0.375))
        final |= {"zeroshot/acc@1": 0.71, "zeroshot/acc@1_held_out": 0.2, "zeroshot/num_classes": 16.0}
        pairs = {"swap_obj": 0.62, "swap_obj_blind": 0.51, "macro": 0.62, "macro_blind": 0.51, "tie_rate": 0.003}
        final |= prefixed("test/pairwise", pairs | {"num_pairs": 700.0})
        final |= prefixed("winoground", {"text_score": 0.3, "image_score": 0.29, "group_score": 0.22})
        final |= {"winoground/text_score_swap_color": 0.44}
        writer.write(60, final)
    (run / "config.json").write_text(
        json.dumps({"steps": 60, "model": {"name": "tiny"}, "augment": [["lemda", {"p": 1}]]})
    )
    return run


def page_of(workdir, **options):
    path = report.write(workdir, **options)
    assert path == workdir / "report.html" and not list(workdir.glob("*.tmp"))
    return Page(path.read_text(encoding="utf-8"))


def panel(caption="a red circle", retrieved="a blue square", shape=(8, 8, 3)):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = [{"image": pixels, "captions": [caption], "retrieved": [(retrieved, 0.875, False), (caption, 0.75, True)]}]
    captions = [{"caption": caption, "image": pixels, "retrieved": [(pixels, 0.625, True), (pixels, 0.5, False)]}]
    return {"panel": images, "caption_panel": captions}


def test_a_whole_run(workdir):
    facts = {"parameters": 281345, "versions": {"jax": "0.10.2"}, "training seconds": 301.2}
    page = page_of(workdir, summary=facts, **panel())
    for words in (
        "my-run", "model tiny", "augmentations lemda", "test rsum 225.0", "parameters 281,345", "versions.jax 0.10.2",
        "training seconds 5m01s", "Training loss", "Learning rate", "Examples a second", "Sum of recalls, val",
        "Zero-shot classification", "acc@1 held out 20.0", "6.2", "True or false caption, test",
        "swap obj 62.0 50.0 51.0",
        "0.3 % ties", "Winoground", "text score, swap color 44.0 25.0", "group score 22.0 16.7",
        "a blue square 0.875", "a red circle 0.750", "✗ 0.500", "chance 0.1 0.5 1.0 0.1 0.5 1.0 3.2",
        "1,000 images, 5,000 captions", "Every metric",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("svg") == 6
    assert page.tags.count("img") == 4


def test_questions_captions_boxes_and_labels_stand_beside_their_controls(workdir):
    final = prefixed("test/vqa", {"accuracy": 0.7, "accuracy_other_image": 0.355, "accuracy_color": 0.68,
                                  "unlisted": 0.02, "num_examples": 1000.0})  # fmt: skip
    final |= prefixed("test/captioning", {"cider": 1.2, "bleu_4": 0.31, "attribute_accuracy": 0.63,
                                          "attribute_accuracy_other_image": 0.36, "all_true": 0.09})  # fmt: skip
    final |= prefixed("coco/captioning", {"cider": 0.8})
    final |= prefixed("test/refcoco", {"mass_in_box": 0.35, "mass_gain": 0.185, "area_of_box": 0.165, "pointing": 0.5})
    final |= prefixed("test/sequence_labels", {"label_error_rate": 0.11, "label_error_rate_other_example": 0.9,
                                               "deletions": 0.04, "sequence_accuracy": 0.8})  # fmt: skip
    with MetricsWriter(workdir) as writer:
        writer.write(65, final | {"val/vqa/accuracy": 0.5})
        writer.write(66, {"val/vqa/accuracy": 0.6})
    page = page_of(workdir)
    assert page.tags.count("svg") == 1  # val/vqa; one step is no curve
    for words in (
        "val/vqa accuracy 60.0", "test/vqa accuracy 70.0", "Answers, test, vqa % other image accuracy 70.0 35.5",
        "color 68.0",
        "1,000 questions. 2.0 % have answers that the model does not know.",
        "Captions, test % other image claims that are true 63.0 36.0", "captions without a mistake 9.0",
        "CIDEr-D 120.0", "BLEU-4 31.0", "Captions, coco % CIDEr-D 80.0 Step",
        "map inside the box 35.0 16.5", "maximum inside the box 50.0 16.5",
        "Labels of sequences, test % other example label error rate 11.0 90.0", "deletions 4.0",
        "sequence accuracy 80.0",
    ):  # fmt: skip
        assert words in page.text, words


def test_maps_lie_over_their_pictures_beside_the_share_of_the_box(workdir):
    pixels, heat = np.full((8, 8, 3), 40, np.uint8), np.zeros((16, 16))
    heat[4, 12], heat[0, 0] = 2.0, -1.0
    entry = {"image": pixels, "box": (0.625, 0.125, 1.25, 0.5), "heat": heat, "mass_in_box": 0.5, "area_of_box": 0.125}
    entries = [{**entry, "text": "a <ring>", "pointing": 1.0}, {**entry, "text": "a star", "pointing": 0.0}]
    page = page_of(workdir, grounding_panel=entries)
    for words in ("in the box for 1 of these 2", "a <ring>", "✓ inside", "✗ outside", "50.0 % of the map in the box"):
        assert words in page.text, words
    assert "has 12.5 % of the area" in page.text and page.tags.count("img") == 6
    assert "left:62.5%;top:12.5%;width:37.5%;height:37.5%" in report.write(workdir, grounding_panel=entries).read_text()
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.links[2].partition(",")[2]))))
    brightness = drawn[..., :3].sum(axis=-1, dtype=int)
    assert drawn.shape == (16, 16, 4) and brightness[4, 12] == brightness.max() > brightness[0, 0] == brightness.min()
    assert 0 < drawn[0, 0, 3] < 255
    flat = page_of(workdir, grounding_panel=[{**entries[0], "heat": np.zeros((4, 4))}])
    assert flat.tags.count("img") == 3 and "Where the model looks" not in page_of(workdir).text


def test_views_are_drawn_beside_the_clean_rows_and_the_sphere_where_it_was_measured(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            measured = {"mixup/task": 3.0, "mixup/task_gap": 0.5, "mixup/task_modality_gap": 0.1, "m2mix/m2": 4.0}
            writer.write(step, {"train/loss": 2.5} | prefixed("augment", measured))
        writer.write(3, prefixed("val", {"uniformity_image": -1.0, "uniformity_text": -1.5, "modality_gap": 0.7}))
    text = page_of(tmp_path).text
    assert "Loss of mixup's view 'task'" in text and text.count("Loss of ") == 1
    assert "Uniformity and modality gap, val" in text


def test_the_best_step_is_marked_and_the_last_one_shown(workdir):
    text = report.write(workdir).read_text()
    rows = re.findall(r"<tr( class=\"best\")?><th scope=\"row\">val</th><td>(\d+)</td>", text)
    assert rows == [("", "20"), (' class="best"', "40"), ("", "60")]


def test_many_evaluations_are_thinned_but_the_best_and_last_stay(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 101):
            writer.write(step, prefixed("val", retrieval(0.9 if step == 37 else 0.1)))
    text = report.write(tmp_path).read_text()
    steps = re.findall(r"<th scope=\"row\">val</th><td>(\d+)</td>", text)
    assert len(steps) <= 13 and "37" in steps and steps[-1] == "100"


def test_the_page_needs_nothing_but_itself(workdir):
    page = page_of(workdir, **panel())
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = (workdir / "report.html").read_text()
    assert "url(" not in style and "@import" not in style and "http" not in style.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b < c"])
def test_text_from_outside_is_text(tmp_path, attack):
    run = tmp_path / "run"
    with MetricsWriter(run) as writer:
        writer.write(1, {f"{attack}/rsum": 1.0, f"val/{attack}": 2.0, f"{attack}/acc@1": 0.5} | {attack: 3.0})
        pairs = {"macro": 0.5, "macro_blind": 0.5, attack: 0.5, f"{attack}_blind": 0.5}
        writer.write(1, prefixed("p", pairs) | {f"w/group_score_{attack}": 0.1, "w/group_score": 0.1})
    config = {
        "model": {"name": attack},
        attack: attack,
        "augment": [[attack, {}]],
        "data": {"source": {"name": [attack]}},
    }
    (run / "config.json").write_text(json.dumps(config))
    (run / "starts.jsonl").write_text(json.dumps({"command": [attack], attack: {attack: attack}}))
    page = page_of(run, summary={attack: attack}, **panel(attack, attack))
    assert "script" not in page.tags and page.tags.count("img") == 4
    assert page.words.count(attack) >= 8


def test_the_name_of_the_run_is_text_too(tmp_path):
    run = tmp_path / "<b>bold"
    run.mkdir()
    page = page_of(run)
    assert "b" not in page.tags and "<b>bold" in page.text


def test_an_empty_folder_still_gives_a_page(tmp_path):
    page = page_of(tmp_path)
    assert "No readable config.json" in page.text and "nothing was measured yet" in page.text
    assert "svg" not in page.tags


def test_a_run_of_one_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 3.0})
    page = page_of(tmp_path)
    assert page.tags.count("svg") == 1 and "circle" in page.tags
    assert "Retrieval" not in page.text and "Beyond" not in page.text


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", "null", '{"a": {}}', '{"data": 3, "model": []}', "\x00"])
def test_a_damaged_configuration(workdir, damage):
    (workdir / "config.json").write_text(damage)
    assert "test rsum" in page_of(workdir).text


def test_damaged_and_strange_metrics(workdir):
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(
            b'\xff\xfe\n{"step": 61, "train/loss": "NaN", "val/rsum": "NaN"}\n{"step": 62, "val/rsum": "Infinity"}\n'
        )
        file.write(b'{"step": 63, "zeroshot/acc@1": "NaN", "train/loss": 1e308}\n{"step": 64, "train/loss": -1e308}\n')
        file.write(
            b'{"step": 65, "test/pairwise/macro_blind": 0.5}\n{"step": 65, "winoground/group_score": "NaN"}\n{"st'
        )
    page = page_of(workdir)
    assert "NaN" in page.text
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', (workdir / "report.html").read_text())


def test_the_last_start_gives_the_facts(workdir):
    (workdir / "starts.jsonl").write_text('{"git": "aaa"}\n{"git": "bbb", "versions": {"jax": "1"}}\n{"git": "tor')
    text = page_of(workdir, summary={"parameters": 5}).text
    assert "git bbb" in text and "aaa" not in text and "versions.jax 1" in text and "parameters 5" in text


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4, 1), (4, 6), (200, 150, 3)])
def test_images_of_one_and_three_channels(workdir, shape):
    assert page_of(workdir, **panel(shape=shape)).tags.count("img") == 4


def test_what_is_no_image_is_refused(workdir):
    with pytest.raises(ValueError, match=r"float64\[4, 4, 3\]; expected uint8"):
        report.write(workdir, panel=[{"image": np.zeros((4, 4, 3)), "captions": [], "retrieved": []}])


def coordinates(svg):
    return [tuple(map(float, p)) for p in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg.split('class="line')[1])]


@pytest.mark.parametrize(
    "ys",
    [
        [0.0],
        [5.0, 5.0],
        [1e-12, 2e-12],
        [-3.0, 4.0],
        [1e15, 2e15],
        [0.1, math.nan, 0.3],
        [1.0, 1.0 + 1e-15],
        [0.0, 5e-324],
        [2.0, 1e308, 3.0],
    ],
)
def test_points_stay_inside_the_axes(ys):
    svg = line_chart("t", [Series("s", list(enumerate(ys)))])
    points = coordinates(svg)
    assert len(points) == sum(abs(y) < 1e30 for y in ys)
    assert all(50 <= x <= 400 and 0 <= y <= 190 for x, y in points)


def test_higher_values_are_drawn_higher_and_later_ones_to_the_right():
    (a, b, c) = coordinates(line_chart("t", [Series("s", [(1, 1.0), (2, 3.0), (4, 2.0)])]))
    assert a[0] < b[0] < c[0] and b[1] < c[1] < a[1]
    assert (c[0] - b[0]) == pytest.approx(2 * (b[0] - a[0]), abs=0.3)


def test_a_gap_breaks_the_line_and_hover_titles_tell_values():
    svg = line_chart("t", [Series("loss", [(1, 1.0), (2, 2.0), (3, math.nan), (4, 4.0), (5, 5.0)])], unit="%")
    assert re.search(r'd="M[^ML]+L[^ML]+M[^ML]+L[^ML]+"', svg)
    assert "<title>loss: 4% at step 4</title>" in svg and svg.count("<title>") == 4


def test_nothing_finite_is_no_chart():
    assert line_chart("t", [Series("s", [])]) == line_chart("t", [Series("s", [(1, math.nan)])]) == ""


def test_thinning_keeps_ends_and_extremes():
    points = [(float(i), math.sin(i)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[77] = (77.0, math.nan)
    kept = thin(points, 400)
    assert len(kept) <= 402 and kept[0] == points[0] and kept[-1] == points[-1] and points[4321] in kept
    assert kept == sorted(kept)
    assert thin(points[:50], 400) == points[:50]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (12_000, "12k"), (2_200, "2200"), (0.0000312, "3.12e-5"), (1.5e6, "1.5M"), (-2e9, "-2G"),
     (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞"), (1e15, "1e15"), (0.0005, "0.0005")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_the_page_may_load_and_run_nothing_and_shows_control_characters_as_text(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "\x1b[31m\u202eevil\x07"}}))
    page = report.write(tmp_path).read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)[1]
    assert "default-src 'none'" in policy and "script-src" not in policy and "base-uri 'none'" in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert r"\x1b[31m\u202eevil\x07" in page and not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)


def test_bands_lie_inside_the_axes_and_are_left_out_where_they_cannot_be_drawn():
    band = [(0, 0.0, 9.0), (1, 1.0, 30.0), (2, math.nan, 2.0)]
    svg = line_chart("t", [Series("a", [(0, 4.0), (1, 5.0), (2, 2.0)], band), Series("b", [(0, 1.0)], band[:1])])
    [outline] = re.findall(r'class="band s1" d="M([^Z]*)Z"', svg)
    points = [tuple(map(float, point.split())) for point in outline.split("L")]
    assert len(points) == 4  # up along the upper end and back along the lower one
    assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in points) and points[0][1] < points[3][1]
    assert 'class="band s2"' not in svg  # one point has no area
    assert 'class="line s4"' in line_chart("t", [Series("a", [(0, 1.0)], color=4)])
