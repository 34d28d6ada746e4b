"""Re-ranking against every pair scored and sorted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.evals.common.pair_scores import Matcher
from mmjax.evals.reranking import Evaluator
from support.towers import Towers, data_sharding, reference, retrieval_source

N = 11


def encode(params, images):
    """Two tokens for each image, of its pixels and of these backwards."""
    flat = images["image"].reshape(len(images["image"]), -1).astype(jnp.float32) / 255
    return jnp.stack([flat, flat[:, ::-1]], axis=1)


def match(params, tokens, ids):
    """A score that no cosine is like."""
    return jnp.sin(9 * tokens[:, 0] @ params["image"][:, 0] + 5 * tokens[:, 1, 3] + jnp.sum(ids, axis=1) / 7)


def bound(towers, **options):
    return towers.embedder(matcher=Matcher(encode, match), **{"batch_size": 4} | options).bind(towers.params)


def by_hand(source, towers, k, weight=0.0):
    """Ranks by sorting: the best k by cosine in the order of their scores, then the others by cosine."""
    captions = list(dict.fromkeys(c for e in source for c in e["captions"]))
    zi, zt = reference(towers, source, captions)
    own = np.array([[caption in e["captions"] for caption in captions] for e in source])
    ids = towers.embedder().tokenizer(captions)
    tokens = encode(towers.params, {"image": np.stack([e["image"] for e in source])})
    scores = np.array([match(towers.params, jnp.repeat(t[None], len(ids), 0), ids) for t in tokens])
    result = {}
    for name, cosine, score, hits in (
        ("image_to_text", zi @ zt.T, scores, own),
        ("text_to_image", zt @ zi.T, scores.T, own.T),
    ):
        ranks = []
        for row in range(len(cosine)):
            order = np.argsort(-cosine[row], kind="stable")
            first = sorted(order[:k], key=lambda j, row=row: -(score + weight * cosine)[row, j])
            ranks.append(next(rank for rank, j in enumerate([*first, *order[k:]]) if hits[row, j]))
        result |= {f"{name}_R@{k}": np.mean(np.array(ranks) < k) for k in (1, 5, 10)}
        result[f"{name}_mean_rank"] = np.mean(ranks) + 1
    return result


@pytest.mark.parametrize(("k", "weight"), [(4, 0.0), (None, 0.0), (4, 1.5), (None, 1.5)])
def test_the_best_are_put_in_the_order_of_their_scores(k, weight):
    source, towers = retrieval_source(N), Towers()
    got = Evaluator(lambda split: source, k=k, similarity_weight=weight)(bound(towers))
    wanted = by_hand(source, towers, 99 if k is None else k, weight)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value), name
    assert (got["num_images"], got["num_captions"]) == (N, len({c for e in source for c in e["captions"]}))
    assert set(got) <= set(Evaluator.metric_names())
    plain = by_hand(source, towers, 1)  # to re-rank one is to leave all as it was
    for side in ("image_to_text", "text_to_image"):
        assert got[f"{side}_R@1_gain"] == pytest.approx(wanted[f"{side}_R@1"] - plain[f"{side}_R@1"])


def test_by_cosines_alone_nothing_changes():
    source, towers = retrieval_source(N), Towers()
    got = Evaluator(lambda split: source, k=4, similarity_weight=1e4)(bound(towers))
    assert [got[f"{name}_gain"] for name in ("image_to_text_R@1", "text_to_image_R@1", "rsum")] == [0, 0, 0]


def test_eight_devices_equal_one():
    source, towers = retrieval_source(N), Towers()
    one = Evaluator(lambda split: source, k=4)(bound(towers))
    assert Evaluator(lambda split: source, k=4)(bound(towers, batch_size=8, row_sharding=data_sharding())) == one
