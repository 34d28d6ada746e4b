"""Sequences of features: what files hold, what is refused, and one length with a mask."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data import source, tokenizer
from mmjax.data.inspecting import survey
from mmjax.data.open_source import open_source
from mmjax.data.pipeline import Batches
from mmjax.data.sample import Unreadable
from mmjax.data.sequences import frames
from mmjax.data.sources import scenes
from mmjax.report.panels import encode_picture


def saved(write, *arrays, **named):
    file = io.BytesIO()
    write(file, *arrays, **named)
    return file.getvalue()


SEQUENCE = np.arange(6, dtype=np.float64).reshape(3, 2)


def test_arrays_and_files_of_numpy_are_read_alike():
    values = (SEQUENCE, SEQUENCE.astype(np.int16), saved(np.save, SEQUENCE), saved(np.savez, x=SEQUENCE))
    for value in values:
        read = frames.read(value, key="k")
        assert read.dtype == np.float32
        assert read.tolist() == SEQUENCE.tolist()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x89PNG", "no .npy or .npz file"),
        (b"", "no .npy or .npz file"),
        (saved(np.save, SEQUENCE)[:-4], "no .npy or .npz file"),
        (saved(np.savez, x=SEQUENCE)[:80], "no .npy or .npz file"),
        (saved(np.save, np.array([{}], object)), "no .npy or .npz file"),  # would run what is pickled in it
        (saved(np.savez, x=SEQUENCE, y=SEQUENCE), "2 arrays"),
        (np.zeros(3), "float64[3] is no sequence"),
        (np.zeros((0, 2)), "float64[0, 2] is no sequence"),
        (np.zeros((2, 2), bool), "bool[2, 2] is no sequence"),
        (np.array([[1.0, np.nan]]), "not finite"),
    ],
)
def test_what_is_no_sequence_is_unreadable_and_named(value, reason):
    with pytest.raises(Unreadable) as error:
        frames.read(value, key="a.npy")
    assert reason in str(error.value)
    assert str(error.value).startswith("a.npy: bad row")


@given(frames_=st.integers(1, 40), length=st.integers(1, 20))
def test_a_sequence_is_padded_or_thinned_in_order_with_a_mask_of_its_frames(frames_, length):
    sequence = np.stack([np.arange(frames_), -np.arange(frames_)], axis=1).astype(np.float32)
    padded = frames.pad(sequence, length)
    kept = min(frames_, length)
    assert padded.shape == (length, 3)
    assert padded[:, -1].tolist() == [1] * kept + [0] * (length - kept)
    assert not padded[kept:].any()
    numbers = padded[:kept, 0]
    if frames_ <= length:
        assert numbers.tolist() == list(range(frames_))
    else:  # evenly spaced, and as far from the first as from the last
        steps = np.diff(numbers)
        assert (steps > 0).all()
        assert not len(steps) or steps.max() - steps.min() <= 1
        assert abs(numbers[0] - (frames_ - 1 - numbers[-1])) <= 1


def test_batches_of_scenes_told_in_signs_hold_features_and_mask():
    view = frames.FrameView(scenes.Source("train", size=8, modalities=("frames",)), length=20)
    tokens = lambda texts: np.zeros((len(texts), 2), np.int32)  # noqa: E731
    batch = Batches(view, tokens, batch_size=4, seed=0)[0]["images"]["frames"]
    assert batch.shape == (4, 20, 17)
    assert batch.dtype == np.float32
    lengths = batch[:, :, -1].sum(axis=1)
    for row, length in zip(batch, lengths.astype(int), strict=True):
        assert row[:length, :-1].any(axis=1).all()
        assert not row[length:].any()


def test_an_example_with_another_number_of_features_is_replaced_and_reported():
    class Mixed(source.Source):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            sequence = np.ones((2, 3 if index else 4), np.float32)
            return {"id": index, "key": f"row {index}", "captions": ["a"], "image": sequence}

    tokens = lambda texts: np.zeros((len(texts), 2), np.int32)  # noqa: E731
    view = frames.FrameView(Mixed(), length=4)
    batch = Batches(view, tokens, batch_size=6, seed=0, order="stored")[0]
    broken = {key for key, _, _ in batch["unreadable"]}
    assert broken == {f"row {i}" for i in range(1, 6)}
    assert (batch["images"]["image"][..., -1].sum(axis=1) == 2).all()


def test_files_of_sequences_in_a_table_are_read(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((i + 1, 2), i, np.float32))
    (tmp_path / "train.csv").write_text("image,caption\n" + "".join(f"{i}.npy,word {i}\n" for i in range(3)))
    table = open_source({"name": "tables", "path": str(tmp_path / "train.csv")}, split="train")
    view = frames.FrameView(table, length=3)
    assert [view[i]["image"][:, 0].tolist() for i in range(3)] == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]
    assert [int(view[i]["image"][:, -1].sum()) for i in range(3)] == [1, 2, 3]


def test_a_sequence_is_drawn_without_its_padding():
    padded = frames.pad(np.array([[0, 1], [-1, 9], [0, 0]], np.float32), 5)
    picture = frames.draw(padded)
    assert frames.size_of(padded) == (3, 2)
    assert picture.shape == (2, 3, 1)
    assert picture[0, 0, 0] == picture[1, 2, 0] == 128
    assert picture[0, 1, 0] < 128 < picture[1, 0, 0] < picture[1, 1, 0]
    assert frames.draw(np.zeros((2, 3), np.float32)).shape == (2, 1, 1)  # nothing but padding
    assert encode_picture(padded).uri.startswith("data:image/png")


def test_a_survey_counts_frames_and_features():
    view = frames.FrameView(scenes.Source("train", size=8, modalities=("frames",)), length=20)
    tokens = tokenizer.load("word", context_length=8, captions=["a red star"])
    summary = survey.survey(view, tokenizer=tokens, numbers=range(8), threads=1)
    assert summary["pictures"]["frames"]["width"] == {"min": 16, "median": 16.0, "max": 16}
    assert summary["pictures"]["frames"]["height"]["max"] <= 20
    assert "features 16 / 16 / 16" in survey.text(summary)
    assert not any(summary["unreadable"].values())


def test_signs_spell_the_glosses_of_the_scene():
    from mmjax.data.scenes import signs

    data = scenes.Source("train", size=40, modalities=("frames",))
    for index in range(40):
        item = data[index]
        glosses = item["gloss"].split()
        assert all(gloss in item["captions"][0] for gloss in glosses if gloss not in ("front", "behind"))
        nearest = np.argmin(((item["frames"][:, None] - signs._SIGNS) ** 2).sum(-1), axis=1)
        spelled = [signs.GLOSSES[number] for number in nearest]
        runs = [spelled[0], *(b for a, b in itertools.pairwise(spelled) if a != b)]
        assert len(item["frames"]) >= 2 * len(glosses)
        assert sum(run in glosses for run in runs) >= 0.9 * len(runs)
