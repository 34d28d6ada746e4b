import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.data import source
from mmjax.data.sample import Unreadable
from mmjax.evals.common import embedder as module
from mmjax.evals.common.base import open_split
from mmjax.evals.common.host_batches import DIGEST
from mmjax.evals.labels.reader import LabelReader
from support.towers import WIDTH, Source, Tokenizer, Towers, data_sharding, image, reference, retrieval_source


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 64])
def test_embeddings_equal_a_row_by_row_reference_for_any_batch_size(batch_size):
    towers, source = Towers(), retrieval_source(11)
    texts = [c for e in source for c in e["captions"]]
    bound = towers.embedder(batch_size=batch_size).bind(towers.params)
    zi, zt = reference(towers, source, texts)
    assert bound.images(source).dtype == bound.texts(texts).dtype == np.float32
    np.testing.assert_allclose(bound.images(source), zi, atol=2e-6)
    np.testing.assert_allclose(bound.texts(texts), zt, atol=2e-6)


def test_eight_devices_equal_one_and_the_transfer_guard_is_content():
    towers, source = Towers(), retrieval_source(21)
    one = towers.embedder(batch_size=8).bind(towers.params)
    sharding = data_sharding()
    many = towers.embedder(batch_size=8, row_sharding=sharding)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    params = jax.device_put(towers.params, whole)
    with jax.transfer_guard("disallow"):
        bound = many.bind(params)
        images, texts = bound.images(source), bound.texts(["red", "blue star"])
    np.testing.assert_allclose(images, one.images(source), atol=1e-6)
    np.testing.assert_allclose(texts, one.texts(["red", "blue star"]), atol=1e-6)
    # Really split: each device sees one row of eight.
    batch = jax.make_array_from_callback((8, 2), sharding, np.zeros((8, 2), np.float32).__getitem__)
    assert {s.data.shape for s in batch.addressable_shards} == {(1, 2)}
    assert num_shards(sharding) == 8
    assert num_shards(NamedSharding(sharding.mesh, PartitionSpec())) == 1


def test_one_compilation_each_for_a_whole_run():
    towers = Towers()
    embedder = towers.embedder()
    for seed, n in ((1, 4), (2, 9), (3, 1)):
        bound = embedder.bind(Towers(seed=seed).params)
        bound.images(retrieval_source(n))
        bound.texts([f"text {i}" for i in range(n)])
        bound.texts(["one more"])
    assert towers.traces == {"image": 1, "text": 1}


def test_new_parameters_give_new_embeddings():
    towers, source = Towers(), retrieval_source(3)
    embedder = towers.embedder()
    a = embedder.bind(towers.params).images(source)
    b = embedder.bind(Towers(seed=1).params).images(source)
    assert np.abs(a - b).max() > 0.1


def test_each_image_and_each_distinct_text_is_embedded_once():
    class Counting(Source):
        reads = 0

        def __getitem__(self, i):
            type(self).reads += 1
            return super().__getitem__(i)

    towers, rows = Towers(), []
    embedder = towers.embedder()
    embed_texts = embedder.embed_texts
    embedder.embed_texts = lambda params, batch: rows.append(len(batch)) or embed_texts(params, batch)
    bound = embedder.bind(towers.params)
    source = Counting(retrieval_source(9))
    first = bound.images(source)
    assert bound.images(source) is first
    assert Counting.reads == 9
    bound.images(Counting(source), key="val")
    assert Counting.reads == 18
    bound.images(Counting(source), key="val")
    assert Counting.reads == 18
    z = bound.texts(["a", "b", "a", "c", "a"])
    assert sum(rows) == 4  # three distinct texts in one batch of four
    np.testing.assert_array_equal(z[0], z[2])
    bound.texts(["c", "b", "a"])
    assert sum(rows) == 4
    np.testing.assert_array_equal(bound.texts(["c", "d", "a"])[[0, 2]], z[[3, 0]])
    assert sum(rows) == 8


def test_texts_with_equal_tokens_share_one_embedding():
    towers = Towers()
    embedder, calls = towers.embedder(tokenizer=Tokenizer(context_length=5), batch_size=1), []
    embed_texts = embedder.embed_texts
    embedder.embed_texts = lambda params, batch: calls.append(1) or embed_texts(params, batch)
    z = embedder.bind(towers.params).texts(["abcde left", "x", "abcde right"])
    np.testing.assert_array_equal(z[0], z[2])
    assert len(calls) == 2  # one row of the tower serves both, so no order of summation can part them


def test_an_object_that_reuses_the_address_of_a_dead_one_is_not_confused_with_it():
    towers = Towers()
    bound = towers.embedder().bind(towers.params)
    for seed in range(20):
        source = retrieval_source(2, seed=seed)
        expected, _ = reference(towers, source, ["a"])
        np.testing.assert_allclose(bound.images(source), expected, atol=2e-6)
        del source


def test_bfloat16_towers_give_float32_unit_rows():
    towers = Towers()
    towers.dtype = jnp.bfloat16
    z = towers.embedder().bind(towers.params).images(retrieval_source(5))
    assert z.dtype == np.float32
    # Normalized after the cast: in bfloat16 the length would be off by 1e-3.
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)


