import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.sphere import unit
from support import features


def view(n=4000, **options):
    clean = features.features(n=n, widths=(8, 8))
    module = features.module("cross_swap", **options)
    answer = module.augment(clean, key=jax.random.key(0), step=jnp.int32(0))
    return answer, np.asarray(unit(clean.image)), np.asarray(unit(clean.text))


@pytest.mark.parametrize("part", ["whole", "blocks"])
def test_coordinates_are_exchanged_within_pairs_and_nowhere_else(part):
    answer, image, text = view(probability=0.3, part=part, blocks=4)
    got_image, got_text = np.asarray(answer.views[0].image), np.asarray(answer.views[0].text)
    kept, moved = got_image == image, got_image == text
    assert (kept | moved).all()
    np.testing.assert_array_equal(got_text, np.where(moved, image, text))
    rows = moved.any(1).mean()
    expected = 0.3 if part == "whole" else 0.3 * (1 - 0.5**4)
    assert abs(rows - expected) < 4 * np.sqrt(0.25 / 4000)
    if part == "blocks":  # two coordinates a block, which move together
        np.testing.assert_array_equal(moved[:, 0::2], moved[:, 1::2])
        assert len(np.unique(moved, axis=0)) == 16
    else:
        assert (moved.all(1) | ~moved.any(1)).all()


@pytest.mark.parametrize("part", ["whole", "blocks"])
def test_a_pairs_product_is_the_same_as_before(part):
    answer, image, text = view(probability=0.5, part=part, n=50)
    got = answer.views[0]
    np.testing.assert_allclose((got.image * got.text).sum(1), (image * text).sum(1), atol=1e-6)
    assert not np.allclose(got.image @ got.text.T, image @ text.T, atol=1e-2)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_at_the_ends_the_loss_is_the_clean_one_or_its_mirror(probability):
    augmentations = features.made("cross_swap", probability=probability)
    _, metrics = features.added(augmentations, {}, features.head_params(), features.features())
    assert metrics["augment/cross_swap/swapped_fraction"] == probability
    np.testing.assert_allclose(metrics["augment/cross_swap/task_gap"], 0, atol=1e-5)
