"""Pictures in other styles: the block keeps texts, and the backend mixes statistics or optimizes."""

import io

import numpy as np
import pytest
from PIL import Image

from mmjax.config_file import load_config
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.generate.backend import Failure, Picture, PictureRequest
from support import generating
from support import style_reference as reference

SMALL = {"content_layer": "conv2_2", "style_layers": ("conv1_1", "conv2_1"), "steps": 5}


@pytest.fixture
def styles(tmp_path):
    """A folder of two pictures in one color each, with little noise."""
    folder = tmp_path / "styles"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, color in (("a.png", (200, 60, 60)), ("b.jpg", (60, 60, 200))):
        Image.fromarray(np.uint8(random.normal(color, 12, (30, 40, 3)).clip(0, 255))).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def make(styles, **options):
    section = {"name": "style", "styles": str(styles), **options}
    return plugins.make("mmjax.generate.backends", "ImageGenerator", section, path="models.x")


def request(seed=0, size=(24, 24), **options):
    pixels = np.random.default_rng(seed).integers(60, 200, (*size, 3), dtype=np.uint8)
    return PictureRequest("image", "", Picture(pixels, {"things": []}), **options)


def moments(x):
    x = np.asarray(x, np.float64)
    return np.concatenate([x.mean((0, 1)), x.std((0, 1))])


def test_statistics_go_as_far_as_the_strength_and_depend_on_item_and_seed_alone(styles):
    generator, one = make(styles), request()
    untouched, half, whole = (generator.make([request(strength=s)], [3])[0] for s in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(untouched.pixels, one.picture.pixels)
    np.testing.assert_allclose(
        moments(half.pixels), (moments(one.picture.pixels) + moments(whole.pixels)) / 2, atol=1.5
    )
    assert whole.scene is None and abs(max(moments(whole.pixels)[:3]) - 200) < 5
    batch = generator.make([request(1), request()], [8, 3])
    np.testing.assert_array_equal(batch[1].pixels, generator.make([request()], [3])[0].pixels)
    colors = {int(np.argmax(moments(generator.make([request()], [s])[0].pixels)[:3])) for s in range(8)}
    assert colors == {0, 2}


def test_children_keep_texts_and_say_what_drew_them(styles):
    stages = (("restyle", {"n": 2, "strength": 0.5}),)
    models = {"image_generator": {"name": "style", "styles": str(styles)}}
    records = generating.make_records(stages, models, source={"size": 4})
    assert [r.id for r in records[:4]] == ["0", "0.0", "0.1", "1"] and len(records) == 12
    parent, child, other = records[:3]
    assert child.captions == parent.captions and child.parent_id == "0" and child.split == parent.split
    assert child.image and child.image != other.image and "scene" not in child.fields
    assert child.provenance[-1]["block"] == "restyle" and child.provenance[-1]["model"] == "statistics"
    assert child.provenance[-1]["params"] == {"strength": 0.5}
    assert np.asarray(Image.open(io.BytesIO(child.image))).shape == (*child.size, 3)
    without = generating.make_records((("restyle", {"parents": False}),), models, source={"size": 2})
    assert [r.keep for r in without] == [False, True] * 2


def test_failures_stay_with_their_item(styles):
    for path in styles.glob("*.jpg"):
        path.write_bytes(b"damaged")
    answers = make(styles).make([request(n) for n in range(8)], range(8))
    assert {type(answer) for answer in answers} == {Picture, Failure}
    text = PictureRequest("text", "a cat")
    [failure] = make(styles).make([text], [0])
    assert "answers the mode 'image'" in failure.reason


def test_gram_matrices_change_the_picture_by_the_weights_of_a_file(styles, tmp_path):
    file = tmp_path / "vgg.npz"
    np.savez(file, **reference.random_vgg())
    generator = make(styles, model=str(file), optimization={**SMALL, "style_weight": 1e5, "optimizer": "adam"})
    [weak, strong] = generator.make([request(strength=0.0), request(strength=1.0)], [3, 3])
    original = request().picture.pixels
    np.testing.assert_array_equal(weak.pixels, original)
    assert strong.pixels.shape == original.shape and np.abs(strong.pixels.astype(int) - original).mean() > 1


def test_settings_that_cannot_be_used_are_named(styles, tmp_path):
    with pytest.raises(ConfigError, match=r"styles='.*nowhere': no pictures there"):
        make(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"optimization: model='statistics' optimizes nothing"):
        make(styles, optimization={"steps": 5})
    with pytest.raises(ConfigError, match=r"optimization.*'conv9_1'"):
        make(styles, model="vgg.pth", optimization={"content_layer": "conv9_1"})
    np.savez(tmp_path / "other.npz", weight=np.zeros(2))
    with pytest.raises(ConfigError, match=r"has no 'features\.0\.weight'; expected VGG-19"):
        make(styles, model=str(tmp_path / "other.npz")).make([request()], [0])


def test_the_recipe_is_short_and_names_its_models():
    sections = load_config("configs/generate/style.py:styles=paintings,model=vgg19.pth,n=2")
    assert sections["models"]["image_generator"] == {"name": "style", "model": "vgg19.pth", "styles": "paintings"}
    assert [name for name, _ in sections["stages"]] == ["restyle"]
