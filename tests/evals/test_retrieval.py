import itertools
import math

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals.retrieval import Evaluator, evenly_spaced
from support.towers import Source, Towers, data_sharding, image, reference, retrieval_source


def evaluate(source, towers=None, *, params=None, embedder=None, **options):
    towers = towers or Towers()
    bound = towers.embedder(**(embedder or {})).bind(params or towers.params)
    return Evaluator(lambda split: source, **options)(bound)


def unique_captions(source):
    return list(dict.fromkeys(c for e in source for c in e["captions"]))


def by_hand(source, zi, zt):
    """Metrics by sorting every query's scores; ``zt`` are the embeddings of the captions without repetitions."""
    captions = unique_captions(source)
    own = np.asarray([[caption in e["captions"] for caption in captions] for e in source])
    scores = zi @ zt.T
    ranks = {"image_to_text": [], "text_to_image": []}
    for direction, table, hits in (("image_to_text", scores, own), ("text_to_image", scores.T, own.T)):
        for row, hit in zip(table, hits, strict=True):
            ranks[direction].append(sum(row[~hit] >= max(row[hit]) - 1e-7))
    result = {}
    for direction, rank in ranks.items():
        rank = np.asarray(rank)
        for k in (1, 5, 10):
            result[f"{direction}_R@{k}"] = np.mean(rank < k)
        result[f"{direction}_mean_rank"] = np.mean(rank) + 1
        result[f"{direction}_median_rank"] = np.floor(np.median(rank)) + 1
        result[f"{direction}_mrr"] = np.mean(1 / (rank + 1))
    return result


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (11, 4), (30, 7)])
def test_metrics_equal_sorting_by_hand_with_ragged_captions(n, batch_size, seed):
    source, towers = retrieval_source(n, seed=seed), Towers(seed=seed)
    captions = unique_captions(source)
    expected = by_hand(source, *reference(towers, source, captions))
    got = evaluate(source, towers, embedder={"batch_size": batch_size})
    for name, value in expected.items():
        assert got[name] == pytest.approx(value), name
    recalls = [got[f"{d}_R@{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert got["rsum"] == pytest.approx(100 * sum(recalls))
    assert got["mean_recall@1"] == pytest.approx((recalls[0] + recalls[3]) / 2)
    assert (got["num_images"], got["num_captions"]) == (n, len(captions))
    assert got["num_repeated_captions"] == sum(len(e["captions"]) for e in source) - len(captions)


def test_eight_devices_equal_one():
    source = retrieval_source(30)
    split, one = evaluate(source, embedder={"batch_size": 8, "row_sharding": data_sharding()}), evaluate(source)
    spread = {name: one.pop(name) for name in ("uniformity_image", "uniformity_text", "modality_gap")}
    assert {name: split.pop(name) for name in spread} == pytest.approx(spread, abs=1e-6)
    assert split == one


def perfect():
    """Images and captions whose embeddings are the same one-hot vectors."""
    towers = Towers()
    source = Source()
    for i in range(8):
        pixels = np.full((2, 2, 3), 128, np.uint8)
        pixels.reshape(-1)[i] = 255
        source.append({"image": pixels, "captions": [chr(97 + i)]})
    towers.params["image"] = np.eye(12, 8, dtype=np.float32)
    towers.params["text"] = np.eye(128, 8, k=-97, dtype=np.float32)
    return source, towers


def test_a_perfect_model_scores_everything():
    got = evaluate(*perfect())
    assert got["rsum"] == 600 and got["image_to_text_mean_rank"] == got["text_to_image_mrr"] == 1


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_constant_embeddings_score_zero(value):
    source = Source()
    for i, pair in zip(range(20), itertools.combinations(range(12), 2), strict=False):
        pixels = np.full(12, 200, np.uint8)
        pixels[list(pair)] = 201  # pictures differ, their sums do not
        source.append({"image": pixels.reshape(2, 2, 3), "captions": [chr(97 + i)]})
    towers = Towers()
    params = {name: np.full_like(p, value) for name, p in towers.params.items()}
    got = evaluate(source, towers, params=params)
    assert got["rsum"] == 0 and got["image_to_text_mean_rank"] == 20
    assert np.isnan(got["uniformity_image"]) if np.isnan(value) else abs(got["uniformity_image"]) < 1e-6
    if not np.isnan(value):
        assert got["image_to_text_R@1_optimistic"] == 1 and got["text_to_image_tie_gap"] == 1
        assert got["text_to_image_mean_rank_optimistic"] == 1
        kind = evaluate(source, towers, params=params, ties="optimistic")
        assert kind["rsum"] == 600 and kind["image_to_text_tie_gap"] == 1


def test_a_caption_of_three_images_is_one_caption_and_each_of_them_a_hit():
    source, towers = perfect()
    for i in (1, 2):
        source[i]["captions"] = ["a"]
    got = evaluate(source, towers)
    # For the model "a" is the caption of image 0; to images 1 and 2 it is as far as all others.
    assert got["num_captions"] == 6 and got["num_repeated_captions"] == 2
    assert got["text_to_image_R@1"] == 1 and got["image_to_text_R@1"] == 6 / 8
    towers.params["text"][97] = np.eye(3, 8).sum(0) / 3**0.5  # the direction of all three
    assert evaluate(source, towers)["rsum"] == 600


def test_equal_pictures_are_one_image_with_all_their_captions():
    source, towers = perfect()
    source.append({"image": source[3]["image"].copy(), "captions": ["z", "d"]})
    got = evaluate(source, towers)
    assert (got["num_images"], got["num_repeated_images"]) == (8, 1)
    assert (got["num_captions"], got["num_repeated_captions"]) == (9, 1)
    assert got["image_to_text_R@1"] == 1 and got["text_to_image_R@5"] == 8 / 9  # the model knows no "z"


def test_images_of_one_id_share_their_captions():
    source, towers = perfect()
    source[0]["id"] = source[1]["id"] = 100
    source[1]["captions"], source[0]["captions"] = source[0]["captions"], source[1]["captions"]
    got = evaluate(source, towers)
    assert got["rsum"] == 600 and got["num_repeated_images"] == 0


def test_max_captions_keeps_the_first():
    source, towers = perfect()
    for example in source:
        example["captions"] = [*example["captions"], "zzz"]
    assert evaluate(source, towers, max_captions=1)["rsum"] == 600
    got = evaluate(source, towers, max_captions=2)
    assert got["num_captions"] == 9 and got["num_repeated_captions"] == 7


def test_folds_are_means_over_consecutive_parts():
    source = retrieval_source(12)
    towers = Towers()
    got = evaluate(source, towers, folds=3)
    parts = [evaluate(Source(source[i : i + 4]), towers) for i in (0, 4, 8)]
    for name in ("rsum", "image_to_text_median_rank", "text_to_image_R@5"):
        assert got[name] == pytest.approx(np.mean([p[name] for p in parts]))
    assert got["num_images"] == 12


def pairwise_spread(x):
    """The equation of uniformity, one pair at a time, in float64."""
    x = np.asarray(x, np.float64)
    near = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    return math.log(sum(near) / len(near))


@pytest.mark.parametrize("n", [1, 2, 23])
def test_the_spread_of_both_sides_is_measured_over_the_whole_split(n):
    source, towers = retrieval_source(n, seed=2), Towers(seed=2)
    captions = unique_captions(source)
    images, texts = reference(towers, source, captions)
    for folds in {1, min(n, 3)}:
        got = evaluate(source, towers, folds=folds)
        for side, rows in (("image", images), ("text", texts)):
            want = pairwise_spread(rows) if len(rows) > 1 else 0.0
            assert got[f"uniformity_{side}"] == pytest.approx(want, abs=1e-5)
        assert got["modality_gap"] == pytest.approx(np.linalg.norm(images.mean(0) - texts.mean(0)), abs=1e-6)


def test_uniformity_is_that_of_evenly_spaced_rows():
    x = np.arange(1100.0)[:, None]
    np.testing.assert_array_equal(evenly_spaced(x, 100), x[::11])
    np.testing.assert_array_equal(evenly_spaced(x, 2000), x)


def test_evaluators_of_one_split_share_its_embeddings_and_options_tell_splits_apart():
    opened = []

    def open_source(split, *, size=5):
        opened.append((split, size))
        return retrieval_source(size)

    towers = Towers()
    embedder = towers.embedder()
    rows = []
    embed_images = embedder.embed_images
    embedder.embed_images = lambda params, batch: rows.append(1) or embed_images(params, batch)
    a, b = Evaluator(open_source), Evaluator(open_source, ties="optimistic")
    c = Evaluator(open_source, source={"size": 3})
    assert opened == [("val", 5), ("val", 5), ("val", 3)]
    bound = embedder.bind(towers.params)
    a(bound), b(bound)
    assert len(rows) == 2
    assert c(bound)["num_images"] == 3
    assert len(rows) == 3


def test_the_panel_shows_own_and_best_captions_once_each():
    source, towers = perfect()
    source[1]["captions"] = ["b", "a"]
    evaluator = Evaluator(lambda split: source)
    bound = towers.embedder().bind(towers.params)
    entry, other = evaluator.panel(bound, rows=[0, 1], k=3)
    np.testing.assert_array_equal(entry["image"], source[0]["image"])
    assert entry["captions"] == ["a"] and other["captions"] == ["b", "a"]
    text, score, correct = entry["retrieved"][0]
    assert (text, correct) == ("a", True) and score == pytest.approx(1)
    texts = [t for t, _, _ in entry["retrieved"]]
    assert len(texts) == len(set(texts)) == 3
    assert [c for _, _, c in entry["retrieved"]] == [True, False, False]
    scores = [s for _, s, _ in entry["retrieved"]]
    assert scores == sorted(scores, reverse=True)


def test_the_caption_panel_shows_the_best_images():
    source, towers = perfect()
    evaluator = Evaluator(lambda split: source)
    (entry,) = evaluator.caption_panel(towers.embedder().bind(towers.params), rows=[5], k=2)
    assert entry["caption"] == "f"
    np.testing.assert_array_equal(entry["image"], source[5]["image"])
    pixels, score, correct = entry["retrieved"][0]
    np.testing.assert_array_equal(pixels, source[5]["image"])
    assert correct and score == pytest.approx(1)
    assert not entry["retrieved"][1][2] and len(entry["retrieved"]) == 2


def test_mistakes_are_named():
    source = retrieval_source(3)
    with pytest.raises(ConfigError, match="max_captions=0"):
        Evaluator(lambda split: source, max_captions=0)
    with pytest.raises(ConfigError, match=r"folds=4.*3 images of 'val'"):
        Evaluator(lambda split: source, folds=4)
    with pytest.raises(ConfigError, match="no examples"):
        Evaluator(lambda split: Source())
    source.append({"image": image(np.random.default_rng(0)), "captions": []})
    with pytest.raises(ValueError, match="example 3 has no captions"):
        evaluate(source)
