"""The tower of sequences: what stands in padding changes nothing, at its start and where views enter it."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.augment import mixup, tmmda, xmda
from mmjax.augment.common.alignment import ctc_path, ctc_positions
from mmjax.augment.common.base import Similarity, TokenMask
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.core.types import Batch, Provenance
from mmjax.data.sequences.frames import pad
from mmjax.experiment import DataConfig
from mmjax.train.augmentation import Augmentations
from mmjax.train.forward import embed_views, make_tower_info, run_clean
from mmjax.train.micro_batches import MicroBatches
from mmjax.train.setup import fit_model
from support import clip_models
from support.clip_models import TOKENS
from support.ctc_reference import forward_backward

LENGTHS, MOST, FEATURES = (1, 4, 6, 3), 6, 3
FRAMES = {
    "stem": "frames", "max_frames": MOST, "pool_type": "avg", "class_token": False, "modalities": ("signs",),
    "modality_channels": (FEATURES,),
}  # fmt: skip
CONFIG = clip_models.config(vision=FRAMES)
TOWERS = make_tower_info(CONFIG)


def batch(*, padding=0.0):
    random = np.random.default_rng(3)
    rows = np.stack([pad(random.normal(size=(n, FEATURES)), MOST) for n in LENGTHS])
    rows[..., :-1] = np.where(rows[..., -1:] > 0, rows[..., :-1], padding)
    source = Provenance.from_ids(jnp.arange(4))
    return Batch(images={"signs": jnp.asarray(rows)}, tokens=TOKENS, image_source=source, text_source=source)


@functools.cache
def ready():
    graph, shapes = clip_models.split(CONFIG)
    return graph, clip_models.random_params(shapes)


@functools.cache
def augmentation(case):
    """One of five, and its tap."""
    make = {"towers": TOWERS, "rngs": nnx.Rngs(0)}
    return [
        lambda: mixup.Augmentation(towers=TOWERS, tap="input"),
        lambda: mixup.Augmentation(towers=TOWERS, tap="tokens@1"),
        lambda: tmmda.Augmentation(**make, tap="tokens@-1", heads=2),
        lambda: xmda.Augmentation(**make, tap="tokens@0", sides="both", alignment="transport", keep=0.3),
        lambda: xmda.Augmentation(**make, tap="tokens@1", alignment="ctc", keep=0.3),
    ][case]()


@functools.cache
def compiled(case, micro_batches=1):
    """Of a batch all that an augmentation makes: embeddings of clean rows and views, terms, and metrics.

    With them, the clean features at its tap and its first view of the images there.
    """
    graph, params = ready()
    module = augmentation(case)

    @jax.jit
    def run(data):
        model = clip_models.model(graph, params)
        split = MicroBatches(number=micro_batches)
        taps = run_clean(model, data, towers=TOWERS, taps=[module.tap], micro_batches=split, with_sequence=True)
        pooled = taps["pooled"]
        image, text = model.visual.project(pooled.image), model.text.project(pooled.text)
        taps["embedding"] = clean = dataclasses.replace(pooled, image=image, text=text)
        made = module.augment(taps[module.tap], key=jax.random.key(0), step=jnp.int32(0))
        entering = [(module.tap, view) for view in made.views]
        views = embed_views(entering, models={"trained": model}, taps=taps, towers=TOWERS, micro_batches=split)
        rows = [view.embeddings for view in views]
        similarity = Similarity(scale=jnp.float32(3.0))
        options = {"similarity": similarity, "key": jax.random.key(1), "step": jnp.int32(0)}
        terms, metrics = module.compare(clean.to_unit(), rows, **options)
        result = unit(image), [(r.image, r.text) for r in rows], made.terms, made.metrics, terms, metrics
        return result, (taps[module.tap].image, made.views[0].image)

    return run


def test_a_sequence_is_embedded_as_without_its_padding():
    graph, params = ready()

    @jax.jit
    def embed(images):
        visual = clip_models.model(graph, params).visual
        tokens = visual.embed(images)
        # Without a mask: there is no padding left.
        alone = [visual.project(visual.pool(tokens[i : i + 1, :n]))[0] for i, n in enumerate(LENGTHS)]
        return visual(images), alone

    whole, alone = embed(batch().images)
    np.testing.assert_allclose(whole, alone, atol=2e-6)


@pytest.mark.parametrize("case", range(5))
def test_what_stands_in_padding_changes_no_view_and_no_term(case):
    plain = jax.tree.leaves(compiled(case)(batch())[0])
    for other in (batch(padding=7.0), batch(padding=np.nan)):
        for a, b in zip(plain, jax.tree.leaves(compiled(case)(other)[0]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(x).all() for x in plain)


def test_gradients_of_sequences_are_finite_and_none_reaches_padding():
    graph, params = ready()

    @jax.jit
    @jax.grad
    def slope(rows):
        return jnp.sum(unit(clip_models.model(graph, params).encode_image({"signs": rows})) @ jnp.arange(6.0))

    rows = batch(padding=np.nan).images["signs"]
    gradient = np.asarray(slope(rows))
    mask = np.asarray(rows[..., -1] > 0)
    assert np.isfinite(gradient).all()
    assert not gradient[~mask].any()
    assert (gradient[mask][:, :-1] != 0).any(axis=1).all()


def test_micro_batches_change_no_view_of_sequences():
    whole, parts = (compiled(1, micro_batches=n)(batch())[0] for n in (1, 2))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mix_has_the_frames_of_both_and_at_ratio_one_its_own():
    mask = jnp.asarray(np.arange(MOST) < np.array(LENGTHS)[:, None])
    ratio = jnp.array([[0.5], [1.0], [0.0], [0.25]])
    mixed = np.asarray(mixup.mixed_mask(mask, ratio))
    assert mixed.sum(axis=1).tolist() == [3, 4, 6, 3]  # rows 0 and 3 are partners; row 1 keeps what it has


def test_a_mix_is_pooled_over_the_frames_that_either_has():
    graph, params = ready()
    data = batch()
    mask = np.asarray(data.images["signs"][..., -1] > 0)

    @jax.jit
    def embed(tokens):
        visual = clip_models.model(graph, params).visual
        return unit(visual.project(visual.pool(tokens, start=1, valid=mask | mask[::-1])))

    (_, [(image, _)], *_), (_, mixed) = compiled(1)(data)
    np.testing.assert_allclose(image, embed(mixed), atol=1e-6)


def test_foreign_tokens_of_tmmda_are_never_padding_and_land_on_frames_alone():
    data = batch()
    clean, mixed = compiled(2)(data)[1]
    changed = np.asarray(jnp.any(mixed != clean, axis=-1))
    np.testing.assert_array_equal(changed, np.asarray(data.images["signs"][..., -1] > 0))


find_path, find_places = jax.jit(ctc_path, static_argnames="blank"), jax.jit(ctc_positions)


@pytest.mark.parametrize("frames", [3, 4, 5])
def test_the_path_of_a_padded_sequence_is_that_of_the_sequence(frames):
    random = np.random.default_rng(frames)
    logits = random.normal(size=(5, 7, 4)).astype(np.float32)
    logs = jax.nn.log_softmax(logits)
    labels = jnp.asarray([[0, 1, 2], [1, 1, 0], [2, 0, 0], [0, 0, 0], [2, 1, 0]])
    valid = jnp.asarray([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], bool)
    mask = jnp.tile(jnp.arange(7) < frames, (5, 1))
    path, feasible = find_path(logs, labels, valid, blank=3, frames=mask)
    alone, possible = find_path(logs[:, :frames], labels, valid, blank=3)
    np.testing.assert_array_equal(feasible, possible)
    spelled = np.asarray(feasible)
    np.testing.assert_array_equal(path[spelled, :frames], alone[spelled])
    places = find_places(path)[spelled, :frames]
    np.testing.assert_array_equal(places, find_places(alone)[spelled])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool_type": "map"}, "vision_cfg.pool_type='map': must be 'avg' with"),
        ({"class_token": True}, "vision_cfg.class_token=True: must be False"),
        ({"modalities": ("a", "b"), "modality_channels": (3, 3)}, "takes one; leave one"),
        ({"stem": "patch"}, "vision_cfg.max_frames=6: is for sequences, and model.vision_cfg.stem='patch' takes"),
    ],
)
def test_what_pictures_or_sequences_alone_have_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        clip_models.config(vision=FRAMES | change)


def test_a_batch_of_another_length_is_named():
    graph, params = ready()
    with pytest.raises(ValueError, match=r"shape \(2, 5, 4\): expected \[N, 6, 4\]"):
        clip_models.model(graph, params).encode_image({"signs": np.zeros((2, 5, 4), np.float32)})


def test_the_ctc_loss_and_alignment_of_padded_sequences_are_those_of_the_sequences():
    random = np.random.default_rng(8)
    lengths = np.array([9, 5, 7])
    logits = random.normal(0, 2, (3, 9, clip_models.VOCAB + 1))
    mask = np.arange(9) < lengths[:, None]
    words = [[3, 9, 2, 4, 5], [8], [1, 1, 6]]
    ids = np.array([[clip_models.BOS, *w, clip_models.EOS, *[clip_models.PAD] * (5 - len(w))] for w in words])

    @jax.jit
    def recognize(logits, ids, frames):
        token_mask = TokenMask.from_ids(ids, eos_id=clip_models.EOS)
        valid = jnp.ones(len(ids), bool)
        position, loss = xmda.recognize(logits, token_mask, valid, blank=clip_models.VOCAB, frames=frames)
        return loss, position

    logits[2, 7:, 6] = 40  # in padding, where a path that took it for frames would put the last word
    compute = jax.jit(jax.value_and_grad(recognize, has_aux=True))
    (value, position), gradient = compute(jnp.asarray(logits, jnp.float32), ids, mask)
    _, alone = recognize(jnp.asarray(logits[2:, :7], jnp.float32), ids[2:], None)
    np.testing.assert_array_equal(position[2, :7], alone[0])
    expected, expected_gradient = 0.0, np.zeros_like(logits)
    for row, (length, labels) in enumerate(zip(lengths, words, strict=True)):
        each, by_logits = forward_backward(logits[row, :length], labels, clip_models.VOCAB)
        expected += each / 3
        expected_gradient[row, :length] = by_logits / 3
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_xmda_recognizes_the_frames_of_a_sequence_alone():
    (_, _, _, metrics, *_), (tokens, _) = compiled(4)(batch())
    head = augmentation(4).recognizer
    logits = np.asarray(tokens, np.float64) @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    # Rows 0 and 3 have fewer frames than their words need.
    losses = [
        forward_backward(logits[i, : LENGTHS[i]], words, clip_models.VOCAB)[0] for i, words in ((1, [8]), (2, [1, 6]))
    ]
    np.testing.assert_allclose(metrics["ctc"], np.mean(losses), rtol=1e-5)


def test_what_changes_pixels_is_refused_with_its_key_and_the_way_out():
    with pytest.raises(ConfigError, match=r"augment\.style: changes pixels, .* takes sequences; leave it out, or use"):
        Augmentations.from_config([("style", {})], towers=TOWERS, seed=0)
    data = DataConfig(source={}, modalities=("signs",))
    tokens = types.SimpleNamespace(vocab_size=19, context_length=7, pad_id=0, eos_id=18)
    for section, message in (
        ({"preprocess": {"name": "resize_crop"}}, r"data\.preprocess=.*: is for pictures, and .*; leave it out"),
        ({"transforms": (("flip", {}),)}, r"data\.transforms: 'flip' is for pictures, and .*; leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit_model(CONFIG, dataclasses.replace(data, **section), None, tokens)
