"""The towers in stages: the same numbers whatever is tapped, and views that come out as if they had come in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.augment.common.base import TokenMask, View
from mmjax.augment.mixup import longer_ids
from mmjax.core.config import ConfigError
from mmjax.core.sphere import unit
from mmjax.models.block_stack import run_blocks
from mmjax.objectives import contrastive
from mmjax.train import forward
from mmjax.train.micro_batches import MicroBatches
from mmjax.train.step import make_loss, merge
from support import tiny
from support.training import assembled, trained

PLACES = ["input", "tokens@0", "tokens@1", "tokens@-1", "tokens@3", "pooled", "embedding"]


LAYERS = {
    "model__vision_cfg__layers": 3, "model__text_cfg__layers": 3,
    "model__vision_cfg__pool_type": "tok", "model__vision_cfg__class_token": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def ready():
    """A model of three blocks with a class token, its parameters, and a batch."""
    program, batches = assembled(tiny.experiment(**LAYERS), jax.devices()[:1])
    batch = program.place(next(batches))
    batches.close()
    return program, program.initialize().params, batch


def embedded_clean(ready, place):
    """The clean features of a tap as a view, through what is left of the network; and plainly embedded."""
    program, params, batch = ready
    towers = program.augmentations.towers

    @jax.jit
    def run(params, batch):
        model = merge(program.graph, params)
        found = forward.run_clean(model, batch, towers=towers, taps=[place])
        pooled = found["pooled"]
        found["embedding"] = dataclasses.replace(
            pooled, image=model.visual.project(pooled.image), text=model.text.project(pooled.text)
        )
        there = found[place]
        view = View(image=there.image, text=there.text)
        models = {"trained": model}
        [[row, _]] = forward.embed_views([(place, view)], models=models, taps=found, towers=towers)
        [[text, _]] = forward.embed_views([(place, View(text=there.text))], models=models, taps=found, towers=towers)
        plain = unit(model.encode_image(batch.images)), unit(model.encode_text(batch.tokens))
        return there, row, text, plain

    return run(params, batch)


@pytest.mark.parametrize("place", PLACES)
def test_clean_features_of_any_tap_end_where_the_network_ends(ready, place):
    there, row, text, (image, words) = embedded_clean(ready, place)
    np.testing.assert_allclose(row.image, image, atol=2e-6)
    np.testing.assert_allclose(row.text, words, atol=2e-6)
    np.testing.assert_allclose(text.image, image, atol=2e-6)  # the side that a view leaves out
    _, _, batch = ready
    np.testing.assert_array_equal(row.image_source.ids, batch.image_source.ids)
    if place.startswith(("input", "tokens")):
        assert there.token_mask is not None and there.text.shape[:2] == batch.tokens.shape
        assert (there.num_prefix_tokens == 1) == place.startswith("tokens")
    if place == "input":
        np.testing.assert_array_equal(there.image["image"], np.float32(batch.images["image"]))


def test_what_a_place_holds_is_what_enters_that_block(ready):
    program, params, batch = ready
    model = merge(program.graph, params)
    found = forward.run_clean(
        model, batch, towers=program.augmentations.towers, taps=["tokens@1", "tokens@-1", "tokens@2"]
    )
    entering = model.visual.embed(batch.images)
    first, _ = run_blocks(model.visual.blocks, entering, stop=1, scan=False, remat="none")
    np.testing.assert_allclose(found["tokens@1"].image, first, atol=1e-5)
    np.testing.assert_array_equal(found["tokens@-1"].image, found["tokens@2"].image)
    np.testing.assert_array_equal(found["tokens@-1"].text, found["tokens@2"].text)
    assert not np.allclose(found["tokens@1"].text, found["tokens@2"].text)


def test_words_end_with_the_first_end_token():
    ids = jnp.asarray([[1, 5, 6, 2, 0, 0], [1, 5, 2, 2, 2, 2], [1, 3, 4, 5, 6, 7], [1, 2, 0, 0, 0, 0]])
    token_mask = TokenMask.from_ids(ids, eos_id=2)
    np.testing.assert_array_equal(jnp.sum(token_mask.valid, axis=1), [4, 3, 6, 2])
    np.testing.assert_array_equal(
        token_mask.content, np.array([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0] * 6], bool)
    )
    np.testing.assert_array_equal(longer_ids(token_mask), np.asarray(ids)[[0, 2, 2, 0]])


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("tokens", r"expected tokens@K with a block K from -1 to 1"),
        ("tokens@2", r"expected tokens@K with a block K from -1 to 1"),
        ("tokens@-2", r"expected tokens@K"),
        ("tokens@x", r"expected tokens@K"),
        ("pooled@1", r"must be one of 'input', 'tokens@K', 'pooled', 'embedding'"),
        ("head", r"must be one of 'input', 'tokens@K', 'pooled', 'embedding'"),
    ],
)
def test_taps_that_are_not_there_are_named(tap, message):
    with pytest.raises(ConfigError, match=rf"augment\.mixup\.tap={tap!r}: {message}"):
        assembled(tiny.experiment(augment=(("mixup", {"tap": tap}),)))


def test_texts_of_another_length_need_their_ids(ready):
    program, params, batch = ready
    model = merge(program.graph, params)
    found = forward.run_clean(model, batch, towers=program.augmentations.towers, taps=["tokens@0"])
    found["embedding"] = found["pooled"]
    view = View(text=found["tokens@0"].text[:, :4])
    with pytest.raises(ValueError, match="need their ids"):
        forward.embed_views(
            [("tokens@0", view)], models={"trained": model}, taps=found, towers=program.augmentations.towers
        )


LATE = {"value": 0.5, "start": 2}
DEEP = {"model__vision_cfg__layers": 2, "model__text_cfg__layers": 2}


@pytest.mark.slow
def test_blocks_that_are_tapped_are_rounded_as_if_they_were_not():
    """In the middle of a scanned tower, and after its last block, at weight zero."""
    plain = trained(tiny.experiment(**DEEP), steps=1, optimised=True)
    augment = (("mixup", {"tap": "tokens@1", "sides": "both", "weight": LATE}),)
    tapped = trained(tiny.experiment(**DEEP, augment=augment), steps=1, optimised=True)
    for a, b in zip(jax.tree.leaves(tapped[0][0].params), jax.tree.leaves(plain[0][0].params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_three_modalities_and_text_go_through_every_tap():
    augment = (
        ("mixup", {"tap": "input"}), ("tmmda", {}), ("xmda", {"sides": "both"}), ("patch_dropout", {"drop_rate": 0.25}),
    )  # fmt: skip
    several = {"data__modalities": ("image", "depth", "thermal")}
    [(_, metrics)] = trained(tiny.experiment(augment=augment, **several), steps=1)
    assert np.isfinite(list(metrics.values())).all()
    assert 0.2 < metrics["augment/mixup/task_image_cosine"] <= 1
    assert 0.3 < metrics["augment/tmmda/image_mixed_fraction"] < 0.6  # 0.15 from each of three others
    assert 0.3 < metrics["augment/tmmda/text_mixed_fraction"] < 0.6


@pytest.mark.slow
def test_a_drop_rate_that_changes_switches_the_length_and_compiles_once():
    """Before the change the steps are those of whole sequences, after it those of the constant rate."""
    history = trained(tiny.experiment(augment=(("patch_dropout", {"drop_rate": LATE, "levels": 1}),)), steps=3)
    whole = trained(tiny.experiment(), steps=3)
    assert [m["augment/patch_dropout/drop_rate"] for _, m in history] == [0, 0, 0.5]
    for (_, got), (_, want) in zip(history[:2], whole[:2], strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-4)
    assert history[2][1]["loss"] != pytest.approx(whole[2][1]["loss"], rel=1e-3)


def test_a_shortened_tower_does_less_work():
    def flops(drop_rate):
        program, batches = assembled(
            tiny.experiment(augment=(("patch_dropout", {"drop_rate": drop_rate}),)), jax.devices()[:1]
        )
        lowered = program.trace(program.batch_shape(next(batches))).lower()
        batches.close()
        return lowered.cost_analysis()["flops"]

    assert flops(0.75) < 0.9 * flops(0.0)


def test_an_objective_that_runs_modules_gets_the_towers_tokens_and_the_model(ready):
    """Those of the clean rows, of views before pooling, and none of views after it; a run without is not changed."""
    program, params, batch = ready
    calls = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reads(contrastive.Objective):
        modules = ("decoder",)

        def __call__(self, image, text, *, tokens, **rows):
            value, metrics = super().__call__(image, text, **rows)
            calls.append(tokens)
            if tokens is None:
                return value, metrics
            project = lambda model, rows: model.text.project(model.text.ln_final(rows))  # noqa: E731
            again = tokens.map(project, tokens.text)
            assert tokens.images_by_example(tokens.image).shape[:2] == (tokens.examples, 1)
            assert tokens.texts_by_example(tokens.ids).shape[:2] == (tokens.examples, 1)
            return value + jnp.sum(again * again), metrics

    augment = (("mixup", {"tap": "tokens@1", "sides": "both"}), ("latent_noise", {"tap": "pooled"}))
    mixed = assembled(tiny.experiment(**LAYERS, augment=augment), jax.devices()[:1])[0]
    for micro_batches in (1, 2):
        loss = make_loss(
            program.graph,
            objective=Reads(),
            augmentations=mixed.augmentations,
            micro_batches=MicroBatches(number=micro_batches),
        )
        call = functools.partial(loss, drop_rates=())
        jax.eval_shape(jax.grad(call, has_aux=True), params, {}, batch, jnp.int32(0))
    clean, late, blend = calls[:3]
    assert (clean.blended, blend.blended, late) == (False, True, None)
    assert clean.ids.shape == batch.tokens.shape == clean.text.shape[:2] and clean.image.ndim == 3
    assert blend.image.shape == clean.image.shape
