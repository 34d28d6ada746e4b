import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.objectives import contrastive, sigmoid
from mmjax.objectives.common.targets import source_mass
from support import objectives_reference as reference
from support.objective_problems import computed, problem

OBJECTIVES = {"contrastive": contrastive.Objective(), "sigmoid": sigmoid.Objective()}


def expected(name, problem_):
    image, text, (ii, iw), (ti, tw), scale, bias = problem_
    mass = reference.source_mass(ii, iw.astype(np.float64), ti, tw.astype(np.float64))
    return getattr(reference, name)(image, text, mass, ii[:, 0] >= 0, ti[:, 0] >= 0, scale, bias)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradients_equal_the_reference(name, seed):
    p = problem(seed)
    image, text, *_, scale, bias = p
    value, by_logit, logits = expected(name, p)
    got, (d_image, d_text, d_scale, d_bias) = computed(OBJECTIVES[name], p)
    np.testing.assert_allclose(got, value, rtol=2e-6)
    np.testing.assert_allclose(d_image, scale * by_logit @ text, atol=2e-6)
    np.testing.assert_allclose(d_text, scale * by_logit.T @ image, atol=2e-6)
    np.testing.assert_allclose(d_scale, (by_logit * (logits - bias) / scale).sum(), atol=2e-6)
    np.testing.assert_allclose(d_bias, by_logit.sum(), atol=2e-6)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20)
def test_source_mass_equals_brute_force(seed, k, m):
    rng = np.random.default_rng(seed)
    ii, ti = rng.integers(-1, 4, (5, k)).astype(np.int32), rng.integers(-1, 4, (7, m)).astype(np.int32)
    iw, tw = rng.random((5, k)).astype(np.float32), rng.random((7, m)).astype(np.float32)
    got = source_mass(Provenance(ids=ii, weight=iw), Provenance(ids=ti, weight=tw))
    np.testing.assert_allclose(got, reference.source_mass(ii, iw, ti, tw), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_changes_nothing(name):
    p = problem(7, padding=False)
    image, text, (ii, iw), (ti, tw), scale, bias = p
    pad = lambda z, value: np.concatenate([z, np.full((3, *z.shape[1:]), value, z.dtype)])  # noqa: E731
    padded = (pad(image, 0.7), pad(text, -0.4), (pad(ii, -1), pad(iw, 0)), (pad(ti, -1), pad(tw, 0)), scale, bias)
    value, grads = computed(OBJECTIVES[name], p)
    value_padded, grads_padded = computed(OBJECTIVES[name], padded)
    np.testing.assert_allclose(value_padded, value, rtol=1e-6)
    for a, b in zip(grads_padded[:2], grads[:2], strict=True):
        np.testing.assert_allclose(a[: len(b)], b, atol=1e-7)
        np.testing.assert_array_equal(a[len(b) :], 0)


def clean(n):
    return Provenance.from_ids(jnp.arange(n, dtype=jnp.int32))


def test_clean_pairs_give_clip_and_chance_is_log_of_the_batch():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 8, 4)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    logits = 10 * z[0].astype(np.float64) @ z[1].T
    log_softmax = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))  # noqa: E731
    clip = -0.5 * (np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean())
    value, _ = OBJECTIVES["contrastive"](
        z[0], z[1], image_source=clean(8), text_source=clean(8), scale=jnp.float32(10), bias=None
    )
    np.testing.assert_allclose(value, clip, rtol=1e-6)
    same = jnp.ones((8, 4)) / 2
    value, metrics = OBJECTIVES["contrastive"](
        same, same, image_source=clean(8), text_source=clean(8), scale=jnp.float32(10)
    )
    np.testing.assert_allclose(value, np.log(8), rtol=1e-6)
    assert metrics["image_to_text_accuracy"] == 1  # all tie; a tie in the batch is not a miss


