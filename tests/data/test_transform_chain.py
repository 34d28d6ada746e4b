import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import tokenizer
from mmjax.data.pipeline import Batches
from mmjax.data.sources import scenes
from mmjax.data.transform_chain import TransformChain

MODALITIES = ("image", "depth", "thermal")
EVERYTHING = (
    ("random_resized_crop", {"scale": (0.5, 1.0)}),
    ("flip", {}),
    ("cutswitch", {"probability": 1.0}),
    ("color_jitter", {}),
    ("random_erasing", {}),
    ("eda", {}),
    ("style_statistics", {}),
    ("mixgen", {"variant": "d"}),
    ("token_mask", {"probability": 0.2, "mode": "random"}),
)


@pytest.fixture(scope="module")
def source():
    return scenes.Source("train", size=64, image_size=32, world="easy", modalities=MODALITIES, twins=True)


@pytest.fixture(scope="module")
def words(source):
    return tokenizer.load("word", context_length=24, captions=[c for i in range(64) for c in source[i]["captions"]])


def chain(transforms, words=None, *, seed=0, size=24, modalities=MODALITIES):
    return TransformChain(
        transforms,
        image_size=size,
        modalities=modalities,
        token_format=None if words is None else words.format,
        seed=seed,
    )


def batches(source, words, transforms, *, seed=0, **options):
    made = chain(transforms, words, seed=seed)
    return Batches(source, words, batch_size=16, seed=seed, chain=made, captions_per_image=2, **options)


def arrays(batch):
    return [*batch["images"].values(), *(batch[k] for k in batch if k not in ("images", "unreadable"))]


