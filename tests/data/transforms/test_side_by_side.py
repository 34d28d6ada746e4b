import dataclasses

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.groups import split_place
from mmjax.data import source
from mmjax.data.pipeline import Batches
from mmjax.data.sample import Sample
from mmjax.data.transform_chain import TransformChain
from mmjax.data.transforms.caption_units import Transform as Units
from mmjax.data.transforms.side_by_side import Transform

COLORS = ("red", "blue", "green", "black", "white", "pink", "brown", "purple")


class Source(source.Source):
    """Pictures of one gray level in its own color of text."""

    def __init__(self, captions=2):
        self.captions = captions

    def __len__(self):
        return 8

    def __getitem__(self, index):
        texts = [f"{COLORS[index]} {index}{c}" for c in range(self.captions)]
        return {"id": index, "captions": texts, "image": np.full((4, 6, 3), 10 * index, np.uint8)}


class Tokens(list):
    """A tokenizer that remembers its texts: a row is the text's number."""

    def __call__(self, texts):
        rows = []
        for text in texts:
            if text not in self:
                self.append(text)
            rows.append([self.index(text)])
        return np.array(rows, np.int32)


def batches(captions=4, *, own=2, process=(0, 1), **options):
    tokens = Tokens()
    chain = TransformChain(
        [("side_by_side", {"exchange": "lists", **options})], image_size=4, modalities=("image",),
        token_format=None,
    )  # fmt: skip
    index, count = process
    made = Batches(
        Source(own), tokens, batch_size=4, seed=0, chain=chain, captions_per_image=captions, negatives_per_image=1,
        captions="first", order="stored", text_groups="place", process_index=index, process_count=count,
    )  # fmt: skip
    return made, tokens


def texts(batch, tokens):
    rows = [tokens[t] if i >= 0 else None for t, i in zip(batch["tokens"][:, 0], batch["text_ids"][:, 0], strict=True)]
    return np.array(rows, object).reshape(len(batch["image_ids"]), -1)


def test_a_row_is_made_of_its_own_example_and_the_next():
    made, tokens = batches()
    batch = made[0]
    rows = texts(batch, tokens)
    for row in range(4):
        other = (row + 1) % 4
        a, b = f"{COLORS[row]} {row}0.", f"{COLORS[other]} {other}0."
        assert list(rows[row, :2]) == [f"{a} {b}", f"{b} {a}"]
        further = f"{COLORS[row]} {row}1.", f"{COLORS[other]} {other}1."
        assert rows[row, 2] in (" ".join(further), " ".join(further[::-1]))
        assert rows[row, 3] is None  # neither has a third caption
        swapped = f"{COLORS[other]} {row}0.", f"{COLORS[row]} {other}0."
        assert rows[row, 4] in (" ".join(swapped), " ".join(swapped[::-1]))
        levels = {10 * row, 10 * other}
        image = batch["images"]["image"][row, :, :, 0].astype(int)
        assert set(np.unique(image)) == levels
        assert (image == 10 * row).sum() == image.size / 2
        assert (image == image[:, :1]).all() or (image == image[:1]).all()
    np.testing.assert_array_equal(batch["image_ids"], [[0], [1], [2], [3]])
    places, numbers = split_place(batch["text_group"].reshape(4, 5))
    np.testing.assert_array_equal(places[:, [0, 1, 2, 4]], [[0, 1, 2, 0]] * 4)
    assert len(np.unique(numbers[:, [0, 1, 2, 4]])) == 16
    np.testing.assert_array_equal(batch["text_weight"].reshape(4, 5), [[1, 1, 1, 0, 0]] * 4)


def test_every_other_step_is_plain_clip():
    made, tokens = batches()
    rows = texts(made[1], tokens)
    assert [list(row) for row in rows] == [[f"{COLORS[i]} {i}0", None, None, None, None] for i in range(4, 8)]
    np.testing.assert_array_equal(made[1]["images"]["image"][:, 0, 0, 0], [40, 50, 60, 70])
    always, tokens = batches(every=1)
    assert "." in texts(always[1], tokens)[0, 0]


def test_processes_make_the_same_rows():
    whole, tokens = batches()
    parts = [batches(process=(index, 2)) for index in range(2)]
    for step in range(3):
        rows = [texts(made[step], names) for made, names in parts]
        np.testing.assert_array_equal(np.concatenate(rows), texts(whole[step], tokens))
        for key in ("text_ids", "text_weight", "image_ids", "text_group"):
            np.testing.assert_array_equal(np.concatenate([made[step][key] for made, _ in parts]), whole[step][key])
        images = [made[step]["images"]["image"] for made, _ in parts]
        np.testing.assert_array_equal(np.concatenate(images), whole[step]["images"]["image"])


def test_a_batch_of_one_group_has_no_next_row():
    with pytest.raises(ConfigError, match=r"batch_size=2: side_by_side combines rows of two groups of 2"):
        Transform(exchange="lists").partners(batch_size=2, group=2, host_rows=range(2))


NEGATIVES = [
    ("swap_noun", "a man under a tree", "a tree under a man"),
    ("entity", "a man", "a dog"), ("entity", "a man", "a cow"), ("entity", "a tree", "a bush"),
    ("relation", "a man under a tree", "a man in a tree"), ("relation", "man by tree", "tree by man"),
]  # fmt: skip


def unit_sample(negatives=tuple(NEGATIVES)):
    return Sample(
        id=3, key="3", captions=["a man under a tree", "another"], fields={"negatives": list(negatives), "label": 1}
    )


class TestCaptionUnits:
    def test_units_have_their_foils_and_none_comes_twice(self):
        seen = set()
        for seed in range(60):
            out = Units()(unit_sample(), np.random.default_rng(seed))
            caption, *units = out.captions
            assert caption == "a man under a tree" and len(units) == len(set(units)) == 3
            assert out.fields["negatives"][0] == NEGATIVES[0]
            assert [true for _, true, _ in out.fields["negatives"][1:]] == units
            for _, true, false in out.fields["negatives"][1:]:
                seen.add((true, false))
                assert true != false and (true.partition(" and ")[1] == false.partition(" and ")[1])
        assert {("a man", "a dog"), ("a man", "a cow"), ("a tree and a man", "a bush and a man")} <= seen
        assert {("man by tree", "tree by man")} <= seen

    def test_relations_and_context_can_be_turned_off(self):
        for seed in range(20):
            out = Units(relations=0, context=0, units=2)(unit_sample(), np.random.default_rng(seed))
            assert set(out.captions[1:]) == {"a man", "a tree"}

    def test_without_units_or_negatives_there_is_the_caption_alone(self):
        out = Units()(unit_sample(NEGATIVES[:1]), np.random.default_rng(0))
        assert out.captions == ["a man under a tree"] and out.fields["negatives"] == NEGATIVES[:1]
        out = Units()(dataclasses.replace(unit_sample(), fields={}), np.random.default_rng(0))
        assert out.captions == ["a man under a tree"] and out.fields["negatives"] == []
