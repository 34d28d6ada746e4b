"""Random styles against numpy in float64: which rows change, to what, and that nothing else does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common import style_codes
from mmjax.augment.common.batch_change import change_leading_rows, group_rows
from mmjax.augment.common.schedules import Schedule
from mmjax.augment.common.style_network import LoadedStyleNetwork, StyleNetwork
from mmjax.augment.style import Augmentation, draw_strength
from mmjax.core.config import ConfigError
from support import features
from support import style_reference as reference

FORMS = ("statistics", "mixstyle", "fourier")


def pictures(n=16, *, height=12, width=10, seed=0):
    """Smooth pictures in different colors, away from 0 and 255."""
    random = np.random.default_rng(seed)
    colors = random.uniform(60, 190, (n, 1, 1, 3))
    return jnp.asarray(np.clip(colors + 20 * random.normal(size=(n, height, width, 3)), 0, 255), jnp.uint8)


def restyled(x, *, step=0, seed=1, valid=None, **options):
    valid = jnp.ones(len(x), bool) if valid is None else valid
    return restyle(Augmentation(**options), x, valid, jax.random.key(seed), step)


def restyle(module, x, valid, key, step):
    return jax.jit(lambda *a: module.restyle(a[0], valid=a[1], key=a[2], step=a[3]))(x, valid, key, jnp.int32(step))


def codes_in_float64(x):
    x = np.asarray(x, np.float64)
    return np.concatenate([x.mean((-3, -2)), np.log(np.maximum(x.std((-3, -2)), 1))], axis=-1)


@pytest.mark.parametrize(
    ("rows", "ratio", "size", "count"),
    [(16, "1:1", 2, 1), (16, "1:3", 4, 3), (64, "16:1", 16, 1), (64, "1:32", 32, 31), (16, "0:1", 2, 2),
     (7, "1:1", 7, 4), (127, "1:1", 127, 64), (1, "0:1", 1, 1)],
)  # fmt: skip
def test_the_first_rows_of_each_group_change_and_the_others_keep_their_bits(rows, ratio, size, count):
    x = pictures(rows)
    got = np.asarray(restyled(x, ratio=ratio, form="statistics", alpha=1.0, spread=3.0))
    assert group_rows(rows, Augmentation(ratio=ratio).fraction) == (size, count)
    changed = np.any(got != np.asarray(x), axis=(1, 2, 3))
    want = np.tile(np.arange(size) < count, rows // size)
    np.testing.assert_array_equal(changed[~want], False)
    if rows > 1:  # one picture has no distribution of styles
        np.testing.assert_array_equal(changed, want)


@pytest.mark.parametrize("form", FORMS)
def test_a_strength_of_zero_leaves_every_bit(form):
    x = pictures()
    np.testing.assert_array_equal(restyled(x, form=form, alpha=0.0, ratio="0:1"), x)
    rows = x.astype(jnp.float32)
    codes = style_codes.style_codes(x)
    zero = jnp.zeros((16, 1))
    if form == "fourier":
        same = style_codes.mix_amplitudes(rows, rows[::-1], zero[..., None, None], band=1.0)
    else:
        same = style_codes.apply_codes(rows, codes, style_codes.mix_codes(codes, codes[::-1], zero))
    np.testing.assert_allclose(same, rows, atol=255e-6)


def test_at_full_strength_moments_are_those_of_the_style():
    x = pictures().astype(jnp.float32)
    target = style_codes.style_codes(pictures(seed=5))
    got = style_codes.apply_codes(x, style_codes.style_codes(x), target)
    np.testing.assert_allclose(codes_in_float64(got), target, rtol=1e-5, atol=1e-5)


def test_statistics_follow_their_formula():
    """With the draws of the key, everything else again in float64."""
    x, alpha, spread, key = pictures(), 0.7, 1.5, jax.random.key(1)
    valid = np.arange(16) < 13
    got = restyled(x, ratio="1:3", alpha=alpha, spread=spread, valid=jnp.asarray(valid))
    codes = codes_in_float64(x)
    np.testing.assert_allclose(style_codes.style_codes(x), codes, rtol=1e-5)
    mean, covariance = codes[valid].mean(0), np.cov(codes[valid].T)
    jax_mean, factor = style_codes.fit_normal(jnp.asarray(codes, jnp.float32), jnp.asarray(valid))
    np.testing.assert_allclose(jax_mean, mean, rtol=1e-5)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=3e-5 * np.outer(scale, scale).max())
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], (4, 3, 6)), np.float64)
    own = codes.reshape(4, 4, 6)[:, :3]
    z = alpha * (mean + spread * noise @ np.asarray(factor, np.float64).T) + (1 - alpha) * own
    rows = np.asarray(x, np.float64).reshape(4, 4, 12, 10, 3)[:, :3]
    mean, sd, new_mean, new_sd = (
        v[:, :, None, None] for v in (own[..., :3], np.exp(own[..., 3:]), z[..., :3], np.exp(z[..., 3:]))
    )
    want = np.round(np.clip(new_sd * (rows - mean) / sd + new_mean, 0, 255))
    difference = np.abs(np.asarray(got, np.float64).reshape(4, 4, 12, 10, 3)[:, :3] - want)
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3  # where rounding was a tie


@pytest.mark.parametrize("draw", ["fixed", "uniform", "beta"])
def test_mixstyle_follows_its_formula(draw):
    x, key = pictures(), jax.random.key(1)
    got = restyled(x, form="mixstyle", alpha=0.8, ratio="1:1", draw=draw)
    a = draw_strength(jax.random.split(key)[0], jnp.float32(0.8), shape=(8, 1), draw=draw)
    a = np.asarray(a, np.float64)[:, :, None, None]
    rows = np.asarray(x, np.float64)
    own, other = rows[::2], rows[1::2]
    (mean, sd), (its_mean, its_sd) = (
        (v.mean((1, 2), keepdims=True), v.std((1, 2), keepdims=True)) for v in (own, other)
    )
    want = ((1 - a) * sd + a * its_sd) * (own - mean) / sd + (1 - a) * mean + a * its_mean
    difference = np.abs(np.asarray(got, np.float64)[::2] - np.round(np.clip(want, 0, 255)))
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


@pytest.mark.parametrize("band", [1.0, 0.3])
def test_amplitudes_are_mixed_and_phases_kept(band):
    x = np.asarray(pictures(2), np.float64)
    got = style_codes.mix_amplitudes(*(jnp.asarray(v, jnp.float32) for v in x), jnp.float32(0.6), band=band)
    own, other, new = (np.fft.fft2(v, axes=(0, 1)) for v in (*x, np.asarray(got, np.float64)))
    inside = (np.abs(np.fft.fftfreq(12))[:, None] <= band / 2) & (np.abs(np.fft.fftfreq(10)) <= band / 2)
    mixed = np.where(inside[..., None], 0.4 * np.abs(own) + 0.6 * np.abs(other), np.abs(own))
    np.testing.assert_allclose(new, mixed * np.exp(1j * np.angle(own)), atol=2e-2)  # amplitudes reach 10,000
    assert inside.all() == (band == 1) and inside.sum() > 1


def test_draws_have_the_distribution_that_was_fitted():
    random = np.random.default_rng(0)
    codes = jnp.asarray(random.normal(size=(40, 6)) @ random.normal(size=(6, 6)) + 3, jnp.float32)
    mean, factor = style_codes.fit_normal(codes, jnp.ones(40, bool))
    z = np.asarray(style_codes.sample_normal(jax.random.key(0), mean, factor, shape=(20000,)), np.float64)
    covariance = np.cov(np.asarray(codes, np.float64).T)
    np.testing.assert_allclose(z.mean(0), codes.mean(0), atol=4 * np.sqrt(covariance.max() / 20000))
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=6 * covariance.max() / np.sqrt(20000))


@pytest.mark.parametrize("case", ["flat", "equal", "one valid", "none valid", "extreme"])
@pytest.mark.parametrize("form", FORMS)
def test_degenerate_pictures_stay_in_range(form, case):
    x, valid = pictures(8), np.ones(8, bool)
    if case == "flat":
        x = jnp.broadcast_to(x[:, :1, :1], x.shape)
    elif case == "equal":
        x = jnp.broadcast_to(x[:1], x.shape)
    elif case == "extreme":
        x = jnp.asarray(255 * (np.asarray(x) > 128), jnp.uint8)
    else:
        valid[1 if case == "one valid" else 0 :] = False
    module = Augmentation(form=form, alpha=1.0, spread=4.0, ratio="0:1")
    got = restyle(module, x, jnp.asarray(valid), jax.random.key(0), 0)
    assert got.dtype == jnp.uint8 and got.shape == x.shape
    if case == "flat" and form != "statistics":  # other colors, but nothing to see
        assert np.ptp(np.asarray(got), axis=(1, 2)).max() == 0
    if case == "equal":  # all styles are one
        np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_bfloat16_are_close(form):
    x = pictures().astype(jnp.float32)
    whole, half = (
        restyle(Augmentation(form=form, ratio="0:1"), v, jnp.ones(16, bool), jax.random.key(0), 0)
        for v in (x, x.astype(jnp.bfloat16))
    )
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), whole, atol=2)  # bfloat16 has 8 bits, as 0 to 255


def test_a_schedule_compiles_once_and_draws_are_new_at_each_step():
    x, traces = pictures(), []
    augmentations = features.made("style", alpha={"value": 0.0, "shape": "linear", "final": 1.0, "over": 10})
    batch = features.batch(x)

    @jax.jit
    def run(step):
        traces.append(step)
        changed, metrics = augmentations.change_batch(batch, step)
        return changed.images["image"], metrics

    (none, off), (one, half), (again, _), (other, _) = (run(jnp.int32(step)) for step in (0, 5, 5, 6))
    assert len(traces) == 1 and not augmentations.modules
    np.testing.assert_array_equal(none, x)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert off["augment/style/alpha"] == 0 and half["augment/style/alpha"] == 0.5
    assert off["augment/style/image_change"] == 0 and half["augment/style/image_change"] > 1
    assert isinstance(Augmentation(alpha=Schedule(value=0.5)).alpha, Schedule)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", ["1:1", "16:5"])
def test_one_device_equals_eight(form, ratio):
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    x = pictures(64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one, eight = (np.asarray(restyled(v, form=form, ratio=ratio), int) for v in (x, split))
    difference = np.abs(one - eight)
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


def test_modalities_are_changed_apart_and_others_not_at_all():
    x = pictures()
    images = {"image": x, "thermal": x, "depth": x}
    module = Augmentation(modalities=("image", "thermal"), ratio="0:1")
    run = functools.partial(module.change_pixels, valid=jnp.ones(16, bool), key=jax.random.key(0), step=jnp.int32(0))
    got, metrics = run(images)
    np.testing.assert_array_equal(got["depth"], x)
    assert not np.array_equal(got["image"], got["thermal"])
    assert set(metrics) == {"alpha", "image_change", "thermal_change"}
    with pytest.raises(ConfigError, match=r"augment\.style\.modalities=.*: the data has depth"):
        run({"depth": x})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "1"}, r"augment\.style\.ratio='1': expected unchanged to changed rows, as '1:1', '16:1' or '0:1'"),
        ({"ratio": "1:0"}, r"augment\.style\.ratio='1:0': expected"),
        ({"alpha": 1.5}, r"augment\.style\.alpha=1\.5: must be between 0 and 1"),
        ({"band": 0.0}, r"augment\.style\.band=0\.0"),
        ({"form": "gram"}, r"augment\.style\.form='gram'"),
        ({"weight": 1.0}, r"augment\.style\.weight=1\.0: unknown key"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        features.made("style", **options)


def test_a_ratio_that_changes_no_row_is_an_error():
    with pytest.raises(ConfigError, match=r"augment\.style\.ratio: changes no row of 8; raise batch_size"):
        restyled(pictures(8), ratio="32:1")


STYLES = 5


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with small random networks, named as those of the paper's authors."""
    random = np.random.default_rng(0)
    root = random.normal(size=(STYLES, STYLES))
    save = lambda kind, tensors: np.savez(tmp_path / f"checkpoint_{kind}.npz", **tensors)  # noqa: E731
    save(
        "embeddings",
        {
            "pbn_embedding_mean": random.normal(size=(1, STYLES)).astype(np.float32),
            "pbn_embedding_covariance": root @ root.T,
            "imagenet_embedding_mean": random.normal(size=STYLES),
        },
    )
    save("transformer", {f"state_dict_ghiasi.{k}": v for k, v in reference.random_transformer(z=STYLES).items()})
    save(
        "stylepredictor", {f"state_dict_stylepredictor.{k}": v for k, v in reference.random_predictor(z=STYLES).items()}
    )
    return tmp_path


