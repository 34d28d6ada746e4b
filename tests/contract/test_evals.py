"""What every evaluator promises, by walking the plug-in folder."""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.data import source
from mmjax.evals.captions.writer import CaptionWriter
from mmjax.evals.common.embedder import Embedder
from mmjax.evals.common.pair_scores import Matcher
from mmjax.evals.labels.reader import LabelReader

FOLDER = "mmjax.evals"


class Everything(source.Source):
    """Eight examples that have whatever an evaluator may ask for."""

    group = 2
    class_names: ClassVar[list[str]] = ["circle", "square", "star"]
    templates: ClassVar[list[str]] = ["a {}", "one {}"]
    held_out: ClassVar[list[bool]] = [False, False, True]

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 8

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {
            "id": i,
            "image": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
            "captions": [f"caption {i}", "another"][: 1 + i % 2],
            "label": i % 3,
            "answer": self.class_names[i % 3],
            "gloss": " ".join(self.class_names[: 1 + i % 3]),
            "kind": "swap",
            "box": (0.0, 0.25, 0.5, 1.0),
            "proposals": [(0.0, 0.25, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)],
            "negatives": [("swap_obj", f"{true} {i}", f"false {i}") for true in ("true", "so")],
            "groups": [str(i)] * 2,
            "group": "ab"[i // 2 % 2],
            "cues": [(cue, f"cue {cue}", i == cue, 8) for cue in range(3)],
        }


def tokenizer(texts):
    return np.asarray([[ord(c) % 97 for c in text.ljust(12)[:12]] for text in texts], np.int32)


def embedder(seed=0):
    rng = np.random.default_rng(seed)
    params = {"image": rng.standard_normal((48, 6)), "text": rng.standard_normal((97, 6))}
    return compiled().bind({name: value.astype(np.float32) for name, value in params.items()})


@functools.cache
def compiled():
    return Embedder(
        lambda p, x: (x["image"].reshape(3, -1).astype(jnp.float32) - 128.0) @ p["image"],
        lambda p, t: (p["text"][t] * jnp.arange(1, 13, dtype=jnp.float32)[:, None]).sum(1),
        tokenizer=tokenizer,
        batch_size=3,
        matcher=Matcher(
            lambda p, x: x["image"].reshape(3, 1, -1).astype(jnp.float32) - 128.0,
            lambda p, z, t: jnp.sum((z[:, 0] @ p["image"]) * p["text"][t[:, -1]], axis=1),
            lambda p, z, t: (z[:, 0] @ p["image"] * p["text"][t[:, -1]])[:, :3],
            lambda p, z, t: (z[:, 0] @ p["image"] * p["text"][t[:, -1]])[:, 1:4],
            lambda p, z, t: (z[:, 0] @ p["image"] * p["text"][t[:, -1]])[:, :4],
        ),
        make_writer=lambda **_: CaptionWriter(
            lambda p, x: jnp.argsort((x["image"].reshape(3, -1).astype(jnp.float32) - 128.0) @ p["image"], axis=1),
            lambda tokens: ["caption " + " ".join(map(str, row)) for row in tokens.tolist()],
        ),
        label_reader=LabelReader(
            lambda p, x: jnp.argsort((x["image"].reshape(3, -1).astype(jnp.float32) - 128.0) @ p["image"], axis=1) // 2,
            tuple(Everything.class_names),
            field="gloss",
        ),
    )


def evaluator(name):
    return plugins.load(FOLDER, name, path="eval.tasks").Evaluator


def test_the_folder_is_not_empty_and_shared_modules_are_no_plugins():
    assert {"retrieval", "zeroshot", "pairwise", "winoground"} <= set(plugins.names(FOLDER))
    assert not {"embedder", "ranks", "base"} & set(plugins.names(FOLDER))


@pytest.mark.parametrize("name", plugins.names(FOLDER))
def test_an_evaluator_is_documented_and_says_which_splits_it_takes(name):
    cls = evaluator(name)
    assert plugins.load(FOLDER, name, path="eval.tasks").__doc__ and len(cls.__doc__ or "") > 100
    assert isinstance(cls.own_split, bool)


@pytest.mark.parametrize("name", plugins.names(FOLDER))
def test_an_evaluator_returns_finite_plain_floats_under_slash_free_names(name):
    metrics = evaluator(name)(Everything)(embedder())
    assert metrics
    for key, value in metrics.items():
        assert type(value) is float and math.isfinite(value), (key, value)
        assert key and "/" not in key and " " not in key
    names = evaluator(name).metric_names()
    assert names is None or metrics.keys() <= set(names)


@pytest.mark.parametrize("name", plugins.names(FOLDER))
def test_an_evaluator_opens_the_split_it_is_told_and_depends_on_nothing_but_the_parameters(name):
    opened = []

    def open_source(split):
        opened.append(split)
        return Everything(split)

    one = evaluator(name)(open_source, split="another")
    assert opened == ["another"]
    assert one(embedder()) == one(embedder())
    assert len({tuple(one(embedder(seed)).items()) for seed in range(4)}) > 1
