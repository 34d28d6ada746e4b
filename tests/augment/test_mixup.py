import numpy as np
import pytest

from support import features
from support import objectives_reference as reference


def term(**options):
    augmentations = features.made("mixup", **options)
    pooled, params = features.features(3), features.head_params()
    _, metrics = features.added(augmentations, {}, params, pooled)
    return {m.removeprefix("augment/mixup/"): float(v) for m, v in metrics.items()}, pooled, params


@pytest.mark.parametrize("sides", ["both", "image", "text"])
@pytest.mark.parametrize("tap", ["pooled", "embedding"])
@pytest.mark.parametrize("targets", ["provenance", "identity"])
def test_the_term_is_the_soft_cross_entropy_of_the_mix(sides, tap, targets):
    metrics, pooled, params = term(sides=sides, tap=tap, targets=targets, draw="batch")
    mix_ratio = metrics["mix_ratio_mean"]
    rows = {}
    mix = {True: mix_ratio * np.eye(8) + (1 - mix_ratio) * np.eye(8)[::-1], False: np.eye(8)}
    label = mix if targets == "provenance" else {True: np.eye(8), False: np.eye(8)}
    for side, kernel in (("image", "visual"), ("text", "text")):
        x = np.asarray(getattr(pooled, side), np.float64)
        z = mix[sides in (side, "both")] @ x @ np.asarray(params[kernel], np.float64)  # linear: both taps agree
        rows[side] = z / np.linalg.norm(z, axis=1, keepdims=True)
    target = label[sides in ("image", "both")] @ label[sides in ("text", "both")].T
    valid = np.ones(8, bool)
    scale = np.exp(np.float64(params["logit_scale"]))
    want, *_ = reference.contrastive(rows["image"], rows["text"], target, valid, valid, scale)
    np.testing.assert_allclose(metrics["task"], want, rtol=1e-5)
    assert 0.02 < mix_ratio < 0.98


def test_without_mixing_it_is_the_clean_loss():
    metrics, *_ = term(alpha=0.0)
    np.testing.assert_allclose(metrics["task_gap"], 0, atol=1e-6)
    assert metrics["mix_ratio_mean"] == 1


def test_mix_ratios_differ_between_rows_where_asked():
    assert term(draw="row")[0]["mix_ratio_sd"] > 0.05
    assert term(draw="batch")[0]["mix_ratio_sd"] < 1e-6
