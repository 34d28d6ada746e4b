"""Every transform in the folder keeps the promises that the chain and the pipeline build on."""

import dataclasses
import inspect
import json
import pickle

import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.data.sample import BatchRows, Crop, Sample
from mmjax.data.token_format import TokenFormat
from mmjax.data.transform_chain import TransformChain
from mmjax.data.transforms.common.base import STAGES

FOLDER = "mmjax.data.transforms"
MODALITIES = ("image", "depth")
INJECTED = {
    "image_size": 12,
    "data_modalities": MODALITIES,
    "background": (255, 255, 255),
    "token_format": TokenFormat(1, 2, 0, 50, 9),
}
NAMES = plugins.names(FOLDER)
FILES = {
    "rewrites": lambda folder: {"paths": (written(folder / "r.jsonl", [{"key": "7", "caption": "a red thing"}]),)},
    "culture_mixup": lambda folder: {
        "concepts": written(folder / "c.jsonl", [{"source concept": "cat", "target concept": "paka"}])
    },
    "caption_fields": lambda folder: {"fields": ("alt",)},
    "side_by_side": lambda folder: {"exchange": "lists"},
}
"""Options of those that cannot do without any."""


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def cls(name):
    return plugins.load(FOLDER, name, path="data.transforms").Transform


def made(name, folder):
    options = FILES[name](folder) if name in FILES else {}
    known = inspect.signature(cls(name).__init__).parameters
    return cls(name)(**options, **{k: v for k, v in INJECTED.items() if k in known})


def sample(*, frozen=True):
    rng = np.random.default_rng(5)
    images = {m: rng.integers(0, 256, (12, 12, 3), np.uint8) for m in MODALITIES}
    for image in images.values():
        image.setflags(write=not frozen)
    crop = Crop(0, 0, 24, 24, (12, 12), (12, 12))
    return Sample(
        id=7, key="7", captions=["a cat to the left of a dog", "two animals"], images=images, crop=crop,
        fields={"alt": "a picture", "label": 1},
    )  # fmt: skip


def rows(count=6, *, partner=True):
    rng = np.random.default_rng(6)
    tokens = np.zeros((count, 2, 9), np.int32)
    for i in range(count):
        for t in range(2):
            length = 2 + (i + t) % 5
            tokens[i, t, : length + 2] = [1, *rng.integers(3, 50, length), 2]
    ids = np.arange(count, dtype=np.int32) + 30
    weight = np.ones((count, 2, 1), np.float32)
    weight[:, 1] = 0  # a caption and a hard negative each
    arrays = {
        "numbers": np.arange(count), "partner": np.full(count, -1), "images": {
            m: rng.integers(0, 256, (count, 12, 12, 3), np.uint8) for m in MODALITIES
        },
        "image_ids": ids[:, None], "image_weight": np.ones((count, 1), np.float32), "tokens": tokens,
        "text_ids": np.repeat(ids[:, None, None], 2, 1), "text_weight": weight, "captions": 1,
    }  # fmt: skip
    if partner:
        arrays["partner"][0], arrays["partner"][2] = 1, 3
    result = BatchRows(**arrays)
    for value in leaves(result):
        value.setflags(write=False)
    return result


