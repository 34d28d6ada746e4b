"""What all augmentations, and all mixes, have in common: by walking the folder, and against numpy."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.augment.common import base
from mmjax.augment.common.mixing import flipped, mixed_source
from mmjax.augment.common.schedules import Schedule
from mmjax.core import plugins
from mmjax.core.sphere import unit
from mmjax.core.types import Provenance
from mmjax.objectives import contrastive
from mmjax.train.augmentation import Augmentations
from support import features

FOLDER = "mmjax.augment"
CLASSES = {name: plugins.load(FOLDER, name, path="augment").Augmentation for name in plugins.names(FOLDER)}
NAMES = [name for name, cls in CLASSES.items() if issubclass(cls, base.Base)]
FIXED = {"embedding_mixgen"}  # what draws nothing
OPTIONS = {"m2mix": {"modes": ("m2", "vl")}, "lemda": {"z_dim": 3, "layers": 1}}

NOTHING = {  # options with which a view is the clean features
    "cross_swap": {"probability": 0.0},
    "embedding_mixgen": {"fraction": 0.0},
    "latent_noise": {"strength": 0.0},
    "lemda": {"z_dim": 3, "layers": 1},
    "m2mix": {"alpha": 0.0, "modes": ("v", "l", "vl")},
    "mixup": {"alpha": 0.0},
    "multimix": {"alpha": 0.0},
}


def start(augmentations):
    return {name: state.params for name, state in jax.jit(augmentations.init_states)().items()}


@functools.cache
def clean():
    """Value and gradients of the objective itself, by head and features."""
    pooled = features.features()

    def loss(params, image, text):
        rows = [unit(x @ params[side]) for x, side in ((image, "visual"), (text, "text"))]
        sources = {"image_source": pooled.image_source, "text_source": pooled.text_source}
        return contrastive.Objective()(*rows, **sources, scale=jnp.exp(params["logit_scale"]))[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return run(features.head_params(), pooled.image, pooled.text)


@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_is_mixed_a_term_is_the_clean_loss_with_its_gradients(name):
    augmentations = features.made(name, **NOTHING[name], weight=0.5)
    args = augmentations, start(augmentations), features.head_params(), features.features()
    _, metrics, (_, *grads) = features.gradients(*args)
    value, want = clean()
    terms = NOTHING[name].get("modes", ("task",))
    for term in terms:
        np.testing.assert_allclose(metrics[f"augment/{name}/{term}"], value, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: close(a, 0.5 * len(terms) * b), tuple(grads), want)


def moving(cls):
    """Every option that is a strength, as a schedule that changes at each step."""
    found = {}
    for option, parameter in inspect.signature(cls.__init__).parameters.items():
        if parameter.annotation == "Strength":
            top = parameter.default or 0.1
            found[option] = {"value": 0.5 * top, "shape": "linear", "final": top, "over": 50}
    return found


@pytest.fixture
def lengths(monkeypatch):
    """Of all rows that an objective is given while it is traced."""
    seen, real = [], contrastive.Objective()

    def objective(image, text, **given):
        seen.extend(jnp.linalg.norm(x, axis=-1) for x in (image, text))
        return real(image, text, **given)

    monkeypatch.setattr(features.contrastive, "Objective", lambda: objective)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_strengths_change_without_another_compilation_draws_are_new_at_each_step_and_rows_are_unit(name, lengths):
    augmentations = features.made(name, **OPTIONS.get(name, {}), **moving(CLASSES[name]))
    at_tap, params, learned, traces = features.fitting(augmentations), features.head_params(), start(augmentations), []

    @jax.jit
    def run(step):
        traces.append(step)
        lengths.clear()
        return *features.added(augmentations, learned, params, at_tap, step=step), list(lengths)

    early, late, again, later = (run(jnp.int32(step)) for step in (3, 60, 60, 61))
    assert len(traces) == 1
    for length in later[2]:
        np.testing.assert_allclose(length, 1, atol=1e-5)
    weight = f"augment/{name}/weight"
    assert early[1][weight] < late[1][weight] == later[1][weight]
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    assert same(late, again)
    assert same(late, later) == (name in FIXED)  # where strengths stand still, all that moves is drawn


class Learner(base.Base):
    """What learns and does nothing else."""

    def __init__(self, *, learning_rate, clip_norm):
        super().__init__(weight=1.0)
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self.value = nnx.Param(jnp.arange(3.0))


def test_each_augmentation_has_an_optimizer_to_itself():
    """Rate, schedule and clipping are its own, and no gradient of another has a say."""
    settings = {"a": (0.1, 0.5), "b": (Schedule(value=1.0, shape="linear", over=4), 2.0)}

    def create():
        return {name: Learner(learning_rate=rate, clip_norm=clip) for name, (rate, clip) in settings.items()}

    augmentations = Augmentations(
        modules=nnx.eval_shape(create), sequence_dropouts={}, create=create, towers=features.TOWERS, seed=0
    )
    update = jax.jit(augmentations.update)
    grads = {"a": {"value": jnp.float32([3.0, 0.0, -4.0])}, "b": {"value": jnp.float32([0.1, 0.2, 0.3])}}
    states = augmentations.init_states()
    others = augmentations.init_states()
    by_hand = {name: (np.arange(3.0), np.zeros(3), np.zeros(3)) for name in settings}
    for step in range(3):
        states, metrics = update(grads, states)
        others, _ = update(grads | {"a": {"value": 1e6 * grads["a"]["value"]}}, others)
        for name, (rate, clip) in settings.items():
            g = np.asarray(grads[name]["value"], np.float64)
            np.testing.assert_allclose(metrics[f"augment/{name}/gradient_norm"], np.linalg.norm(g), rtol=1e-6)
            g = g * min(1, clip / np.linalg.norm(g))
            x, m, v = by_hand[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            now = rate if name == "a" else 1 - step / 4
            x = x - now * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            by_hand[name] = x, m, v
            np.testing.assert_allclose(states[name].params["value"], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(states["b"].params["value"], others["b"].params["value"])


@pytest.mark.parametrize("mix_ratio", [0.5, 0.8, 1.0])
def test_the_loss_of_soft_targets_is_never_below_their_entropy_and_reaches_it(mix_ratio):
    n = 6
    plain = Provenance.from_ids(jnp.arange(n, dtype=jnp.int32))
    mix_ratios = jnp.full((n, 1), mix_ratio, jnp.float32)
    source = mixed_source([(plain, mix_ratios), (jax.tree.map(flipped, plain), 1 - mix_ratios)], "provenance")
    entropy = -sum(p * np.log(p) for p in (mix_ratio, 1 - mix_ratio) if p > 0)
    loss = jax.jit(
        lambda image, text, scale: contrastive.Objective()(
            image, text, image_source=source, text_source=plain, scale=scale
        )[0]
    )
    random = np.random.default_rng(0)
    for spread in (0.1, 1.0, 5.0):
        image, text = (unit(jnp.asarray(random.normal(size=(n, n)), jnp.float32)) for _ in range(2))
        assert loss(image, text, jnp.float32(spread)) > entropy
    # Logits whose softmax is the target: two coordinates far above the rest, apart by the targets' log ratio.
    scale, apart = 60.0, np.log(mix_ratio / (1 - mix_ratio)) / 60 if mix_ratio < 1 else 1.0
    half = np.sqrt(0.5 - apart**2 / 4) if apart < 1 else 0.5
    rows = (half + apart / 2) * np.eye(n) + (half - apart / 2) * np.eye(n)[::-1]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-9)
    best = loss(jnp.asarray(rows, jnp.float32), jnp.eye(n), jnp.float32(scale))
    np.testing.assert_allclose(best, entropy, atol=1e-5)
