"""What a loaded model makes of a user's pictures and sequences, and what it says of those that do not fit."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data.eval_view import make_eval_chain
from mmjax.data.sample import Unreadable
from mmjax.inference.images import PRESENT, make_reader, split_present
from support import clip_models

GRAY = np.arange(144, dtype=np.uint8).reshape(12, 12)
COLORS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)


def reader(**vision):
    config = clip_models.config(vision=vision).vision_cfg
    names = config.modalities
    chain = make_eval_chain(None, image_size=12, resize="squash", modalities=names, background="white")
    return make_reader(config, chain=chain, modality=names[0], background=None)


def test_a_gray_modality_has_one_channel_however_its_picture_is_stored(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "depth.png")
    read, stack = reader(modalities=("image", "depth"), modality_channels=(3, 1), fusion="gated")
    pictures = [{"image": COLORS, "depth": tmp_path / "depth.png"}, {"depth": GRAY[..., None]}, COLORS]
    images, present = split_present(stack([read(one, i) for i, one in enumerate(pictures)]))
    assert present.tolist() == [[True, True], [False, True], [True, False]] and PRESENT not in images
    np.testing.assert_array_equal(images["depth"][:2, ..., 0], [GRAY, GRAY])
    np.testing.assert_array_equal(images["image"], [COLORS, np.zeros_like(COLORS), COLORS])
    with pytest.raises(Unreadable, match=r"images\[3\].*has colors, and the model takes gray pictures as 'depth'"):
        read({"depth": COLORS}, 3)
    alone, _ = reader(modalities=("depth",), modality_channels=(1,))
    np.testing.assert_array_equal(alone(GRAY, 0)[..., 0], GRAY)


def test_a_sequence_of_other_features_is_named():
    frames = {"stem": "frames", "max_frames": 6, "pool_type": "avg", "class_token": False}
    read, stack = reader(**frames, modalities=("signs",), modality_channels=(3,))
    sequence = np.ones((4, 3), np.float32)
    assert stack([read(sequence, 0)])["signs"].shape == (1, 6, 4)
    with pytest.raises(Unreadable, match=r"images\[1\].*5 features a frame, and the model takes 3"):
        read(np.ones((4, 5), np.float32), 1)