def test_a_zero_embedding_stays_zero_instead_of_becoming_nan():
    towers = Towers()
    params = towers.params | {"image": np.zeros_like(towers.params["image"])}
    assert not towers.embedder().bind(params).images(retrieval_source(3)).any()


def test_more_batches_than_may_be_in_flight(monkeypatch):
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    towers, source = Towers(), retrieval_source(23)
    z = towers.embedder(batch_size=2).bind(towers.params).images(source)
    np.testing.assert_allclose(z, reference(towers, source, ["a"])[0], atol=2e-6)


def test_progress_is_shown_by_images_and_texts():
    shown = []

    @contextlib.contextmanager
    def progress(total, unit):
        yield lambda done: shown.append((unit, done, total))
        shown.append((unit, "end", total))

    towers = Towers()
    embedder = towers.embedder(batch_size=4)
    embedder.host_batch.progress = progress
    bound = embedder.bind(towers.params)
    bound.images(retrieval_source(10))
    bound.texts(["a", "b", "a", "c", "d", "e"])
    bound.text_means([["f"], ["g"]])
    assert shown[:4] == [("images", 0, 10), ("images", 4, 10), ("images", 8, 10), ("images", "end", 10)]
    assert shown[4:] == [("texts", 0, 5), ("texts", 4, 5), ("texts", "end", 5), ("texts", 0, 2), ("texts", "end", 2)]


def test_threads_read_the_same_in_the_same_order():
    towers, source = Towers(), retrieval_source(23)
    bound = towers.embedder(num_threads=3).bind(towers.params)
    np.testing.assert_allclose(bound.images(source), reference(towers, source, ["a"])[0], atol=2e-6)
    assert [item["id"] for item in bound.read(source).items] == list(range(23))


def test_items_keep_everything_but_the_pixels():
    rng = np.random.default_rng(0)
    source = Source([{"id": 7, "image": image(rng), "depth": image(rng), "captions": ["a"], "label": 3}])
    towers = Towers()
    (item,) = towers.embedder().bind(towers.params).read(source).items
    assert len(item.pop(DIGEST)) == 32 and item == {"id": 7, "captions": ["a"], "label": 3}


def test_several_modalities_go_to_the_tower_together():
    rng = np.random.default_rng(0)
    source = Source([{"image": image(rng), "depth": image(rng), "captions": ["a"]} for _ in range(3)])
    towers = Towers(pixels=24)
    z = towers.embedder(modalities=("image", "depth")).bind(towers.params).images(source)
    flat = np.stack([np.concatenate([e["depth"].ravel(), e["image"].ravel()]) for e in source]).astype(np.float64)
    expected = (flat - 128) @ towers.params["image"].astype(np.float64)
    np.testing.assert_allclose(z, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-6)


def test_mistakes_are_named():
    towers, rng = Towers(), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"batch_size=6.*8 shards.*use 8"):
        towers.embedder(batch_size=6, row_sharding=data_sharding())
    with pytest.raises(ValueError, match="batch_size=0"):
        towers.embedder(batch_size=0)
    with pytest.raises(ValueError, match="modalities"):
        towers.embedder(modalities=())
    bound = towers.embedder().bind(towers.params)
    with pytest.raises(ValueError, match="no examples"):
        bound.images(Source())
    with pytest.raises(ValueError, match="no texts"):
        bound.texts([])
    with pytest.raises(ValueError, match="example 5 has no 'image'"):
        bound.images(Source([{"image": image(rng)}] * 5 + [{"depth": image(rng)}]))
    with pytest.raises(ValueError, match=r"example 1: 'image' has the shape \(3, 3, 3\)"):
        bound.images(Source([{"image": image(rng)}, {"image": image(rng, 3)}]))
    two_views = module.Embedder(
        lambda p, x: jnp.zeros((8, WIDTH)), towers.texts, tokenizer=Tokenizer(), batch_size=4
    ).bind(towers.params)
    with pytest.raises(ValueError, match=r"encode_images returned the shape \(8, 8\) for 4 rows"):
        two_views.images(retrieval_source(2))
    with pytest.raises(ConfigError, match=r"split='tset'.*no examples"):
        open_split(lambda split: Source(), "tset", None)


class Sequences(source.Source):
    """Sequences of labels as features; the second cannot be read, and the others all differ."""

    modalities = ("frames",)

    def __len__(self):
        return 6

    def __getitem__(self, row):
        if row == 1:
            raise Unreadable("bad row", "of another form")
        return {"id": row, "captions": ["a"], "frames": np.array([[row % 3, row], [-1, 1]], np.float32)}


def test_sequences_are_kept_apart_and_their_labels_are_read_in_the_order_of_the_examples():
    reader = LabelReader(lambda params, images: images["frames"][:, :, 0].astype(jnp.int32), ("a", "b", "c"), "gloss")
    towers = Towers(pixels=4)
    bound = towers.embedder(modalities=("frames",), label_reader=reader).bind(towers.params)
    examples = Sequences()
    items = bound.read(examples).items
    assert [set(item) for item in items] == [{"id", "captions", DIGEST}] * 5
    assert len({item[DIGEST] for item in items}) == 5
    assert bound.labels(examples) == [["a"], ["c"], ["a"], ["b"], ["c"]]
    assert "labels" in towers.embedder(label_reader=reader).heads - towers.embedder().heads