def leaves(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    return []


def texts(value):
    return (value.captions, value.weights) if isinstance(value, Sample) else value if isinstance(value, Crop) else None


def applied(transform, seed):
    """What it makes of arrays that nobody may write to."""
    if transform.stage == "geometry":
        return transform(40, 30, np.random.default_rng(seed))
    if transform.stage == "batch":
        return transform(rows(), lambda row: np.random.default_rng((seed, row)))
    return transform(sample(), np.random.default_rng(seed))


def equal(a, b):
    return texts(a) == texts(b) and all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_the_folder_is_not_empty_and_shared_modules_are_no_plugins():
    assert {"mixgen", "cutswitch", "flip"} <= set(NAMES)
    assert not {"base", "boxes"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented_and_every_option_has_a_default_and_is_named(name):
    target = cls(name)
    assert target.stage in STAGES and target.__doc__
    for option, parameter in inspect.signature(target.__init__).parameters.items():
        if option in ("self", *INJECTED):
            continue
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty, option
        assert f"``{option}``" in target.__doc__ or f"{option}:" in target.__doc__, option


@pytest.mark.parametrize("name", NAMES)
def test_it_depends_on_its_draws_alone_and_leaves_what_it_reads_as_it_was(name, tmp_path):
    transform = made(name, tmp_path)
    twin = pickle.loads(pickle.dumps(transform))
    results = [applied(transform, seed) for seed in range(8)]
    for seed in (5, 0, 3):  # in another order, and in a copy: nothing is remembered
        assert equal(applied(transform, seed), results[seed])
        assert equal(applied(twin, seed), results[seed])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_kinds_and_frames_stay(name, tmp_path):
    transform = made(name, tmp_path)
    for seed in range(12):
        result = applied(transform, seed)
        if transform.stage == "geometry":
            assert result.size == (12, 12)
            assert result.top >= -1e-9 and result.left >= -1e-9
            assert result.top + result.height <= 40 + 1e-9 and result.left + result.width <= 30 + 1e-9
            continue
        before = rows() if transform.stage == "batch" else sample()
        assert result.images.keys() == before.images.keys()
        for m, image in result.images.items():
            assert image.dtype == np.uint8 and image.shape == before.images[m].shape
        if isinstance(result, Sample):
            assert (result.id, result.key) == (7, "7") and result.captions
            assert all(isinstance(c, str) and c.strip() for c in result.captions)
            assert result.weights is None or len(result.weights) == len(result.captions)
            continue
        assert result.tokens.shape == before.tokens.shape and result.tokens.dtype == np.int32
        np.testing.assert_array_equal(result.image_ids[:, 0], before.image_ids[:, 0])  # the papers' labels
        assert result.image_ids.shape == result.image_weight.shape and result.text_ids.shape == result.text_weight.shape
        for row in result.tokens.reshape(-1, 9):
            end = row.tolist().index(2)
            assert row[0] == 1 and not np.isin(row[1:end], (0, 1)).any() and not row[end + 1 :].any()
        kept = result.text_ids[:, 1, 0] >= 0
        np.testing.assert_array_equal(result.tokens[kept, 1], before.tokens[kept, 1])  # negatives stay, or go
        assert not result.text_weight[:, 1].any()


@pytest.mark.parametrize("name", [name for name in NAMES if cls(name).stage == "batch"])
def test_partners_are_rows_of_the_batch_and_the_same_from_every_share(name, tmp_path):
    transform = made(name, tmp_path)
    for batch_size, group in ((16, 1), (16, 2), (24, 3), (2, 1)):
        whole = transform.partners(batch_size=batch_size, group=group, host_rows=range(batch_size))
        assert all(0 <= row < batch_size and 0 <= other < batch_size and row != other for row, other in whole.items())
        assert all(row % group == other % group for row, other in whole.items())
        half = batch_size // 2
        parts = [
            transform.partners(batch_size=batch_size, group=group, host_rows=s)
            for s in (range(half), range(half, batch_size))
        ]
        assert parts[0] | parts[1] == whole and not parts[0].keys() & parts[1].keys()


@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_it_does_not_have_is_an_error_that_names_the_transform(name):
    options = [o for o in inspect.signature(cls(name).__init__).parameters if o not in ("self", *INJECTED)]
    with pytest.raises(ConfigError, match=rf"data\.transforms\.{name}\.nosuch.*{options[0] if options else 'known'}"):
        TransformChain(
            ((name, {"nosuch": 1}),), image_size=12, modalities=MODALITIES, token_format=INJECTED["token_format"]
        )
