"""The documentation's own augmentation, as the page shows it, as the only file that it needs."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.train.augmentation import Augmentations
from support import features, tiny
from support.training import assembled, trained

PAGE = Path(__file__).parents[2] / "docs" / "augmentations.md"


@pytest.fixture
def my_mix(tmp_path, monkeypatch):
    """The example among the plug-ins, for the time of a test."""
    section = PAGE.read_text(encoding="utf-8").split("## Your own, in one file", 1)[1]
    code = section.split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "my_mix.py").write_text(code, encoding="utf-8")
    package = importlib.import_module("mmjax.augment")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield code
    sys.modules.pop("mmjax.augment.my_mix", None)
    vars(package).pop("my_mix", None)


@pytest.mark.slow
def test_the_example_of_the_page_is_all_it_takes(my_mix):
    assert len(my_mix.splitlines()) <= 30
    assert "my_mix" in plugins.names("mmjax.augment")
    scheduled = {"strength": 0.5, "weight": {"value": 0.5, "start": 1}}
    plain, mixed = (
        trained(tiny.experiment(augment=augment), steps=2, optimised=True) for augment in ((), (("my_mix", scheduled),))
    )
    for a, b in zip(jax.tree.leaves(mixed[0][0].params), jax.tree.leaves(plain[0][0].params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert mixed[1][1]["augment/my_mix/weight"] == 0.5 and mixed[1][1]["augment/my_mix/strength"] == 0.5
    assert mixed[1][1]["augment/my_mix/task_image_cosine"] < 1
    assert not np.array_equal(*(h[1][0].params["visual"]["proj"]["kernel"] for h in (mixed, plain)))
    with pytest.raises(ConfigError, match=r"augment\.my_mix\.strenth=1: unknown key; did you mean 'strength'"):
        assembled(tiny.experiment(augment=(("my_mix", {"strenth": 1}),)))


def test_the_example_of_the_page_does_what_it_says(my_mix):
    module = Augmentations.from_config([("my_mix", {})], towers=features.TOWERS, seed=0).create()["my_mix"]
    clean = features.features()
    [view] = module.augment(clean, key=jax.random.key(0), step=jax.numpy.int32(0)).views
    image = np.asarray(clean.image, np.float64)
    np.testing.assert_allclose(view.image, image + 0.25 * (image - image[::-1]), rtol=1e-5, atol=1e-6)
