"""The caption loss against its float64 form, which captions count, and what cannot be trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.models.joint_config import DecoderConfig
from mmjax.objectives.caption import Objective
from mmjax.objectives.common.tower_tokens import TowerTokens
from mmjax.train.program import check_modules
from support import clip_models, decoder_reference
from support.clip_models import BOS, EOS, PAD, TOKENS

EXAMPLES, PER = 3, 2
IDS = np.concatenate([TOKENS, [[BOS, 5, 5, 2, 2, 9, 1], [BOS, 4, EOS, PAD, PAD, PAD, PAD]]]).astype(np.int32)
VALID = np.cumsum(np.cumsum(IDS == EOS, axis=1), axis=1) < 2

IMAGE = Provenance(ids=jnp.array([[0, 1], [1, 2], [2, -1]]), weight=jnp.array([[0.7, 0.3], [0.5, 0.5], [1, 0]]))
TEXT = Provenance(
    # One caption of a mixed image, the same mix (MixGen), a hard negative, padding.
    ids=jnp.array([[0, -1], [1, -1], [1, 2], [2, -1], [2, -1], [-1, -1]]),
    weight=jnp.array([[1, 0], [1, 0], [0.5, 0.5], [0, 0], [1, 0], [0, 0]]),
)
WEIGHTS = {"weigh": [0.7, 0.3, 1, 0, 1, 0], "leave_out": [0, 0, 0, 0, 1, 0]}
BLENDED = [0.7, 0.3, 0, 0, 1, 0]

CASES = {
    "coca": ({}, {}),
    "cappa": ({"inputs": "ids", "cross_mlp": False, "mask_token": True}, {"parallel_fraction": 0.5, "mean": "caption"}),
    "prefix": ({"inputs": "ids", "attend": "prefix"}, {"label_smoothing": 0.1}),
}  # fmt: skip


@functools.cache
def prepared(name):
    decoder, options = CASES[name]
    decoder = DecoderConfig(**{"width": 8, "heads": 2, "layers": 1} | decoder)
    config = clip_models.config({"layers": 1}, {"layers": 1}, decoder=decoder, scan=False, remat="none")
    graph, shapes = clip_models.split(config)
    return (
        config,
        graph,
        clip_models.random_params(shapes),
        clip_models.images(config, n=EXAMPLES),
        Objective(**options),
    )


def tower_tokens(model, images, *, blended=False):
    read = lambda x: jax.tree.map(jnp.asarray, x)  # noqa: E731
    return TowerTokens(
        image=model.visual.run(model.visual.embed(images), with_sequence=True).sequence,
        text=model.text.run(model.text.embed(IDS), jnp.asarray(IDS), with_sequence=True).sequence,
        ids=read(IDS),
        valid=read(VALID),
        blended=blended,
        examples=EXAMPLES,
        model=model,
        map=lambda f, rows: f(model, rows),
        key=jax.random.key(3),
    )


def reference(params, name, weights):
    """The loss in float64, of flat parameters."""
    config, _, _, images, objective = prepared(name)
    repeated = {name: np.repeat(x, PER, axis=0) for name, x in images.items()}
    parallel = None
    if objective.parallel_fraction:
        parallel = np.asarray(jax.random.bernoulli(jax.random.key(3), objective.parallel_fraction, (len(IDS),)))
        assert 0 < sum(parallel) < len(IDS)
    logits = decoder_reference.all_logits(params, repeated, IDS, config=config, parallel=parallel)
    options = {"smoothing": objective.label_smoothing, "mean": objective.mean}
    return decoder_reference.caption_loss(logits, IDS, weights, eos_id=EOS, **options)


@pytest.mark.parametrize("name", ["cappa", *(pytest.param(n, marks=pytest.mark.slow) for n in ("coca", "prefix"))])
def test_loss_and_gradients_are_those_of_the_reference(name):
    _, graph, params, images, objective = prepared(name)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def compute(params):
        tokens = tower_tokens(clip_models.model(graph, params), images)
        return objective.caption_loss(tokens, image_source=IMAGE, text_source=TEXT)

    (value, _), gradient = compute(params)
    double, slopes = clip_models.double(params), clip_models.double(gradient)
    np.testing.assert_allclose(value, reference(double, name, WEIGHTS["weigh"]), rtol=1e-5)
    # Along the gradient, whose slope is its norm, and along a direction in which every parameter changes.
    norm = np.sqrt(sum(np.sum(x**2) for x in slopes.values()))
    random = np.random.default_rng(0)
    for direction in (slopes, {k: random.choice([-0.1, 0.1], np.shape(x)) for k, x in slopes.items()}):
        step = 1e-6 / np.sqrt(sum(np.sum(x**2) for x in direction.values()))
        ahead, behind = (
            reference({k: x + sign * step * direction[k] for k, x in double.items()}, name, WEIGHTS["weigh"])
            for sign in (1, -1)
        )
        slope = sum(np.sum(slopes[k] * direction[k]) for k in slopes)
        length = np.sqrt(sum(np.sum(x**2) for x in direction.values()))
        assert abs((ahead - behind) / (2 * step) - slope) <= 1e-5 * norm * length


def loss_of(objective, *, weights=None, blended=False):
    """Of words that all cost the same but for their text, so that the loss shows which texts count."""

    class Model:
        class decoder:
            first, remat = 0, "none"

            def __new__(cls, image, text, ids, parallel):
                return jax.nn.one_hot(ids, 20) * text[:, :1, :1]

            logits = staticmethod(lambda hidden: hidden)

    sharpness = jnp.arange(6.0)[:, None, None]
    tokens = TowerTokens(
        image=jnp.zeros((3, 1, 1)), text=sharpness, ids=jnp.asarray(IDS), valid=jnp.asarray(VALID), blended=blended,
        examples=3, model=None, map=lambda f, rows: f(Model, rows), key=jax.random.key(0),
    )  # fmt: skip
    return objective.caption_loss(tokens, image_source=IMAGE, text_source=TEXT)[0]


@pytest.mark.parametrize(
    ("options", "blended", "weights"),
    [
        ({}, False, WEIGHTS["weigh"]),
        ({"mixed": "leave_out"}, False, WEIGHTS["leave_out"]),
        ({}, True, BLENDED),
        ({"targets": "identity"}, False, [1, 0, 1, 0, 1, 0]),
    ],
)
def test_captions_count_by_what_they_have_in_common_with_the_image(options, blended, weights):
    cost = np.log(np.exp(np.arange(6.0)) + 19) - np.arange(6)
    for mean, count in (("token", VALID.sum(1)), ("caption", np.ones(6))):
        expected = np.sum(np.array(weights) * count * cost) / np.sum(np.array(weights) * count)
        np.testing.assert_allclose(loss_of(Objective(mean=mean, **options), blended=blended), expected, rtol=1e-5)


def test_views_without_tokens_have_the_contrastive_loss_alone():
    rows, source = jnp.eye(4), Provenance.from_ids(jnp.arange(4))
    objective = Objective(contrastive_weight=3.0)
    value, metrics = objective(rows, rows, image_source=source, text_source=source, scale=jnp.float32(1), tokens=None)
    np.testing.assert_allclose(value, 3 * metrics["contrastive_loss"], rtol=1e-6)
    assert "caption_loss" not in metrics and value > 0


def test_models_that_cannot_be_trained_so_are_named():
    with pytest.raises(ConfigError, match=r"objective\.name='caption': runs model\.decoder, and the model has none"):
        check_modules(Objective(), clip_models.config(), name="caption")
    config = clip_models.config(decoder=DecoderConfig(width=8, heads=2))
    with pytest.raises(ConfigError, match=r"objective\.parallel_fraction=0\.5: needs model\.decoder\.mask_token=True"):
        check_modules(Objective(parallel_fraction=0.5), config, name="caption")
    with pytest.raises(ConfigError, match=r"augment\.token_dropout: the decoder would learn captions with words"):
        check_modules(Objective(), config, name="caption", augment=["token_dropout"])
    check_modules(Objective(), config, name="caption", augment=["patch_dropout"])
    with pytest.raises(ConfigError, match=r"objective\.caption_weight=0: nothing is left to train"):
        Objective(caption_weight=0, contrastive_weight=0)
