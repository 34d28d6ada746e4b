"""Captions that a model writes: which claims are true of the scene, each caption beside its own picture."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.sample import Unreadable
from mmjax.data.scenes import graph, language, world
from mmjax.data.sources import scenes
from mmjax.evals import captioning
from mmjax.evals.captions.writer import CaptionWriter
from support.towers import Source, Towers

THINGS = (
    world.Thing(shape=0, color=0, texture=0, size=0, x=12.0, y=12.0, radius=11.0, z=0.2, shade=1.0),
    world.Thing(shape=1, color=2, texture=1, size=1, x=46.0, y=20.0, radius=15.0, z=0.5, shade=1.0),
)
SCENE = graph.to_json(world.Scene(THINGS, 0, True, (0.0, 0.0, 0.0)), world.WORLDS["easy"])
"""A small plain red circle in the top left, to the left of a large striped blue square; light."""


@pytest.mark.parametrize(
    ("caption", "right", "claimed", "named"),
    [
        ("a small plain red circle to the left of a large striped blue square", 9, 9, 9),
        ("a large striped blue square to the right of a small plain red circle", 9, 9, 9),
        ("a large striped blue square to the left of a small plain red circle", 8, 9, 8),
        ("a red square and a blue circle", 2, 4, 2),  # two of each order are right, however they are matched
        ("a red circle on a dark background", 2, 3, 2),
        ("a red circle on a light background", 3, 3, 2),
        ("there is a little red circle in the top left", 4, 4, 3),
        ("a red circle and a red circle and a red circle", 2, 6, 2),  # each thing counts once
        ("nothing here", 0, 0, 0),
        ("question : what color is the circle ? answer : red .", 2, 2, 2),
        ("Question: what shape is the blue object? Answer: circle.", 1, 2, 1),
        ("Question: is the blue object plain striped or dotted? Answer: striped.", 2, 2, 2),
        ("the shape of the red object is circle", 2, 2, 2),
        ("is the blue object small or large? small", 1, 2, 1),
        ("Question: is there a red circle? Answer: yes.", 2, 2, 2),
        ("Question: is there a green circle? Answer: no.", 1, 1, 0),
        ("there is no red circle", 0, 1, 0),
        ("Question: is the background light or dark? Answer: light.", 1, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_claims_are_counted_by_hand(caption, right, claimed, named):
    got = captioning.judge([caption], [SCENE])
    assert got["attribute_accuracy"] == pytest.approx(right / max(claimed, 1))
    assert got["attributes_named"] == pytest.approx(named / 9)
    assert got["all_true"] == float(0 < claimed == right)
    assert got["attribute_accuracy_other_image"] == got["attribute_accuracy"]  # the next one is the same


def test_kinds_are_told_apart():
    got = captioning.judge(["a red circle to the left of a green square on a light background"], [SCENE])
    kinds = {name.removeprefix("accuracy_"): value for name, value in got.items() if name.startswith("accuracy_")}
    assert kinds == {"shape": 1.0, "color": 0.5, "relation": 1.0, "background": 1.0}


def test_true_captions_are_true_and_those_of_other_scenes_are_not():
    items = list(scenes.Source("val", size=200, image_size=8, negatives=()))
    graphs = [item["scene"] for item in items]
    for number in range(language.CAPTIONS_PER_IMAGE):
        got = captioning.judge([item["captions"][number] for item in items], graphs)
        assert got["attribute_accuracy"] == 1 == got["all_true"] and got["attribute_accuracy_other_image"] < 0.6
    assert captioning.judge([item["captions"][0] for item in items], graphs)["attributes_named"] == 1
    rolled = captioning.judge([item["captions"][0] for item in items[1:] + items[:1]], graphs)
    assert 0.2 < rolled["attribute_accuracy"] < 0.6 and rolled["all_true"] < 0.05


def test_right_answers_are_true_and_others_are_not():
    items = list(scenes.Source("val", size=300, image_size=8, task="questions", answered=True))
    truths = [captioning.judge(item["captions"], [item["scene"]]) for item in items]
    assert min(truth["all_true"] for truth in truths) == 1 and {item["kind"] for item in items} >= {"existence"}
    got = captioning.judge([item["captions"][0] for item in items[1:] + items[:1]], [item["scene"] for item in items])
    assert got["all_true"] < 0.5


def test_a_text_of_many_things_is_read_in_no_time():
    claimed = graph.claims(" and ".join(["a red circle"] * 30))
    scene, _ = graph.from_json(SCENE)
    assert claimed.count == 60 and +graph.true_kinds(scene, claimed) == {"shape": 1, "color": 1}
    assert graph.true_claims(dataclasses.replace(scene, things=(), relation=None), claimed) == 0


def writer(asked):
    """Writes "caption N" of a picture of the gray N."""

    def make(**decoding):
        asked.append(decoding)
        return CaptionWriter(
            lambda params, images: jnp.mean(images["image"].astype(jnp.float32), axis=(1, 2))[:, :1].astype(jnp.int32),
            lambda tokens: [f"caption {row[0]}" for row in tokens.tolist()],
        )

    return make


class Holey(Source):
    """A list of examples of which one cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise Unreadable("bad row", "on purpose", key="2")
        return super().__getitem__(index)


def test_each_picture_gets_its_own_caption_with_the_options_that_are_set():
    towers, asked = Towers(), []
    pictures = [np.full((2, 2, 3), 5 * i, np.uint8) for i in range(11)]
    source = Holey(
        {"id": i, "image": picture, "captions": [f"caption {5 * i}", "x"]} for i, picture in enumerate(pictures)
    )
    bound = towers.embedder(make_writer=writer(asked)).bind(towers.params)
    got = captioning.Evaluator(lambda split: source, beams=3, max_length=9)(bound)
    assert asked == [{"method": "beam", "beams": 3, "max_length": 9}]
    assert got["rouge_l"] == 1 == got["unique_captions"] and got["vocabulary"] == 11
    assert got["num_examples"] == 10 and got["num_unreadable"] == 1
    assert "attribute_accuracy" not in got
    wrong = Holey(item | {"captions": ["caption 1"]} for item in list.__iter__(source))
    assert captioning.Evaluator(lambda split: wrong)(bound)["rouge_l"] == pytest.approx(0.5)
    assert asked[1:] == [{"method": "greedy"}]


def test_a_model_without_a_decoder_is_named():
    towers = Towers()
    source = Source([{"id": 0, "image": np.zeros((2, 2, 3), np.uint8), "captions": ["a"]}])
    with pytest.raises(ConfigError, match="no decoder"):
        captioning.Evaluator(lambda split: source)(towers.embedder().bind(towers.params))