@pytest.mark.parametrize("count", [2, 4])
def test_with_everything_on_the_processes_rows_joined_are_the_batch(source, words, count):
    whole = batches(source, words, EVERYTHING)[3]
    shares = [batches(source, words, EVERYTHING, process_index=p, process_count=count)[3] for p in range(count)]
    joined = [np.concatenate(parts) for parts in zip(*map(arrays, shares), strict=True)]
    for a, b in zip(joined, arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole["image_ids"].shape == (16, 2) and (whole["image_ids"][:, 1] >= 0).sum() == 4


def test_threads_workers_and_the_place_of_start_change_nothing(source, words):
    made = batches(source, words, EVERYTHING)
    expected = [made[step] for step in (6, 7)]
    stream = batches(source, words, EVERYTHING).stream(start_step=6, threads=3, prefetch=2)
    for step in expected:
        for a, b in zip(arrays(next(stream)), arrays(step), strict=True):
            np.testing.assert_array_equal(a, b)
    stream.close()


def test_another_seed_and_another_epoch_are_other_draws(source, words):
    one = batches(source, words, (("random_resized_crop", {}), ("flip", {})), seed=0)
    first, later = one[0], one[4]  # 64 examples: the same ones again in epoch 2, in another order
    assert sorted(np.concatenate([one[s]["image_ids"][:, 0] for s in range(4)])) == list(range(64))
    at = dict(zip(first["image_ids"][:, 0].tolist(), first["images"]["image"], strict=True))
    again = [
        (at[i], image) for s in range(4, 8)
        for i, image in zip(one[s]["image_ids"][:, 0], one[s]["images"]["image"], strict=True) if i in at
    ]  # fmt: skip
    assert len(again) == 16 and sum(np.array_equal(a, b) for a, b in again) < 3
    assert later["images"]["image"].shape == (16, 24, 24, 3)


def test_a_transforms_draws_do_not_depend_on_the_other_transforms(source):
    example = source[5]
    alone = chain((("cutswitch", {"probability": 1.0}),))
    second = chain(
        (("cutswitch", {"probability": 1.0}), ("flip", {"horizontal": 0.0}), ("cutswitch", {"probability": 1.0}))
    )
    behind = chain((("flip", {"horizontal": 0.0}), ("cutswitch", {"probability": 1.0})))

    def seen(made, number):
        sample = made.decode_and_transform(
            made.apply_caption_transforms(example, number=number), example, number=number
        )
        return np.stack([sample.images[m] for m in MODALITIES])

    for number in (0, 1, 2**40):
        np.testing.assert_array_equal(seen(alone, number), seen(behind, number))
    assert any(not np.array_equal(seen(alone, n), seen(second, n)) for n in range(4))  # the second draws for itself
    assert not np.array_equal(seen(alone, 0), seen(alone, 1))


def test_aligned_pictures_of_other_sizes_share_the_crop(source):
    """A ramp in each modality tells where the view was taken from."""
    ramp = np.tile(np.linspace(0, 240, 48).astype(np.uint8)[:, None, None], (1, 48, 3))
    example = {"id": 0, "captions": ["a"], "image": ramp, "depth": ramp[::2, ::2].copy(), "thermal": ramp}
    made = chain((("random_resized_crop", {"scale": (0.3, 0.5)}),), size=16)
    for number in range(5):
        sample = made.decode_and_transform(
            made.apply_caption_transforms(example, number=number), example, number=number
        )
        image, depth, thermal = (sample.images[m].astype(int) for m in MODALITIES)
        np.testing.assert_array_equal(image, thermal)
        assert np.abs(image - depth).max() <= 14 and np.ptp(image) < 200


@pytest.mark.parametrize(
    ("transforms", "words_"),
    [
        ((("flipp", {}),), ["data.transforms", "flipp", "'flip'"]),
        ((("flip", {"horizonal": 1.0}),), ["data.transforms.flip.horizonal", "'horizontal'"]),
        ((("flip", {"horizontal": 2.0}),), ["data.transforms.flip", "horizontal=2"]),
        ((("flip", {}), ("random_resized_crop", {})), ["random_resized_crop", "geometry", "later stage"]),
        ((("resize_crop", {}), ("random_resized_crop", {})), ["resize_crop", "random_resized_crop", "keep one"]),
        ((("mixgen", {}),), ["mixgen", "tokens"]),
        ((("flip", {"image_size": 3}),), ["image_size"]),
    ],
)
def test_errors_name_the_transform(transforms, words_):
    with pytest.raises(ConfigError) as error:
        chain(transforms)
    assert all(word in str(error.value) for word in words_), str(error.value)


def test_pixels_of_the_right_size_pass_untouched_where_nothing_crops(source):
    example = source[3]
    made = chain(())
    sample = made.decode_and_transform(made.apply_caption_transforms(example, number=0), example, number=0)
    assert all(sample.images[m] is example[m] for m in MODALITIES)
    assert sample.crop is None and sample.key == "3" and sample.captions == example["captions"]


def test_captions_are_sampled_by_the_weights_that_an_example_gives_them(source, words):
    class Weighted(scenes.Source):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "caption_weights": [0.0, 3.0, 1.0, 0.0, 0.0]}

    weighted = Weighted("train", size=64, image_size=32, world="easy")
    texts = Batches(
        weighted, words, batch_size=64, seed=0, chain=chain((), words, size=32, modalities=("image",)),
        captions_per_image=1,
    )  # fmt: skip
    drawn = [row.tolist() for step in range(4) for row in texts[step]["tokens"]]
    allowed = [{tuple(words([c])[0].tolist()) for c in weighted[i]["captions"][1:3]} for i in range(64)]
    numbers = [int(i) for step in range(4) for i in texts[step]["image_ids"][:, 0]]
    assert all(tuple(row) in allowed[i] for row, i in zip(drawn, numbers, strict=True))
    firsts = [tuple(words([weighted[i]["captions"][1]])[0].tolist()) for i in range(64)]
    count = sum(tuple(row) == firsts[i] for row, i in zip(drawn, numbers, strict=True))
    assert abs(count / 256 - 0.75) < 3 * (0.75 * 0.25 / 256) ** 0.5
