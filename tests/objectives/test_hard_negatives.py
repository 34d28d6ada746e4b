"""Objectives with hard negatives: their equations, and what holds for any of them, in every implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.groups import group_number, place_number
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from support import objectives_reference as reference
from support.objective_problems import arguments, computing, hard_problem

CASES = {
    "negclip": ({}, reference.clip),
    "cft": ({}, reference.cft),
    "ce_clip": ({"threshold": "fixed", "max_threshold": 0.7}, functools.partial(reference.ce_clip, threshold=0.7)),
    "sluma": ({"smoothing_weight": 2.0}, functools.partial(reference.sluma, smoothing=2.0)),
    "tsvlc": (
        {"negative_weight": 0.5, "positive_weight": 2.0},
        functools.partial(reference.tsvlc, negative_weight=0.5, positive_weight=2.0),
    ),
    "biaug": ({}, reference.clip),
    "biaug bimodal": ({"mode": "bimodal"}, reference.biaug),
    "clic": ({}, reference.clic),
    "cs_clip": ({}, reference.cs_clip),
    "distill": ({}, reference.clip),
    "knowledge": ({}, reference.knowledge),
    "fscl": ({}, lambda s: reference.fscl(s, np.zeros(len(s.image)), np.zeros(len(s.text)))),
    "hn_nce": ({"schedule": "constant", "alpha": 0.8}, functools.partial(reference.hn_nce, alpha=0.8, beta=0.25)),
    "hn_nce frozen": (
        {"schedule": "constant", "beta": 0.5, "weight_gradient": False},
        functools.partial(reference.hn_nce, beta=0.5, frozen=reference.Sides(*hard_problem(0)[:5])),
    ),
    "hn_nce topk": ({"mode": "topk", "k": 4}, functools.partial(reference.hn_nce, k=4)),
    "hn_nce limit": (
        {"mode": "topk", "k": 3, "positive_limit": 2.0},
        functools.partial(reference.hn_nce, k=3, limit=2.0),
    ),
}
"""Names (with a suffix where there are several) to options and the loss as a function of ``reference.Sides``."""

WITHOUT_NEGATIVES_CLIP = ("negclip", "ce_clip", "biaug", "clic", "cs_clip", "distill", "knowledge")


@functools.cache
def compiled(case, impl="dense", devices=1):
    sharding = batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()[:devices])) if devices > 1 else None
    section = {"name": case.split()[0], "impl": impl, "chunk": 3, **CASES[case][0]}
    objective = plugins.make("mmjax.objectives", "Objective", section, path="objective", row_sharding=sharding)
    return jax.jit(computing(objective))


def expected(case, problem):
    """The float64 loss and its gradients by images, texts and scale."""
    values = problem[0], problem[1], problem[4]
    sides = reference.Sides(*problem[:5])
    return CASES[case][1](sides), reference.numeric_gradient(lambda *moved: CASES[case][1](sides.move(*moved)), values)


def assert_close(got, want, *, atol=1e-5):
    (value, metrics), gradients = got
    np.testing.assert_allclose(value, want[0], atol=atol)
    for a, b in zip(gradients, want[1], strict=False):
        np.testing.assert_allclose(a, b, atol=atol)
    np.testing.assert_allclose(gradients[3], 0, atol=1e-6)  # a bias moves no logit against another
    assert all(np.isfinite(m) and m.shape == () for m in metrics.values())


SLOW = ("biaug", "cs_clip", "distill", "knowledge", "hn_nce frozen", "hn_nce limit")  # nearly the programs of others
cases = pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES])


@cases
def test_loss_and_gradients_equal_the_equations(case):
    problem = hard_problem(0)
    assert_close(compiled(case)(*arguments(problem)), expected(case, problem))


FAST = {("cft", "ring")}


@pytest.mark.parametrize(
    ("case", "impl"),
    [
        pytest.param(case, impl, marks=() if (case, impl) in FAST else pytest.mark.slow)
        for case in CASES
        for impl in ("chunked", "ring", "dense")
    ],
)
def test_every_implementation_gives_the_same_on_any_number_of_devices(case, impl):
    """Six images and twenty texts: neither tiles nor devices divide them."""
    problem = arguments(hard_problem(0))
    got, want = compiled(case, impl, 1 if impl == "chunked" else 8)(*problem), compiled(case)(*problem)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-6)


@cases
def test_masked_negatives_change_nothing_and_have_no_gradient(case):
    image, text, image_source, (ids, weight), *rest = hard_problem(1)
    negative = weight[:, 0] == 0
    ids = np.where(negative[:, None], -1, ids)
    noise = np.random.default_rng(0).normal(size=text.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    results = [
        compiled(case)(*arguments((image, z, image_source, (ids, weight), *rest)))
        for z in (text, np.where(negative[:, None], noise, text))
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert not np.any(np.asarray(results[0][1][1])[negative])
    if case in WITHOUT_NEGATIVES_CLIP:
        p = (image, text, image_source, (ids, weight), *rest)
        wanted = reference.clip(reference.Sides(*p[:5]))
        np.testing.assert_allclose(results[0][0][0], wanted, atol=1e-5)


@cases
def test_permuted_negatives_change_nothing(case):
    image, text, image_source, (ids, weight), *rest = hard_problem(2)
    order = np.arange(len(text))
    negative = np.flatnonzero(weight[:, 0] == 0)
    order[negative] = np.roll(negative, 3)
    shuffled = image, text[order], image_source, (ids[order], weight[order]), *rest
    (value, _), gradients = compiled(case)(*arguments((image, text, image_source, (ids, weight), *rest)))
    (again, _), permuted = compiled(case)(*arguments(shuffled))
    np.testing.assert_allclose(again, value, rtol=2e-6)
    np.testing.assert_allclose(permuted[0], gradients[0], atol=2e-6)
    np.testing.assert_allclose(permuted[1], np.asarray(gradients[1])[order], atol=2e-6)


@cases
def test_rows_without_any_positive_give_finite_numbers(case):
    image, text, (ii, iw), (ti, tw), *rest = hard_problem(3)
    nobody = arguments((image, text, (ii, 0 * iw), (ti, 0 * tw), *rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(compiled(case)(*nobody)))
    alone = arguments((image, text, (ii, iw), (np.where(ti == 2, ti, -1), tw), *rest))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(compiled(case)(*alone)))
    nothing = arguments((image, text, (0 * ii - 1, 0 * iw), (0 * ti - 1, 0 * tw), *rest))
    (value, metrics), gradients = compiled(case)(*nothing)
    assert value == 0 and not any(np.any(g) for g in gradients[:2]) and all(map(np.isfinite, metrics.values()))


def loss_of(name, problem, state=None, **options):
    """The objective, its loss and its metrics."""
    objective = plugins.make("mmjax.objectives", "Objective", {"name": name, **options}, path="objective")
    (image, text, scale, _), (image_source, text_source) = arguments(problem)
    state = {} if state is None else {"state": {key: jnp.float32(value) for key, value in state.items()}}
    sources = {"image_source": image_source, "text_source": text_source}
    value, metrics = jax.jit(objective)(image, text, **sources, scale=scale, **state)
    return objective, float(value), metrics


class TestSluma:
    def test_pseudo_labels_need_the_confidence_of_earlier_steps(self):
        problem = hard_problem(0)  # with one image of zero weight
        sides = reference.Sides(*problem[:5])
        logits = sides.logits[sides.image_negative][0, sides.captions]
        confidence = np.exp(logits.max() - np.logaddexp.reduce(logits))
        for threshold in (confidence - 0.01, confidence + 0.01):
            objective, value, metrics = loss_of("sluma", problem, {"confidence": threshold}, decay=0.75)
            np.testing.assert_allclose(value, reference.sluma(sides, threshold=threshold), rtol=1e-5)
            assert (float(metrics["self_loss"]) > 0) == (threshold < confidence)
            state = objective.next_state({"confidence": jnp.float32(threshold)}, metrics)
            np.testing.assert_allclose(state["confidence"], 0.75 * threshold + 0.25 * confidence, rtol=1e-5)
        kept = objective.next_state({"confidence": jnp.float32(0.5)}, {"confidence": 0.0, "unlabeled": 0.0})
        assert float(kept["confidence"]) == 0.5


class TestCeClip:
    def test_the_threshold_is_that_of_the_step_before_and_adapts_within_its_limits(self):
        problem = hard_problem(4)
        sides = reference.Sides(*problem[:5])
        objective, value, metrics = loss_of("ce_clip", problem, {"threshold": [0.3]})
        np.testing.assert_allclose(value, reference.ce_clip(sides, threshold=0.3), rtol=1e-5)
        state = objective.next_state({"threshold": jnp.float32([0.3])}, metrics)
        np.testing.assert_allclose(state["threshold"], [reference.ce_clip_threshold(sides)], rtol=1e-5)
        *_, limited = loss_of("ce_clip", problem, {"threshold": [0.3]}, max_threshold=0.01)
        assert limited["threshold"] <= 0.01

    def test_kinds_have_thresholds_of_their_own(self):
        problem = hard_problem(4)
        sides = reference.Sides(*problem[:5])
        kinds = np.random.default_rng(0).choice(["swap", "verb", "noun"], len(sides.text))
        objective = plugins.make(
            "mmjax.objectives", "Objective", {"name": "ce_clip", "kinds": ("swap", "verb")}, path="objective"
        )
        assert objective.text_groups == "kind"
        (image, text, scale, _), (images, texts) = arguments(problem)
        texts = dataclasses.replace(texts, group=jnp.array([group_number(kind) for kind in kinds], jnp.int32))
        before = {"swap": 0.2, "verb": 1.1, "other": 0.6}
        state = {"threshold": jnp.float32([*before.values()])}
        value, metrics = jax.jit(objective)(
            image, text, image_source=images, text_source=texts, scale=scale, state=state
        )
        kinds = np.where(kinds == "noun", "other", kinds)
        each = np.array([before[kind] for kind in kinds])
        np.testing.assert_allclose(value, reference.ce_clip(sides, threshold=each), rtol=1e-5)
        after, own = objective.next_state(state, metrics), sides.own_texts
        for kind, threshold in zip(before, after["threshold"], strict=True):
            sides.own_texts = own & (kinds == kind)
            np.testing.assert_allclose(threshold, reference.ce_clip_threshold(sides), rtol=1e-5)
            assert metrics[f"threshold/{kind}"] == threshold

    def test_without_negatives_it_stays(self):
        image, text, image_source, (ids, weight), *rest = hard_problem(4)
        ids = np.where(weight == 0, -1, ids)
        *_, metrics = loss_of("ce_clip", (image, text, image_source, (ids, weight), *rest), {"threshold": [0.3]})
        assert metrics["threshold"] == np.float32(0.3) and metrics["rank_loss"] == metrics["intra_loss"] == 0


class TestHnNce:
    def test_beta_follows_the_moving_average_of_the_gap(self):
        problem = hard_problem(5)
        sides = reference.Sides(*problem[:5])
        for gap, beta in ((-1.0, 0.0), (0.05, 0.125), (1.0, 0.25)):
            objective, value, metrics = loss_of("hn_nce", problem, {"gap": gap})
            np.testing.assert_allclose(value, reference.hn_nce(sides, beta=beta), rtol=1e-5)
            np.testing.assert_allclose(metrics["beta"], beta, rtol=1e-6)
            state = objective.next_state({"gap": jnp.float32(gap)}, metrics)
            np.testing.assert_allclose(state["gap"], 0.99 * gap + 0.01 * metrics["gap"], rtol=1e-5, atol=1e-7)

    def test_without_weights_or_with_all_negatives_it_is_clip_and_beta_raises_it(self):
        problem = hard_problem(6)
        clip = reference.clip(reference.Sides(*problem[:5]))
        same = [{"schedule": "constant", "beta": 0.0}, {"mode": "topk", "k": 20}, {}]
        np.testing.assert_allclose([loss_of("hn_nce", problem, **options)[1] for options in same], clip, rtol=1e-5)
        losses = [loss_of("hn_nce", problem, schedule="constant", beta=beta)[1] for beta in (0.25, 1.0)]
        assert clip < losses[0] < losses[1]

    def test_an_option_of_the_other_mode_is_refused(self):
        with pytest.raises(ConfigError, match=r"objective\.k=3: mode='reweight' does not use it.*mode=topk"):
            loss_of("hn_nce", hard_problem(0), k=3)


class TestTsvlc:
    def test_without_negatives_its_term_is_zero_and_single_captions_are_their_own_analogies(self):
        image, text, image_source, (ids, weight), *rest = hard_problem(7, captions=1)
        ids = np.where(weight == 0, -1, ids)
        problem = image, text, image_source, (ids, weight), *rest
        s = reference.Sides(*problem[:5])
        _, value, metrics = loss_of("tsvlc", problem)
        among = s.scale * (s.text @ s.text.T)[np.ix_(s.captions, s.captions)]
        texts = reference.softmax_losses(among, np.eye(len(among)), among < np.inf).mean()
        images = reference.softmax_losses(s.logits, s.mass, s.pairs).mean()
        assert metrics["negative_loss"] == 0
        np.testing.assert_allclose(value, reference.clip(s) + (images + texts) / 2, rtol=1e-5)
        *_, plain = loss_of("tsvlc", hard_problem(7), contrast_negatives=False)
        image, text, image_source, (ids, weight), *rest = hard_problem(7)
        without = image, text, image_source, (np.where(weight == 0, -1, ids), weight), *rest
        clip = reference.clip(reference.Sides(*without[:5]))
        np.testing.assert_allclose(plain["contrastive_loss"], clip, rtol=1e-5)


class TestPlaces:
    """Captions of several places, each with false versions of its own."""

    PROBLEM = hard_problem(9, captions=3, negatives=2)
    PLACES = np.random.default_rng(1).integers(0, 4, len(PROBLEM[1]))
    for _id in range(5):  # an image has one caption of a place
        _rows = np.flatnonzero((PROBLEM[3][0][:, 0] == _id) & (PROBLEM[3][1][:, 0] > 0))
        PLACES[_rows] = (np.arange(len(_rows)) + _id) % 4
    NUMBERS = np.random.default_rng(2).integers(0, 12, len(PROBLEM[1]))  # texts of several images

    def loss(self, name, problem=PROBLEM, places=PLACES, **options):
        objective = plugins.make("mmjax.objectives", "Objective", {"name": name, **options}, path="objective")
        assert objective.text_groups == "place"
        (image, text, scale, _), (images, texts) = arguments(problem)
        numbers = [place_number(place, f"text {number}") for place, number in zip(places, self.NUMBERS, strict=True)]
        texts = dataclasses.replace(texts, group=jnp.asarray(numbers, jnp.int32))

        def call(image, text, scale):
            return objective(image, text, image_source=images, text_source=texts, scale=scale)

        return jax.jit(jax.value_and_grad(call, argnums=(0, 1, 2), has_aux=True))(image, text, scale)

    @pytest.mark.parametrize("name", ["clic", "cs_clip", "knowledge"])
    def test_places_equal_the_equations(self, name):
        sides = reference.Sides(*self.PROBLEM[:5])

        def wanted(image, text, scale):
            numbers = () if name == "clic" else (self.NUMBERS,)
            return getattr(reference, name)(sides.move(image, text, scale), self.PLACES, *numbers)

        (value, metrics), gradients = self.loss(name)
        values = self.PROBLEM[0], self.PROBLEM[1], self.PROBLEM[4]
        np.testing.assert_allclose(value, wanted(*values), atol=1e-5)
        for a, b in zip(gradients, reference.numeric_gradient(wanted, values), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert all(np.isfinite(m) and m.shape == () for m in metrics.values())
        (tiled, _), _ = self.loss(name, impl="chunked", chunk=3)
        np.testing.assert_allclose(tiled, value, atol=2e-6)

    def test_false_captions_of_clic_are_in_no_contrast_and_foils_of_units_only_beside_their_unit(self):
        image, text, image_source, (ids, weight), *rest = self.PROBLEM
        without = image, text, image_source, (np.where(weight == 0, -1, ids), weight), *rest
        (_, some), _ = self.loss("clic")
        (value, none), _ = self.loss("clic", without, uni_weight=0.0)
        np.testing.assert_allclose([some["contrastive_loss"], value], none["contrastive_loss"], rtol=1e-6)
        moved = np.where(weight[:, 0] == 0, 3, np.minimum(self.PLACES, 1))  # foils of a place without captions
        (_, apart), _ = self.loss("cs_clip", places=moved)
        (_, bare), _ = self.loss("cs_clip", without, places=moved)
        np.testing.assert_allclose(apart["unit_loss"], bare["unit_loss"], rtol=1e-6)


class TestDistill:
    PROBLEM = hard_problem(10)

    def loss(self, teachers, **options):
        section = {"name": "distill", "teacher_weight": 0.7, "teacher_temperature": 0.5, **options}
        row_sharding = section.pop("row_sharding", None)
        objective = plugins.make("mmjax.objectives", "Objective", section, path="objective", row_sharding=row_sharding)
        (image, text, scale, _), sources = arguments(self.PROBLEM)
        sources = [dataclasses.replace(s, teacher=jnp.float32(t)) for s, t in zip(sources, teachers, strict=True)]

        def call(image, text, scale, teachers):
            image_source, text_source = (
                dataclasses.replace(s, teacher=t) for s, t in zip(sources, teachers, strict=True)
            )
            return objective(image, text, image_source=image_source, text_source=text_source, scale=scale)

        return jax.jit(jax.value_and_grad(call, argnums=(0, 1, 2, 3), has_aux=True))(
            image, text, scale, [jnp.float32(t) for t in teachers]
        )

    def teachers(self, width=3):
        random = np.random.default_rng(2)
        rows = [random.normal(size=(len(side), width)) for side in self.PROBLEM[:2]]
        rows = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in rows]
        rows[0][1], rows[1][[2, 3]] = 0, 0  # unknown
        return rows

    def test_rows_and_columns_equal_the_equation_and_the_teacher_has_no_gradient(self):
        teachers, sides = self.teachers(), reference.Sides(*self.PROBLEM[:5])

        def wanted(image, text, scale):
            moved = sides.move(image, text, scale)
            return reference.clip(moved) + 0.7 * reference.divergence(moved, *teachers, temperature=0.5)

        (value, _), gradients = self.loss(teachers)
        values = self.PROBLEM[0], self.PROBLEM[1], self.PROBLEM[4]
        np.testing.assert_allclose(value, wanted(*values), atol=1e-5)
        for a, b in zip(gradients, reference.numeric_gradient(wanted, values), strict=False):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert not any(np.any(g) for g in gradients[3])
        (tiled, _), _ = self.loss(teachers, impl="chunked", chunk=3)
        np.testing.assert_allclose(tiled, value, atol=2e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("impl", ["chunked", "ring"])
    def test_eight_devices_equal_one(self, impl, monkeypatch):
        monkeypatch.setattr(self.__class__, "PROBLEM", hard_problem(16))
        teachers = self.teachers()
        (value, metrics), gradients = self.loss(teachers)
        (spread, measured), spread_gradients = self.loss(
            teachers, impl=impl, chunk=3, row_sharding=batch_sharding(make_mesh(MeshConfig()))
        )
        np.testing.assert_allclose(spread, value, atol=2e-6)
        np.testing.assert_allclose(measured["teacher_divergence"], metrics["teacher_divergence"], atol=2e-6)
        for a, b in zip(jax.tree.leaves(spread_gradients), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        assert metrics["teacher_divergence"] > 0.01

    def test_a_student_that_is_its_teacher_has_no_divergence(self):
        (value, metrics), _ = self.loss(self.PROBLEM[:2], teacher_temperature=float(1 / self.PROBLEM[4]))
        np.testing.assert_allclose(metrics["teacher_divergence"], 0, atol=1e-6)
        np.testing.assert_allclose(value, metrics["contrastive_loss"], atol=1e-6)


class TestFscl:
    GROUPS = np.array([3, 8, 3, -1, 8], np.int32)
    """By example."""

    def loss(self, problem, groups, **options):
        objective = plugins.make("mmjax.objectives", "Objective", {"name": "fscl", **options}, path="objective")
        (image, text, scale, _), sources = arguments(problem)
        sources = [
            dataclasses.replace(s, group=jnp.where(s.ids[:, 0] >= 0, jnp.asarray(groups)[s.ids[:, 0]], -1))
            for s in sources
        ]

        def call(image, text):
            sources_ = {"image_source": sources[0], "text_source": sources[1]}
            return objective(image, text, **sources_, scale=scale)[0]

        return jax.jit(jax.value_and_grad(call, argnums=(0, 1)))(image, text)

    @pytest.mark.parametrize("group_norm", [True, False])
    def test_several_groups_equal_the_equations(self, group_norm):
        problem = hard_problem(8)
        groups = [np.where(ids[:, 0] >= 0, self.GROUPS[ids[:, 0]], -1) for ids, _ in problem[2:4]]
        sides = reference.Sides(*problem[:5])

        def loss(image, text):
            return reference.fscl(sides.move(image, text, problem[4]), *groups, group_norm=group_norm)

        value, gradients = self.loss(problem, self.GROUPS, group_norm=group_norm)
        np.testing.assert_allclose(value, loss(*problem[:2]), atol=1e-5)
        for a, b in zip(gradients, reference.numeric_gradient(loss, problem[:2]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_names_of_groups_do_not_matter_and_unknown_ones_have_no_influence(self):
        problem = hard_problem(8)
        value, gradients = self.loss(problem, self.GROUPS)
        renamed, _ = self.loss(problem, np.array([8, 3, 8, -1, 3], np.int32))
        np.testing.assert_allclose(renamed, value, rtol=1e-6)
        for (ids, _), gradient in zip(problem[2:4], gradients, strict=True):
            assert np.any(np.asarray(gradient)) and not np.any(np.asarray(gradient)[ids[:, 0] == 3])
