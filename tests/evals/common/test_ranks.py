import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.evals.common import ranks as module
from mmjax.evals.common.ranks import count_ranks
from support.towers import data_sharding


def brute_force(scores, image_ids, text_ids):
    """Counts by looking at every pair."""
    out = []
    for s, query_ids, gallery_ids in ((scores, image_ids, text_ids), (scores.T, text_ids, image_ids)):
        above, equal = [], []
        for q, row in enumerate(s):
            own = [row[g] for g in range(len(row)) if gallery_ids[g] == query_ids[q]]
            rivals = [row[g] for g in range(len(row)) if gallery_ids[g] != query_ids[q]]
            above.append(sum(r > max(own) for r in rivals))
            equal.append(sum(r == max(own) for r in rivals))
        out.append((above, equal))
    return out


def integers(rng, rows, width=5):
    # Small integers: every dot product is exact, so ties are ties in any order of summation.
    return rng.integers(-2, 3, (rows, width)).astype(np.float32)


@settings(max_examples=25)
@given(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=12), st.integers(0, 10**6))
def test_counts_equal_brute_force_with_ragged_groups_and_many_ties(n, extra, seed):
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(n).astype(np.int32)
    text_ids = rng.permutation(np.r_[np.arange(n), [e % n for e in extra]].astype(np.int32))
    images, texts = integers(rng, n), integers(rng, len(text_ids))
    got = count_ranks(images, image_ids, texts, text_ids)
    for ranks, (above, equal) in zip(got, brute_force(images @ texts.T, image_ids, text_ids), strict=True):
        np.testing.assert_array_equal(ranks.above, above)
        np.testing.assert_array_equal(ranks.equal, equal)
        np.testing.assert_array_equal(ranks.rank("pessimistic"), np.add(above, equal))
        np.testing.assert_array_equal(ranks.rank("optimistic"), above)


@pytest.mark.parametrize("sharded", [False, True])
def test_many_blocks_and_devices(monkeypatch, sharded):
    monkeypatch.setattr(module, "IMAGE_CHUNK", 64)
    monkeypatch.setattr(module, "TEXT_CHUNK", 128)
    rng = np.random.default_rng(0)
    n, m = 150, 333
    owner = np.sort(np.r_[np.arange(n), rng.integers(0, n, m - n)]).astype(np.int32)
    images, texts = integers(rng, n), integers(rng, m)
    got = count_ranks(images, np.arange(n), texts, owner, row_sharding=data_sharding() if sharded else None)
    for ranks, (above, equal) in zip(got, brute_force(images @ texts.T, np.arange(n), owner), strict=True):
        np.testing.assert_array_equal(ranks.above, above)
        np.testing.assert_array_equal(ranks.equal, equal)


def test_splits_of_about_one_size_share_a_program():
    compiled = module._compiled(None)

    def programs_after(n, m):
        rng = np.random.default_rng(n + m)
        count_ranks(integers(rng, n, 7), np.arange(n), integers(rng, m, 7), np.arange(m) % n)
        return compiled._cache_size()

    first = programs_after(250, 1090)
    assert programs_after(200, 1400) == programs_after(256, 2048) == first
    assert programs_after(250, 2100) == first + 1


def test_sharded_counting_is_content_with_the_transfer_guard():
    rng = np.random.default_rng(0)
    z, ids, sharding = integers(rng, 20), np.arange(20), data_sharding()
    with jax.transfer_guard("disallow"):
        a = count_ranks(z, ids, z, ids, row_sharding=sharding)
        b = count_ranks(z, ids, z, ids)
    np.testing.assert_array_equal(a[0].above, b[0].above)


def test_copies_of_a_real_valued_row_tie_exactly_wherever_they_stand():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1, 96)).astype(np.float32)
    other = rng.standard_normal((300, 96)).astype(np.float32)
    images, texts = np.repeat(other, 2, axis=0), np.repeat(z, 600, axis=0)
    _, by_text = count_ranks(images, np.arange(600), texts, np.arange(600))
    # Text j finds its image and that image's copy at the same height.
    assert (by_text.equal >= 1).all()
    by_image, _ = count_ranks(images, np.arange(600), texts, np.arange(600))
    assert (by_image.equal == 599).all() and (by_image.above == 0).all()


def test_what_is_not_a_number_is_lost():
    z = np.eye(4, dtype=np.float32)
    bad = z.copy()
    bad[2] = np.nan
    by_image, by_text = count_ranks(bad, np.arange(4), z, np.arange(4))
    assert by_image.rank("pessimistic").tolist() == [0, 0, 3, 0]
    assert by_text.rank("pessimistic").tolist() == [1, 1, 3, 1]
    by_image, by_text = count_ranks(np.full_like(z, np.nan), np.arange(4), z, np.arange(4))
    assert (by_image.rank("pessimistic") == 3).all() and (by_text.rank("pessimistic") == 3).all()


def test_padding_never_counts():
    # All scores are below zero, the score of a padding row.
    z = -np.ones((3, 2), np.float32)
    by_image, by_text = count_ranks(z, np.arange(3), -z, np.arange(3))
    assert (by_image.above == 0).all() and (by_text.above == 0).all()
    assert (by_image.equal == 2).all() and (by_text.equal == 2).all()


def test_mistakes_are_named():
    z = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="no text has the id 1"):
        count_ranks(z, np.arange(2), z, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="text_ids has -1"):
        count_ranks(z, np.arange(2), z, np.array([0, -1]))


def test_captions_go_around_and_no_device_holds_all_of_them():
    rng = np.random.default_rng(0)
    z, ids, sharding = integers(rng, 640), np.arange(640), data_sharding()
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    split = jax.sharding.NamedSharding(sharding.mesh, spec)
    blocks = module._blocks(z, ids[:, None], chunk=4096, tile=64 * 8), module._blocks(z, ids, chunk=4096, tile=64 * 8)
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for pair in blocks for x in pair]
    program = module._compiled(split).lower(*arrays).compile().as_text()
    assert "collective-permute" in program
    # What is gathered at the end are the counts; embeddings are floats.
    assert not [
        line for line in program.splitlines() if "all-gather(" in line and "f32" in line.split("all-gather(")[0]
    ]


def test_positives_are_found_in_any_order_of_images_and_captions(monkeypatch):
    monkeypatch.setattr(module, "IMAGE_CHUNK", 64)
    monkeypatch.setattr(module, "TEXT_CHUNK", 64)
    rng = np.random.default_rng(0)
    ids, order = np.arange(300), rng.permutation(300)
    images, texts = integers(rng, 300), integers(rng, 300)
    sorted_i, sorted_t = count_ranks(images, ids, texts, ids)
    some_i, some_t = count_ranks(images[order], ids[order], texts[order[::-1]], ids[order[::-1]])
    np.testing.assert_array_equal(some_i.above, sorted_i.above[order])
    np.testing.assert_array_equal(some_t.equal, sorted_t.equal[order[::-1]])
    np.testing.assert_array_equal(sorted_i.above, brute_force(images @ texts.T, ids, ids)[0][0])
