"""The CTC objective: its loss in float64, which rows and examples count, and what cannot be trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.objectives.common.tower_tokens import LabelTable, TowerTokens
from mmjax.objectives.ctc import Objective
from mmjax.train.micro_batches import MicroBatches
from mmjax.train.program import check_modules
from support import clip_models
from support.ctc_reference import forward_backward

BLANK, FRAMES = 4, 7
LENGTHS = np.array([7, 5, 3, 4, 6, 7, 2, 7])
LABELS = [[0, 1, 2], [3], [1, 1], [2, 2, 1], [], [0, 0, 3, 3], [1, 2], [3, 2, 1, 0]]
SPELLED = [0, 1, 2, 3, 5, 6, 7]  # row 4 has no labels
IDS = np.arange(8, dtype=np.int32) * 10
TABLE = np.array([[*labels, *[-1] * (5 - len(labels))] for labels in LABELS], np.int32)
VALID = np.arange(FRAMES) < LENGTHS[:, None]
LOGITS = np.random.default_rng(5).normal(0, 2, (8, FRAMES, BLANK + 1)).astype(np.float32)
# Clean rows, and those of a mixup: rows i and i ^ 1 are partners.
CLEAN = Provenance.from_ids(jnp.asarray(IDS))
RATIO = np.array([0.75, 0.25, 0.5, 0.5, 1.0, 0.0, 0.125, 0.875], np.float32)
MIXED = Provenance(
    ids=jnp.asarray(np.stack([IDS, IDS[[1, 0, 3, 2, 5, 4, 7, 6]]], 1)),
    weight=jnp.asarray(np.stack([RATIO, 1 - RATIO], 1)),
)


class Recognizer(nnx.Module):
    """Classes are the features themselves, but for a matrix that is learned."""

    blank = BLANK

    def __init__(self):
        self.kernel = nnx.Param(jnp.eye(BLANK + 1))

    def __call__(self, tokens):
        return tokens @ self.kernel[...]


class Model(nnx.Module):
    def __init__(self):
        self.recognizer = Recognizer()


def tower_tokens(image, valid=VALID, *, table=TABLE, ids=IDS, split=None):
    model = Model()
    split = split or MicroBatches()
    unused = jnp.zeros((8, 1), jnp.int32)
    return TowerTokens(
        image=image, text=unused, ids=unused, valid=unused, blended=False, examples=8, model=model,
        map=lambda f, rows: split.map(f, model, rows, count=8), key=jax.random.key(0), image_valid=jnp.asarray(valid),
        labels=LabelTable(jnp.asarray(ids), jnp.asarray(table)),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("objective", "micro_batches"))
def run(logits, valid, table, ids, source, *, objective, micro_batches):
    def loss(logits):
        split = MicroBatches(number=micro_batches)
        return objective.ctc_loss(tower_tokens(logits, valid, table=table, ids=ids, split=split), source)

    return jax.value_and_grad(loss, has_aux=True)(logits)


def compute(source, objective=None, *, valid=VALID, table=TABLE, ids=IDS, logits=LOGITS, micro_batches=1):
    """Value, fraction left out, and gradient by the logits."""
    options = {"objective": objective or Objective(), "micro_batches": micro_batches}
    (value, left_out), gradient = run(logits, valid, table, ids, source, **options)
    return float(value), float(left_out), np.asarray(gradient)


def reference(parts):
    """The same of (row, its example, weight)."""
    value, gradient, count = 0.0, np.zeros(LOGITS.shape), 0.0
    for row, example, weight in parts:
        if example not in SPELLED or len(LABELS[example]) + sum(np.diff(LABELS[example]) == 0) > LENGTHS[row]:
            continue
        own = slice(LENGTHS[row])
        each, slope = forward_backward(LOGITS[row, own].astype(np.float64), LABELS[example], BLANK)
        value, count = value + weight * each, count + weight * len(LABELS[example])
        gradient[row, own] += weight * slope
    return value / count, gradient / count


def test_the_loss_of_clean_rows_is_that_of_float64_in_nats_a_label():
    value, left_out, gradient = compute(CLEAN)
    expected, slope = reference((i, i, 1.0) for i in range(8))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)
    np.testing.assert_allclose(left_out, 1 / 8, rtol=1e-6)


def test_a_mixed_row_has_the_loss_of_each_of_its_examples_by_its_part():
    value, left_out, gradient = compute(MIXED)
    parts = [(i, j, w) for i in range(8) for j, w in ((i, RATIO[i]), (i ^ 1, 1 - RATIO[i]))]
    expected, slope = reference(parts)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)
    # Row 4 is wholly its own, without labels, and row 5 wholly row 4's; rows 2 and 6 have too few frames for a partner.
    np.testing.assert_allclose(left_out, (2 + 0.5 + 0.875) / 8, rtol=1e-6)


def test_rows_that_cannot_be_spelled_add_neither_loss_nor_gradient():
    lengths = np.array([2, 5, 2, 4, 6, 5, 0, 7])  # too short: rows 0, 2 (a blank is missing), 5 and 6
    value, left_out, gradient = compute(CLEAN, valid=np.arange(FRAMES) < lengths[:, None])
    assert 0 < value < 100
    assert np.isfinite(gradient).all()
    assert [i for i in range(8) if gradient[i].any()] == [1, 3, 7]
    np.testing.assert_allclose(left_out, 5 / 8, rtol=1e-6)
    none = compute(CLEAN, table=np.full_like(TABLE, -1))
    assert none[:2] == (0.0, 1.0)
    assert not none[2].any()


def test_padding_and_examples_that_a_gate_leaves_out_do_not_count():
    left = Provenance(ids=CLEAN.ids.at[0, 0].set(-1), weight=CLEAN.weight.at[0, 0].set(0.0))
    value, left_out, gradient = compute(left)
    np.testing.assert_allclose(value, reference((i, i, 1.0) for i in range(1, 8))[0], rtol=1e-5)
    assert not gradient[0].any()
    np.testing.assert_allclose(left_out, 1 / 7, rtol=1e-6)
    elsewhere = compute(Provenance.from_ids(jnp.asarray(IDS + 1)))  # of no example in the batch
    assert elsewhere[:2] == (0.0, 1.0)


def test_examples_of_one_id_have_their_own_labels_and_are_no_partners_where_these_differ():
    ids = np.where(IDS == 70, 0, IDS)  # rows 0 and 7 are recordings of one thing, with other labels
    value, left_out, gradient = compute(Provenance.from_ids(jnp.asarray(ids)), ids=ids)
    expected, slope = reference((i, i, 1.0) for i in range(8))
    np.testing.assert_allclose((value, left_out), (expected, 1 / 8), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)
    pairs = Provenance(ids=jnp.asarray(np.stack([ids, ids[[1, 0, 3, 2, 5, 4, 7, 6]]], 1)), weight=MIXED.weight)
    parts = [(i, j, w) for i in range(8) for j, w in ((i, RATIO[i]), (i ^ 1, 1 - RATIO[i]))]
    value, _, gradient = compute(pairs, ids=ids)
    expected, slope = reference(part for part in parts if part[:2] not in ((1, 0), (6, 7)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)
    same = np.where(np.arange(8)[:, None] == 7, TABLE[0], TABLE)  # with the same labels they are
    others = [
        (6, 0, 1 - RATIO[6]) if part[:2] == (6, 7) else (7, 0, part[2]) if part[:2] == (7, 7) else part
        for part in parts
    ]
    np.testing.assert_allclose(compute(pairs, ids=ids, table=same)[0], reference(others)[0], rtol=1e-5)


def test_eight_devices_and_micro_batches_have_the_same_loss():
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec(("data",)))
    one = compute(MIXED)
    other = compute(MIXED, logits=jax.device_put(LOGITS, rows), table=jax.device_put(TABLE, rows), micro_batches=4)
    np.testing.assert_allclose(other[:2], one[:2], rtol=1e-5)
    np.testing.assert_allclose(other[2], one[2], atol=1e-6)


def test_the_loss_is_the_sum_of_its_terms_and_late_views_have_contrast_alone():
    rows, objective = jnp.eye(8), Objective(ctc_weight=0.5, contrastive_weight=3.0)

    @jax.jit
    def both(logits):
        call = {"image_source": CLEAN, "text_source": CLEAN, "scale": jnp.float32(2)}
        tokens = tower_tokens(logits)
        return [
            objective(rows, rows, **call, tokens=tokens), objective(rows, rows, **call, tokens=None),
            Objective(contrastive_weight=0.0)(rows, rows, **call, tokens=tokens),
            Objective(targets="identity").ctc_loss(tokens, MIXED),
        ]  # fmt: skip

    (value, metrics), (late, fewer), (alone, _), (first, _) = both(LOGITS)
    np.testing.assert_allclose(value, 3 * metrics["contrastive_loss"] + 0.5 * metrics["ctc_loss"], rtol=1e-6)
    np.testing.assert_allclose(late, 3 * metrics["contrastive_loss"], rtol=1e-6)
    assert "ctc_loss" not in fewer
    np.testing.assert_allclose(alone, metrics["ctc_loss"], rtol=1e-6)
    np.testing.assert_allclose(first, alone, rtol=1e-6)  # by identity a mixed row is its first example


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.name='ctc': runs model\.recognizer.*configs/scenes_frames\.py"):
        check_modules(Objective(), clip_models.config(), name="ctc")
    with pytest.raises(ConfigError, match="nothing is left to train"):
        Objective(ctc_weight=0.0, contrastive_weight=0.0)
