"""Matching, masked words, queues and local terms: drawn by their laws, and equal to float64 forms."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.core.groups import group_number
from mmjax.core.types import Provenance
from mmjax.models.joint_config import FusionConfig
from mmjax.objectives import fusion, tcl
from mmjax.objectives.common import local_terms, masked_words, matching, momentum_queue, row_softmax
from mmjax.objectives.common.answers import answer_labels
from mmjax.objectives.common.matching import draw_positives
from mmjax.objectives.common.targets import Labels, make_targets
from mmjax.objectives.common.tower_tokens import MomentumFeatures, TowerTokens
from support import clip_models
from support.objectives_reference import source_mass

SCALE = 3.0
IMAGE_IDS = np.array([[0, -1], [1, 0], [2, -1], [2, -1], [4, -1], [-1, -1]], np.int32)  # 1 is mixed, 2 comes twice
IMAGE_WEIGHT = np.array([[1, 0], [0.75, 0.25], [1, 0], [1, 0], [1, 0], [0, 0]], np.float32)
TEXT_IDS = np.array([[0, -1], [1, 0], [2, -1], [2, -1], [4, -1], [-1, -1], [0, -1]], np.int32)
TEXT_WEIGHT = np.array([[1, 0], [0.5, 0.5], [1, 0], [1, 0], [1, 0], [0, 0], [0, 0]], np.float32)  # the last: false
MASS = source_mass(IMAGE_IDS, IMAGE_WEIGHT, TEXT_IDS, TEXT_WEIGHT)


def sides(targets="provenance"):
    both = Provenance(ids=IMAGE_IDS, weight=IMAGE_WEIGHT), Provenance(ids=TEXT_IDS, weight=TEXT_WEIGHT)
    return [(s, Labels.from_provenance(s, targets=targets, mask_partners=False)) for s in both]


def unit_rows(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def drawn(*, mixed, targets="provenance", draws=4000):
    """For each kind of pair, how often each text was drawn for each image: f64[3, 6, 7]."""
    logits = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)

    @jax.vmap
    def draw(key):
        pairs = matching.draw_pairs(key, (logits, logits.T), *sides(targets), mixed=mixed)
        return [(p.image, p.text, p.valid) for p in pairs]

    counts = np.zeros((3, 6, 7))
    for kind, (image, text, valid) in enumerate(jax.jit(draw)(jax.random.split(jax.random.key(1), draws))):
        image, text = (np.broadcast_to(x, valid.shape) for x in (image, text))
        np.add.at(counts[kind], (image[valid], text[valid]), 1 / draws)
    return logits.astype(float), counts


@pytest.mark.parametrize(("mixed", "targets"), [("positive", "provenance"), ("leave_out", "identity")])
def test_pairs_follow_provenance_and_similarity(mixed, targets):
    logits, counts = drawn(mixed=mixed, targets=targets)
    weights = (IMAGE_WEIGHT, TEXT_WEIGHT)
    if targets == "identity":
        weights = tuple((w.sum(1, keepdims=True) > 0) * np.array([[1.0, 0.0]]) for w in weights)
    target = source_mass(IMAGE_IDS, weights[0], TEXT_IDS, weights[1])
    takes_part = np.outer(IMAGE_IDS[:, 0] >= 0, TEXT_IDS[:, 0] >= 0)
    if mixed == "leave_out":
        takes_part &= ~np.outer(np.arange(6) == 1, np.ones(7, bool)) & ~np.outer(np.ones(6, bool), np.arange(7) == 1)
    target = target * takes_part
    negative = takes_part & (target == 0) & (MASS == 0)
    assert not counts[1:, MASS > 0].any()  # neither copies nor mixes of an example are ever its negatives
    own = np.zeros((3, 6, 7))
    for j in np.flatnonzero(target.sum(0)):  # more texts than images, so each text has a positive
        own[0, :, j] = target[:, j] / target[:, j].sum()
        own[2, negative[:, j], j] = softmax(logits[negative[:, j], j])
    for i in np.flatnonzero(target.sum(1)):
        own[1, i, negative[i]] = softmax(logits[i, negative[i]])
    np.testing.assert_allclose(counts, own, atol=0.03)  # of 4,000 draws: almost four standard deviations


def test_matching_loss_is_the_mean_over_valid_pairs():
    logits = np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32)
    labels, valid = np.array([1, 0, 1, 0, 1]), np.array([True, True, False, True, True])
    run = jax.jit(jax.value_and_grad(row_softmax.class_loss, has_aux=True))
    (value, accuracy), gradient = run(logits, labels, valid)
    probability = np.array([softmax(row) for row in logits.astype(float)])
    np.testing.assert_allclose(value, -np.mean(np.log(probability[np.arange(5), labels])[valid]), atol=1e-6)
    np.testing.assert_allclose(gradient, (probability - np.eye(2)[labels]) * valid[:, None] / 4, atol=1e-6)
    assert accuracy == np.mean((probability.argmax(1) == labels)[valid])
    assert run(logits, labels, np.zeros(5, bool))[0] == (0, 0)


def test_words_are_hidden_as_in_bert():
    ids = np.tile(np.array([1, *range(10, 20), 2, 0, 0], np.int32), (4000, 1))  # BOS, ten words, EOS, two pads
    hide = jax.jit(lambda key: masked_words.mask_words(key, ids, eos_id=2, vocab_size=1000, rate=0.15))
    new, masked, chosen = map(np.asarray, hide(jax.random.key(0)))
    words = slice(1, 11)
    assert not chosen[:, [0, 11, 12, 13]].any() and not (masked & ~chosen).any()
    np.testing.assert_array_equal(new[~chosen], ids[~chosen])
    hidden = chosen[:, words].sum()
    np.testing.assert_allclose(hidden / 40000, 0.15, atol=0.006)
    np.testing.assert_allclose(masked.sum() / hidden, 0.8, atol=0.02)
    np.testing.assert_allclose(((new != ids) & ~masked).sum() / hidden, 0.1, atol=0.015)
    assert (np.asarray(hide(jax.random.key(1))[2]) != chosen).any()
    assert chosen[:, words].sum(0).min() > 450  # every position


def test_losses_of_words_are_the_float64_form():
    rng = np.random.default_rng(3)
    logits, soft = rng.normal(size=(2, 3, 5)), np.array([[softmax(x) for x in y] for y in rng.normal(size=(2, 3, 5))])
    ids, chosen = rng.integers(0, 5, (2, 3)).astype(np.int32), np.array([[True, False, True], [False, False, True]])
    arguments = jnp.float32(logits), ids, chosen, jnp.float32(soft), 0.4

    def total(x):
        losses, right = masked_words.word_losses(x, *arguments[1:])
        return jnp.sum(losses), (losses, right)

    gradient, (losses, right) = jax.jit(jax.grad(total, has_aux=True))(arguments[0])
    wanted, wanted_right, by_logit = np.zeros(2), np.zeros(2), np.zeros((2, 3, 5))
    for i, j in zip(*np.nonzero(chosen), strict=True):
        p = softmax(logits[i, j])
        target = 0.6 * np.eye(5)[ids[i, j]] + 0.4 * soft[i, j]
        wanted[i] -= target @ np.log(p)
        wanted_right[i] += p.argmax() == ids[i, j]
        by_logit[i, j] = p - target
    np.testing.assert_allclose(losses, wanted, atol=1e-5)
    np.testing.assert_allclose(right, wanted_right)
    np.testing.assert_allclose(gradient, by_logit, atol=1e-5)


def test_contrast_with_a_queue_and_soft_targets_is_the_float64_form():
    rng = np.random.default_rng(4)
    image, teacher, text = (unit_rows(rng, n, 4) for n in (6, 6, 7))
    state = momentum_queue.empty_queue(5, 4)
    old, old_ids = unit_rows(rng, 3, 4), np.array([4, 9, 2], np.int32)
    state = momentum_queue.push(state, "text", old, Provenance.from_ids(old_ids))
    source, texts = (s for s, _ in sides())

    def loss(image, scale):
        columns, of_columns = momentum_queue.queued_columns(state, "text", text, texts)
        labels = (Labels.from_provenance(s, targets="provenance", mask_partners=False) for s in (source, of_columns))
        targets = make_targets(*labels)
        return momentum_queue.distilled_loss(image, teacher, columns, targets, scale=scale, soft_weight=0.4)

    (value, _), (by_image, by_scale) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(image, SCALE)
    # In words: columns are this batch's texts, then the queue, of which two rows are empty.
    columns = np.concatenate([text, old]).astype(float)
    mass = np.concatenate([MASS, source_mass(IMAGE_IDS, IMAGE_WEIGHT, old_ids[:, None], np.ones((3, 1)))], axis=1)
    use = np.append(TEXT_IDS[:, 0] >= 0, [True] * 3)
    wanted, gradient = [], np.zeros((6, 10))
    for i in np.flatnonzero(IMAGE_IDS[:, 0] >= 0):
        logits, own = (SCALE * columns[use] @ x[i].astype(float) for x in (image, teacher))
        target = 0.6 * mass[i, use] / mass[i].sum() + 0.4 * softmax(own)
        wanted.append(-target @ np.log(softmax(logits)))
        gradient[i, use] = (softmax(logits) - target) / 5
    np.testing.assert_allclose(value, np.mean(wanted), atol=1e-5)
    np.testing.assert_allclose(by_image, SCALE * gradient @ columns, atol=1e-5)
    np.testing.assert_allclose(by_scale, np.sum(gradient * (image.astype(float) @ columns.T)), atol=1e-5)


def test_a_queue_keeps_the_newest_rows_with_their_sources():
    state = momentum_queue.empty_queue(5, 1)
    push = jax.jit(lambda state, rows, ids: momentum_queue.push(state, "image", rows, Provenance.from_ids(ids)))
    for start in (0, 3, 6):
        ids = np.arange(start, start + 3, dtype=np.int32)
        state = push(state, np.float32(ids[:, None]), ids)
    assert sorted(state["image_queue"].ravel().tolist()) == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(state["image_queue_ids"][:, 0], state["image_queue"][:, 0])
    assert not state["text_queue"].any() and state["text_queue_place"] == 0
    with pytest.raises(ConfigError, match=r"objective.queue_size=5: shorter than the 6 image rows"):
        push(state, np.zeros((6, 1), np.float32), np.arange(6, dtype=np.int32))
    with pytest.raises(ConfigError, match=r"its rows have 2 sources, and those of this batch 3"):
        momentum_queue.with_sources(Provenance(ids=np.zeros((1, 3), np.int32), weight=np.zeros((1, 3))), 2)


def test_local_terms_are_the_float64_form():
    rng = np.random.default_rng(5)
    rows, pieces = unit_rows(rng, 4, 3), unit_rows(rng, 4, 2, 3)
    valid = np.array([[True, True], [True, False], [True, True], [True, True]])
    other = ~np.eye(4, dtype=bool) & np.array([True, True, True, False])  # the last is padding
    takes_part = np.array([True, True, True, False])

    def loss(rows):
        return local_terms.local_loss(rows, pieces, other, takes_part, scale=SCALE, valid=valid)

    def wanted(rows):
        total = []
        for i in range(3):
            logits = SCALE * pieces.astype(float) @ rows[i]
            rest = sum(np.exp(logits[j, k]) for j in range(3) for k in range(2) if j != i and valid[j, k])
            own = [np.log(np.exp(logits[i, k]) + rest) - logits[i, k] for k in range(2) if valid[i, k]]
            total.append(np.mean(own))
        return np.mean(total)

    value, gradient = jax.jit(jax.value_and_grad(loss))(rows)
    np.testing.assert_allclose(value, wanted(rows.astype(float)), atol=1e-5)
    steps = 1e-6 * np.eye(12).reshape(12, 4, 3)
    slopes = [(wanted(rows + step) - wanted(rows - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient.ravel(), slopes, atol=1e-5)
    patches = np.arange(36.0, dtype=np.float32).reshape(1, 36, 1)  # 6 × 6, windows of 2 × 2
    windows = local_terms.pool_patches(patches)[0, :, 0]
    np.testing.assert_allclose((windows[0], windows[1], windows[8]), (3.5, 5.5, 31.5))
    assert local_terms.pool_patches(patches[:, :35]).shape == (1, 35, 1)


class Encoder:
    """In place of a model: a pair matches by a number of its image and of its text."""

    eos_id, vocab_size, mask_embed, config = (
        9,
        10,
        np.zeros(1),
        types.SimpleNamespace(word_head="tied", answers=3, images=1),
    )

    @staticmethod
    def answer(image, text, ids):
        return image[:, :, 0] @ jnp.array([[1.0, 0, 2], [0, 1, 1]]) * text[:, :1, 0]

    @staticmethod
    def match(image, text, ids):
        score = image[:, 0, 0] * text[:, 0, 0]
        return jnp.stack([-score, score], axis=1)


def tokens(rng, **options):
    image, text = (jnp.asarray(rng.normal(size=(n, 2, 1)), jnp.float32) for n in (6, 7))
    model = types.SimpleNamespace(fusion=Encoder())
    shared = {
        "image": image,
        "text": text,
        "ids": jnp.zeros((7, 2), int),
        "valid": jnp.ones((7, 2), bool),
        "model": model,
        "key": jax.random.key(3),
    }
    return TowerTokens(blended=True, examples=1, map=lambda f, rows: f(model, rows), **shared | options)


def test_matching_judges_the_drawn_pairs():
    rng = np.random.default_rng(6)
    seen, image, text = tokens(rng), unit_rows(rng, 6, 4), unit_rows(rng, 7, 4)
    objective = fusion.Objective(contrastive_weight=0.0, matching_weight=2.0)
    (source, _), (texts, _) = sides()
    rest = {"image_source": source, "text_source": texts, "scale": jnp.float32(2)}
    similarity = 2 * image @ text.T

    @jax.jit
    def run(image, text):
        pairs = matching.draw_pairs(jax.random.split(seen.key, 3)[0], (similarity, similarity.T), *sides())
        return objective(image, text, **rest, tokens=seen), [tuple(pair) for pair in pairs]

    (loss, metrics), pairs = run(image, text)
    pairs = [matching.Pairs(*pair) for pair in pairs]
    wanted = []
    for pair in pairs:
        score = np.asarray(seen.image)[pair.image, 0, 0] * np.asarray(seen.text)[pair.text, 0, 0]
        wanted += np.log1p(np.exp(-2 * score if pair.matches else 2 * score))[pair.valid].tolist()
    np.testing.assert_allclose(loss, 2 * np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(metrics["matching_loss"], np.mean(wanted), rtol=1e-5)
    assert "words_loss" not in metrics  # of a blend of word vectors


def test_settings_that_do_not_go_together_are_named():
    with pytest.raises(ConfigError, match=r"objective.queue_size=8: comes from a moving average"):
        fusion.Objective(queue_size=8)
    assert fusion.Objective(matching_weight=0, words_weight=0).modules == ()
    assert tcl.Objective().modules == ("fusion",) and tcl.Objective(embed_dim=4).init_state()["text_queue"].shape == (
        65536,
        4,
    )


def test_tcl_weighs_its_three_contrasts_alike():
    """The mean of six terms, of which each is checked above, as the released code has it."""
    rng = np.random.default_rng(7)
    image, text = unit_rows(rng, 4, 3), unit_rows(rng, 4, 3)
    project = lambda x: x  # noqa: E731
    towers = {
        "visual": types.SimpleNamespace(project=project, config=types.SimpleNamespace(class_token=True, registers=0))
    }
    towers |= {"text": types.SimpleNamespace(project=project)}
    model = types.SimpleNamespace(**towers)
    own = {"image": unit_rows(rng, 4, 5, 3), "text": unit_rows(rng, 4, 3, 3), "valid": np.ones((4, 3), bool)}
    average = MomentumFeatures(
        image=unit_rows(rng, 4, 3), text=unit_rows(rng, 4, 3), tokens=tokens(rng, **own, model=model)
    )
    source = Provenance.from_ids(np.arange(4, dtype=np.int32))
    arguments = {"image_source": source, "text_source": source, "scale": jnp.float32(SCALE), "momentum": average}
    loss, metrics = jax.jit(lambda: tcl.Objective(distillation=0.0)(image, text, **arguments))()
    terms = [metrics[f"{name}_loss"] for name in ("across", "intra", "local")]
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-6)

    def row_losses(rows, columns):
        return np.mean([-np.log(softmax(SCALE * columns @ row)[i]) for i, row in enumerate(rows.astype(float))])

    np.testing.assert_allclose(
        terms[0], (row_losses(image, average.text) + row_losses(text, average.image)) / 2, atol=1e-5
    )
    np.testing.assert_allclose(
        terms[1], (row_losses(image, average.image) + row_losses(text, average.text)) / 2, atol=1e-5
    )
    others = ~np.eye(4, dtype=bool)
    local = [
        jax.jit(local_terms.local_loss)(rows, of_rows, others, np.ones(4, bool), scale=SCALE)
        for rows, of_rows in ((image, local_terms.pool_patches(own["image"][:, 1:])), (text, own["text"][:, 1:]))
    ]
    np.testing.assert_allclose(terms[2], np.mean(local), rtol=1e-6)


def test_the_group_of_an_example_is_its_answer():
    answers = ("yes", "no", "red")
    group = np.array([group_number(a) for a in ("no", "red", "blue", "yes")] + [-1, -1, group_number("no")], np.int32)
    labels, listed = (np.asarray(x) for x in jax.jit(answer_labels, static_argnums=1)(group, answers))
    assert listed.tolist() == [True, True, False, True, False, False, True]
    assert [answers[i] for i in labels[listed]] == ["no", "red", "yes", "no"]
    rng = np.random.default_rng(8)
    seen, image, text = tokens(rng), unit_rows(rng, 6, 4), unit_rows(rng, 7, 4)
    (source, _), (texts, _) = sides()
    rest = {"image_source": source, "scale": jnp.float32(2), "tokens": seen}
    weights = {"contrastive_weight": 0.0, "matching_weight": 0.0, "words_weight": 0.0}
    objective = fusion.Objective(answers=answers, **weights)
    assert objective.text_groups == "example" and objective.modules == ("fusion",)
    loss, _ = jax.jit(lambda: objective(image, text, text_source=dataclasses.replace(texts, group=group), **rest))()
    image_of = jax.jit(lambda: draw_positives(jax.random.split(seen.key, 3)[1], *reversed(sides()))[0])()
    wanted = []
    for row in (0, 1, 3):  # those with an answer of the list
        first, second = np.asarray(seen.image, np.float64)[image_of[row], :, 0] * float(seen.text[row, 0, 0])
        wanted.append(-np.log(softmax(np.array([first, second, 2 * first + second]))[labels[row]]))
    np.testing.assert_allclose(loss, np.mean(wanted), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"set model.fusion.answers=2"):
        fusion.Objective(answers=answers[:2], **weights).check_model(
            clip_models.config(fusion=FusionConfig()), augment=()
        )
    with pytest.raises(ConfigError, match=r"objective.words_weight=1.0: model.fusion.word_head='none'"):
        fusion.Objective().check_model(clip_models.config(fusion=FusionConfig(word_head="none")), augment=())
    with pytest.raises(ConfigError, match=r"set data.groups=\('answer',\)"):
        objective(image, text, text_source=texts, **rest)
    with pytest.raises(ConfigError, match=r"objective.answers: 'no' is listed twice"):
        fusion.Objective(answers=("no", "yes", "no"))


class PairEncoder(Encoder):
    config = types.SimpleNamespace(word_head="none", answers=2, images=2)

    @staticmethod
    def answer(image, text, ids):
        return image[:, :, 0, 0] * text[:, :1, 0] + image[:, ::-1, 1, 0]


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_text_is_about_both_pictures_of_its_example_and_the_averages_answers_are_soft_targets(weight):
    rng = np.random.default_rng(9)
    answers = ("no", "yes")
    groups = np.array([group_number(answers[k]) for k in (1, 0, 1)], np.int32)

    def seen():
        rows = {name: jnp.asarray(rng.normal(size=(n, 2, 1)), jnp.float32) for name, n in (("image", 6), ("text", 3))}
        model = types.SimpleNamespace(fusion=PairEncoder())
        return dataclasses.replace(tokens(rng, model=model, **rows), examples=3, map=lambda f, x: f(model, x))

    own, average = seen(), seen()
    z = {side: unit_rows(rng, n, 4) for side, n in (("image", 6), ("text", 3))}
    momentum = MomentumFeatures(image=jnp.asarray(z["image"]), text=jnp.asarray(z["text"]), tokens=average)
    objective = fusion.Objective(
        answers=answers,
        contrastive_weight=0.0,
        matching_weight=0.0,
        words_weight=0.0,
        momentum=0.9,
        distillation=weight,
    )
    ids = np.array([4, 7, 9], np.int32)  # the left pictures of three examples, and then the right ones
    sources = {
        "image_source": Provenance.from_ids(jnp.asarray(np.tile(ids, 2))),
        "text_source": dataclasses.replace(Provenance.from_ids(jnp.asarray(ids)), group=groups),
    }

    @jax.jit
    def run(image, text):
        features = {"tokens": own, "momentum": momentum, "state": objective.init_state()}
        return objective(image, text, **sources, scale=jnp.float32(2), **features)

    loss, metrics = run(z["image"], z["text"])
    wanted = []
    for row, label in enumerate((1, 0, 1)):
        logits, soft = (
            np.array([x[row, 0] * t[row, 0], x[row + 3, 0] * t[row, 0]]) + np.array([x[row + 3, 1], x[row, 1]])
            for x, t in (
                (np.asarray(s.image, float)[..., 0], np.asarray(s.text, float)[..., 0]) for s in (own, average)
            )
        )
        logs = np.log(softmax(logits))
        wanted.append(-(1 - weight) * logs[label] - weight * softmax(soft) @ logs)
    np.testing.assert_allclose(loss, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(metrics["answers_loss"], np.mean(wanted), rtol=1e-5)


def test_answers_may_stand_in_a_file(tmp_path):
    (tmp_path / "answers.json").write_text('["yes", "no"]')
    assert fusion.Objective(answers=str(tmp_path / "answers.json")).answers == ("yes", "no")
    (tmp_path / "answers.json").write_text('{"yes": 1}')
    with pytest.raises(ConfigError, match="expected a JSON list of answers"):
        fusion.Objective(answers=str(tmp_path / "answers.json"))
