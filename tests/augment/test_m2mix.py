import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.base import Similarity
from mmjax.augment.m2mix import mixed_negatives_loss
from mmjax.core.config import ConfigError
from mmjax.core.sphere import slerp, unit
from support import features
from support import objectives_reference as reference

SIMILARITY = Similarity(scale=jnp.float32(4), bias=jnp.float32(-9))  # the bias changes nothing


def rows(seed, n=6, d=5):
    z = np.random.default_rng(seed).normal(size=(n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def arc(a, b, mix_ratio):
    angle = np.arccos(np.sum(a * b, axis=1, keepdims=True))
    return (np.sin(mix_ratio * angle) * a + np.sin((1 - mix_ratio) * angle) * b) / np.sin(angle)


def m2(image, text, mix_ratio, scale):
    """The paper's equation, query by query."""
    mixed, total = arc(image, text, mix_ratio), 0.0
    for queries, keys in ((image, text), (text, image)):
        for i in range(len(queries)):
            logits = scale * mixed @ queries[i]
            logits[i] = scale * queries[i] @ keys[i]
            total += (np.log(np.exp(logits).sum()) - logits[i]) / len(queries)
    return total


def pairs_of(image, text, ids=None):
    base = features.features(n=len(image))
    pairs = features.replaced(base, jnp.float32(image), jnp.float32(text))
    if ids is not None:
        source = type(base.image_source).from_ids(jnp.asarray(ids, jnp.int32))
        pairs = type(pairs)(
            image=pairs.image, text=pairs.text, image_source=source, text_source=source, examples=len(ids)
        )
    return pairs


@pytest.mark.parametrize("mix_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("targets", ["provenance", "identity"])
def test_the_loss_of_m2_is_the_papers(mix_ratio, targets):
    image, text = rows(0), rows(1)
    pairs = pairs_of(image, text)
    mixed = slerp(pairs.image, pairs.text, jnp.float32(mix_ratio))
    got = mixed_negatives_loss(pairs, mixed, similarity=SIMILARITY, targets=targets)
    np.testing.assert_allclose(got, m2(image, text, mix_ratio, 4.0), rtol=1e-5)


def test_examples_that_come_twice_are_no_negatives_unless_the_paper_says_so():
    image, text = rows(2), rows(3)
    image[1], text[1] = image[0], text[0]
    pairs = pairs_of(image, text, ids=[7, 7, 2, 3, 4, 5])
    mixed = slerp(pairs.image, pairs.text, jnp.float32(0.5))
    call = lambda targets: float(mixed_negatives_loss(pairs, mixed, similarity=SIMILARITY, targets=targets))  # noqa: E731
    np.testing.assert_allclose(call("identity"), m2(image, text, 0.5, 4.0), rtol=1e-5)
    assert call("provenance") < call("identity")


def test_padding_is_neither_query_nor_negative():
    image, text = rows(4), rows(5)
    whole, padded = pairs_of(image[:4], text[:4]), pairs_of(image, text, ids=[0, 1, 2, 3, -1, -1])
    results = [
        mixed_negatives_loss(
            p,
            slerp(p.image, p.text, jnp.float32(0.4)),
            similarity=Similarity(scale=jnp.float32(3)),
            targets="provenance",
        )
        for p in (whole, padded)
    ]
    np.testing.assert_allclose(*results, rtol=1e-6)


def metrics_of(**options):
    augmentations = features.made("m2mix", **options)
    pooled, params = features.features(3), features.head_params()
    _, metrics = features.added(augmentations, {}, params, pooled)
    x = {
        "image": np.asarray(pooled.image, np.float64) @ np.asarray(params["visual"], np.float64),
        "text": np.asarray(pooled.text, np.float64) @ np.asarray(params["text"], np.float64),
    }
    x = {side: z / np.linalg.norm(z, axis=1, keepdims=True) for side, z in x.items()}
    scale = np.exp(np.float64(params["logit_scale"]))
    return {m.removeprefix("augment/m2mix/"): float(v) for m, v in metrics.items()}, x, scale


@pytest.mark.parametrize("targets", ["provenance", "identity"])
def test_each_mode_has_its_mixes_and_targets(targets):
    metrics, x, scale = metrics_of(modes=("m2", "v", "l", "vl"), targets=targets)
    eye, partner, valid = np.eye(8), np.eye(8)[::-1], np.ones(8, bool)
    loss = lambda image, text, mass: reference.contrastive(image, text, mass, valid, valid, scale)[0]  # noqa: E731
    mixed = lambda side, mix_ratio: arc(x[side], x[side][::-1], mix_ratio)  # noqa: E731
    for_v, for_l, for_vl = (metrics[f"{mode}_mix_ratio_mean"] for mode in ("v", "l", "vl"))
    assert len({for_v, for_l, for_vl, metrics["mix_ratio_mean"]}) == 4
    soft = lambda mix_ratio: mix_ratio * eye + (1 - mix_ratio) * partner  # noqa: E731
    np.testing.assert_allclose(metrics["v"], loss(mixed("image", for_v), x["text"], soft(for_v)), rtol=1e-5)
    np.testing.assert_allclose(metrics["l"], loss(x["image"], mixed("text", for_l), soft(for_l).T), rtol=1e-5)
    both = soft(for_vl) @ soft(for_vl).T if targets == "provenance" else eye + partner
    np.testing.assert_allclose(metrics["vl"], loss(mixed("image", for_vl), mixed("text", for_vl), both), rtol=1e-5)
    np.testing.assert_allclose(metrics["m2"], m2(x["image"], x["text"], metrics["mix_ratio_mean"], scale), rtol=1e-5)


def test_the_modes_add_up_and_the_temperature_is_m2s_own():
    augmentations = features.made("m2mix", modes=("m2", "v"), weight=0.5)
    value, metrics = features.added(augmentations, {}, features.head_params(), features.features())
    np.testing.assert_allclose(value, 0.5 * (metrics["augment/m2mix/m2"] + metrics["augment/m2mix/v"]), rtol=1e-6)
    metrics, x, _ = metrics_of(temperature=0.07)
    want = m2(x["image"], x["text"], metrics["mix_ratio_mean"], 1 / 0.07)
    np.testing.assert_allclose(metrics["m2"], want, rtol=1e-4)


def test_gradients_flow_into_the_mixes_or_not():
    pooled, params = features.features(), features.head_params()
    grads = {
        kind: features.gradients(features.made("m2mix", negatives=kind), {}, params, pooled)[2]
        for kind in ("trained", "stop_gradient")
    }
    assert not np.allclose(grads["trained"][2], grads["stop_gradient"][2])
    assert np.any(grads["stop_gradient"][2])

    def stopped(image, text, mix_ratio):
        pairs = features.replaced(pooled.pairs(), unit(image @ params["visual"]), unit(text @ params["text"]))
        fixed = jax.lax.stop_gradient(slerp(pairs.image, pairs.text, mix_ratio))
        return 0.01 * mixed_negatives_loss(
            pairs, fixed, similarity=Similarity(scale=jnp.exp(params["logit_scale"])), targets="provenance"
        )

    metrics = features.gradients(features.made("m2mix"), {}, params, pooled)[1]
    want = jax.grad(stopped)(pooled.image, pooled.text, metrics["augment/m2mix/mix_ratio_mean"])
    np.testing.assert_allclose(grads["stop_gradient"][2], want, rtol=1e-3, atol=1e-7)


def test_modes_are_named_once():
    for modes in ((), ("v", "v")):
        with pytest.raises(ConfigError, match=r"augment\.m2mix\.modes"):
            features.made("m2mix", modes=modes)
    with pytest.raises(ConfigError, match=r"augment\.m2mix\.modes\[0\]='vv'"):
        features.made("m2mix", modes=("vv",))
