import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support import features


def view(fraction, *, n=8, seed=0, **options):
    clean = features.features(seed, n=n, widths=(8, 8))
    module = features.module("embedding_mixgen", fraction=fraction, **options)
    answer = module.augment(clean, key=jax.random.key(0), step=jnp.int32(0))
    return answer, clean


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 2), (0.3, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
@pytest.mark.parametrize("mix_ratio", [0.5, 0.8])
def test_the_first_rows_are_made_of_clean_sources_alone(fraction, count, mix_ratio):
    answer, clean = view(fraction, mix_ratio=mix_ratio)
    (got,) = answer.views
    for side, own in (("image", mix_ratio), ("text", 0.5)):
        x = np.asarray(getattr(clean, side), np.float64)
        want = x.copy()
        for i in range(count):
            want[i] = own * x[i] + (1 - own) * x[(i + (count % 8 or 1)) % 8]  # never with itself
        np.testing.assert_allclose(getattr(got, side), want, atol=1e-6)
    assert answer.metrics["mixed_fraction"] == count / 8


@pytest.mark.parametrize("targets", ["provenance", "identity"])
def test_labels(targets):
    answer, clean = view(0.25, mix_ratio=0.8, targets=targets)
    source, (ids, weight) = answer.views[0].image_source, (clean.image_source.ids[:, 0],) * 2
    if targets == "identity":
        np.testing.assert_array_equal(source.ids[:, 0], ids)
        np.testing.assert_array_equal(source.weight[:, 0], np.ones(8))
        assert source.ids.shape == (8, 1)
    else:
        np.testing.assert_array_equal(source.ids[:2], np.stack([weight[:2], weight[2:4]], 1))
        np.testing.assert_allclose(source.weight[:2], [[0.8, 0.2]] * 2, rtol=1e-6)
        np.testing.assert_array_equal(source.weight[2:], [[1, 0]] * 6)


def test_equal_mix_ratios_do_not_care_which_example_comes_first():
    """With λ = ½ and half the batch mixed, exchanging the halves leaves the new pairs as they were."""
    answer, clean = view(0.5)
    turned = features.replaced(clean, jnp.roll(clean.image, 4, 0), jnp.roll(clean.text, 4, 0))
    module = features.module("embedding_mixgen", fraction=0.5)
    other = module.augment(turned, key=jax.random.key(0), step=jnp.int32(0))
    np.testing.assert_allclose(answer.views[0].image[:4], other.views[0].image[:4], atol=1e-6)