@pytest.mark.parametrize("base", ["mean", "predictor"])
def test_a_network_draws_the_changed_rows_as_numpy_does(checkpoints, base):
    x = pictures(4, height=48, width=44)
    options = {"form": "network", "alpha": 0.6, "ratio": "1:1"}
    network = {"weights": str(checkpoints), "base": base, "precision": "float32"}
    module = features.made("style", **options, network=network).batch_changes["style"]
    got = np.asarray(restyle(module, x, jnp.ones(4, bool), jax.random.key(1), 0), np.float64)
    np.testing.assert_array_equal(got[1::2], x[1::2])
    styles = {
        k: np.float64(v).reshape(-1, STYLES) for k, v in np.load(checkpoints / "checkpoint_embeddings.npz").items()
    }
    noise = np.float64(jax.random.normal(jax.random.split(jax.random.key(1))[1], (2, STYLES)))
    factor = module.network.factor.astype(np.float64)
    np.testing.assert_allclose(factor @ factor.T, styles["pbn_embedding_covariance"], atol=1e-5)
    rows = np.asarray(x, np.float64)[::2] / 255
    predictor, transformer = (reference.random_predictor(z=STYLES), reference.random_transformer(z=STYLES))
    own = styles["imagenet_embedding_mean"] if base == "mean" else reference.predict(predictor, rows, reference.Numpy())
    z = 0.6 * (styles["pbn_embedding_mean"] + noise @ factor.T) + 0.4 * own
    want = 255 * np.transpose(reference.transform(transformer, rows, z, reference.Numpy()), (0, 2, 3, 1))
    assert np.abs(got[::2] - want).max() < 0.51