def test_a_negative_row_raises_the_images_loss_and_has_none_of_its_own():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(9, 4)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    image, text = z[:4], z[4:8]
    ids = np.append(np.arange(4), 0).astype(np.int32)[:, None]
    with_negative = Provenance(ids=ids, weight=np.array([[1], [1], [1], [1], [0]], np.float32))
    call = lambda text, source: OBJECTIVES["contrastive"](  # noqa: E731
        image, text, image_source=clean(4), text_source=source, scale=jnp.float32(5)
    )[0]
    plain, more = call(text, clean(4)), call(z[4:9], with_negative)
    logits = 5 * image.astype(np.float64) @ z[4:9].T
    rows = np.log(np.exp(logits).sum(1)) - np.log(np.exp(logits[:, :4]).sum(1))
    np.testing.assert_allclose(more - plain, 0.5 * rows.mean(), rtol=1e-4)


def test_identity_labelling_ignores_what_was_mixed_in():
    source = Provenance(ids=jnp.array([[0, 1], [1, 0]], jnp.int32), weight=jnp.full((2, 2), 0.5))
    z = jnp.eye(2)
    mixed = contrastive.Objective(targets="provenance")
    identity = contrastive.Objective(targets="identity")
    call = lambda objective: objective(z, z, image_source=source, text_source=source, scale=jnp.float32(4))[0]  # noqa: E731
    clip = OBJECTIVES["contrastive"](z, z, image_source=clean(2), text_source=clean(2), scale=jnp.float32(4))[0]
    np.testing.assert_allclose(call(identity), clip, rtol=1e-6)
    np.testing.assert_allclose(call(mixed), clip + 2.0, rtol=1e-6)  # half of each target lies on the wrong column


def test_sigmoid_without_bias_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"model\.init_logit_bias"):
        sigmoid.Objective()(
            jnp.eye(2), jnp.eye(2), image_source=clean(2), text_source=clean(2), scale=jnp.float32(1), bias=None
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_without_any_positive_give_finite_loss_and_gradients(name):
    p = problem(3)
    image, text, (ii, iw), (ti, tw), scale, bias = p
    nobody = (image, text, (ii, 0 * iw), (ti, 0 * tw), scale, bias)
    value, grads = computed(OBJECTIVES[name], nobody)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
    if name == "contrastive":
        assert value == 0
    value, grads = computed(OBJECTIVES[name], (image, text, (0 * ii - 1, 0 * iw), (0 * ti - 1, 0 * tw), scale, bias))
    assert value == 0 and not any(np.any(g) for g in grads)


class TestMaskPartners:
    """Rows 0 and 1 are mixed with rows 2 and 3, as MixGen leaves them."""

    IDS = np.array([[0, 2], [1, 3], [2, -1], [3, -1], [4, -1]], np.int32)
    WEIGHT = np.array([[0, 1], [0.5, 0.5], [1, 0], [1, 0], [1, 0]], np.float32)  # row 0 is its partner in all but name
    PARTNERS = ((0, 2), (2, 0), (1, 3), (3, 1))

    def problem(self):
        image, text, *_, scale, bias = problem(3, n=5, m=5, padding=False)
        return image, text, (self.IDS, self.WEIGHT), (self.IDS, self.WEIGHT), scale, bias

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_the_papers_labels_without_the_pairs_that_share_an_original(self, name):
        p = self.problem()
        image, text, *_, scale, bias = p
        logits = scale * image @ text.T + bias
        keep = np.ones((5, 5), bool)
        keep[tuple(zip(*self.PARTNERS, strict=True))] = False
        module = {"contrastive": contrastive, "sigmoid": sigmoid}[name]
        if name == "contrastive":
            masked = np.where(keep, logits, -np.inf)
            rows = np.log(np.exp(masked).sum(1)) - np.diag(logits)
            columns = np.log(np.exp(masked).sum(0)) - np.diag(logits)
            value = (rows.mean() + columns.mean()) / 2
        else:
            sign = 2 * np.eye(5) - 1
            value = (np.log1p(np.exp(-sign * logits)) * keep).sum() / 5
        masking = module.Objective(targets="identity", mask_partners=True)
        got, gradients = computed(masking, p)
        np.testing.assert_allclose(got, value, rtol=2e-6)
        assert all(np.isfinite(g).all() for g in gradients)
        plain, _ = computed(module.Objective(targets="identity"), p)
        assert plain > got * 1.001

    @pytest.mark.parametrize("module", [contrastive, sigmoid])
    def test_with_provenance_targets_it_is_refused(self, module):
        with pytest.raises(ConfigError, match=r"mask_partners=True.*identity"):
            module.Objective(mask_partners=True)