def test_a_network_in_bfloat16_is_close_and_no_gradient_reaches_it(checkpoints):
    x = pictures(4, height=16, width=16).astype(jnp.float32)
    make = lambda precision: LoadedStyleNetwork(StyleNetwork(weights=str(checkpoints), precision=precision))  # noqa: E731
    strength, key = jnp.full((4, 1), 0.5), jax.random.key(0)
    whole, half = (jax.jit(make(precision))(x, strength, key) for precision in ("float32", "bfloat16"))
    assert half.dtype == jnp.float32
    assert np.corrcoef(np.ravel(whole), np.ravel(half))[0, 1] > 0.98

    def loss(x):
        return jnp.sum(change_leading_rows(x, 1.0, lambda g, n: 2 * g[:, :n], path="ratio"))

    np.testing.assert_array_equal(jax.grad(loss)(x), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "network"}, r"augment\.style\.form='network': .*need each other"),
        ({"network": {"weights": "."}}, r"augment\.style\.form='statistics': .*need each other"),
        (
            {"form": "network", "network": {"weights": "/nowhere"}},
            r"weights='/nowhere': has no checkpoint_embeddings\.pth",
        ),
        ({"form": "network", "network": {"weight": "x"}}, r"augment\.style\.network\.weight='x': unknown key"),
    ],
)
def test_a_network_that_is_not_there_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        features.made("style", **options)


def test_weights_of_something_else_are_named(checkpoints):
    config = StyleNetwork(weights=str(checkpoints), base="predictor")
    np.savez(checkpoints / "checkpoint_stylepredictor.npz", **reference.random_predictor(z=STYLES + 1))
    with pytest.raises(ConfigError, match=r"vanish in the predictor, which needs 43; use base='mean'"):
        LoadedStyleNetwork(config)(jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 1)), jax.random.key(0))
    np.savez(checkpoints / "checkpoint_transformer.npz", **reference.random_transformer(z=STYLES + 1))
    with pytest.raises(ConfigError, match=r"not this network's weights"):
        LoadedStyleNetwork(config)
    np.savez(checkpoints / "checkpoint_transformer.npz", weight=np.zeros((2, 2)))
    with pytest.raises(ConfigError, match=r"not this network's weights \('layers\.0\.conv\.weight'\)"):
        LoadedStyleNetwork(config)
    np.savez(checkpoints / "checkpoint_embeddings.npz", mean=np.zeros(3))
    with pytest.raises(ConfigError, match=r"the embeddings have no tensor 'pbn_embedding_mean'"):
        LoadedStyleNetwork(config)
