"""Towers run on micro-batches compute what they would on the whole batch, and keep no more than one micro-batch."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.models.config import TextConfig
from mmjax.models.text import TextTower
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from mmjax.parallel.sharding import batch_shardings, parameter_shardings
from mmjax.planning.abstract_data import batch_shapes, resolve_without_data
from mmjax.program import collectives
from mmjax.program.hlo import Module
from mmjax.train.micro_batches import MicroBatches
from mmjax.train.program import Program
from mmjax.train.step import make_loss, merge
from support import tiny
from support.clip_models import random_params

DEEP = {
    "model__vision_cfg__layers": 2,
    "model__text_cfg__layers": 2,
}  # blocks in a loop within the loop of micro-batches
PLAIN = {"model__vision_cfg__stem": "patch", "model__vision_cfg__stem_widths": ()}  # compiles faster


def program(*, devices=1, captions=1, negatives=1, **overrides):
    rows = {"data__captions_per_image": captions, "data__negatives_per_image": negatives}
    experiment, _ = resolve_without_data(
        tiny.experiment(**{"batch_size": 32} | DEEP | PLAIN | rows | overrides), shards=devices
    )
    return Program(experiment, devices=jax.devices()[:devices])


def made_up(shapes, *, captions=1, seed=0):
    """A batch of these shapes: mixes of two sources, sources that repeat, negatives of zero weight, padding."""
    random = np.random.default_rng(seed)
    n, m = len(shapes.image_source.ids), len(shapes.text_source.ids)
    ids, weight = random.integers(0, n - 4, (n, 2)), random.dirichlet((1, 1), n)
    text_ids, text_weight = (np.repeat(x, m // n, axis=0).reshape(n, m // n, 2) for x in (ids, weight))
    text_weight[:, captions:] = 0
    ids[-1], weight[-1], text_ids[-1], text_weight[-1] = -1, 0, -1, 0
    tokens = random.integers(3, 60, shapes.tokens.shape)
    length = random.integers(2, tokens.shape[1], (m, 1))
    place = np.arange(tokens.shape[1])
    tokens = np.where(place < length, tokens, np.where(place == length, 2, 0))
    source = lambda ids, weight: Provenance(ids=ids.astype(np.int32), weight=weight.astype(np.float32))  # noqa: E731
    return dataclasses.replace(
        shapes,
        images={k: random.integers(0, 256, x.shape).astype(np.uint8) for k, x in shapes.images.items()},
        tokens=tokens.astype(np.int32),
        image_source=source(ids, weight),
        text_source=source(text_ids.reshape(m, 2), text_weight.reshape(m, 2)),
    )


def computed(program, *, micro_batches, captions=1):
    """Loss and metrics, all gradients, those of the augmentations' parameters too, and the program."""
    loss = make_loss(
        program.graph,
        objective=program.objective,
        augmentations=program.augmentations,
        micro_batches=dataclasses.replace(program.micro_batches, number=micro_batches),
    )
    [drop_rates] = program.augmentations.drop_rate_combinations
    batch = made_up(batch_shapes(program.experiment), captions=captions)
    batch = jax.device_put(batch, batch_shardings(batch, program.mesh))
    whole = replicated(program.mesh)
    params = random_params(program.abstract_state.params) | {"logit_scale": jnp.log(jnp.float32(10))}
    learned = {name: own.params for name, own in program.initialize_augmentations().items()}
    call = jax.jit(jax.value_and_grad(functools.partial(loss, drop_rates=drop_rates), argnums=(0, 1), has_aux=True))
    arguments = *jax.device_put((params, learned), whole), batch, jax.device_put(np.int32(3), whole)
    compiled = call.lower(*arguments).compile()
    return (*jax.device_get(compiled(*arguments)), compiled.as_text())


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


def assert_equal(got, want, *, rtol=1e-6, learned=1e-6):
    """Loss and each gradient by its norm; one that is zero but for rounding, like a key's bias, by the whole's.

    Those of augmentations' own parameters to ``learned``.
    """
    (value, _), gradients, _ = got
    (wanted, _), wanted_gradients, _ = want
    np.testing.assert_allclose(value, wanted, rtol=rtol)
    whole, compared = norm(wanted_gradients), 0
    for (path, b), a in zip(
        jax.tree_util.tree_leaves_with_path(wanted_gradients), jax.tree.leaves(gradients), strict=True
    ):
        difference = norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        allowed = (learned if path[0].idx else rtol) * norm(b) + 1e-7 * whole
        assert difference <= allowed, (jax.tree_util.keystr(path), difference / norm(b))
        compared += norm(b) > 1e-3 * whole
    assert compared > 20


DECODER = {"width": 24, "heads": 2, "layers": 2, "cross_mlp": False, "inputs": "ids"}
OBJECTIVES = {
    "contrastive": {},
    "sigmoid": {"model__init_logit_bias": -2.0},
    "caption": {"model__decoder": DECODER},
}


@functools.cache
def whole(objective):
    return computed(program(objective={"name": objective, "impl": "dense"}, **OBJECTIVES[objective]), micro_batches=1)


EACH = [
    ("contrastive", "dense", 4, 4),
    ("contrastive", "ring", 2, 8),
    ("sigmoid", "chunked", 4, 1),
]
CAPTION = [("caption", "dense", micro_batches, devices) for micro_batches, devices in ((2, 8), (4, 1), (1, 8))]
EVERY = [
    (objective, impl, micro_batches, devices)
    for objective in ("contrastive", "sigmoid")
    for impl in ("dense", "chunked", "ring")
    for micro_batches in (1, 2, 4)
    for devices in (1, 2, 4, 8)
]


@pytest.mark.parametrize(
    ("objective", "impl", "micro_batches", "devices"),
    [*EACH, *(pytest.param(*one, marks=pytest.mark.slow) for one in EVERY + CAPTION if one not in EACH)],
)
def test_micro_batches_equal_the_whole_batch_on_one_device(objective, impl, micro_batches, devices):
    """Loss and all gradients, with sources of two examples, negatives, and a chunk that does not divide."""
    section = {"name": objective, "impl": impl, "chunk": 5}
    spread = program(objective=section, devices=devices, **OBJECTIVES[objective])
    got = computed(spread, micro_batches=micro_batches)
    assert_equal(got, whole(objective), rtol=5e-6 if objective == "caption" else 1e-6)  # a decoder rounds once more
    for line in got[2].splitlines():
        # Between devices go gradients, and the rows that the loss compares: none of pixels or tokens.
        if re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", line):
            assert not re.search(r"\[(?!1,)\d+,\d+,\d+", line), line


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_gradients_go_between_devices_once_a_step(sizes, monkeypatch):
    """Four micro-batches send what one sends: no loop over them sends anything but Megatron's sums."""
    monkeypatch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 1)
    mesh = make_mesh(MeshConfig(**sizes))
    rows = batch_sharding(mesh)
    config = TextConfig(context_length=8, vocab_size=16, width=16, heads=2, layers=6, eos_id=2, pad_id=0)
    options = {"embed_dim": 16, "scan": True, "remat": "full", "matmul_precision": "full", "dtype": jnp.float32}
    graph, state = nnx.split(TextTower(config, row_sharding=rows, rngs=nnx.Rngs(0), **options))
    params = nnx.to_pure_dict(state)
    places = parameter_shardings(params, mesh)
    ids = np.random.default_rng(0).integers(3, 16, (64, 8)).astype(np.int32)

    def loss(params, ids, number):
        spread = MicroBatches(number=number, row_sharding=rows, param_shardings=places)
        pooled = spread.map(
            lambda tower, ids: tower.pool(ids=ids, tokens=tower.embed(ids)), merge(graph, params), ids, count=64
        )
        return jnp.mean(pooled[:, 0] * pooled[::-1, 1])

    gradients, sent = {}, {}
    for number in (1, 4):
        call = jax.jit(jax.grad(loss), static_argnums=2, in_shardings=(places, rows), out_shardings=places)
        compiled = call.lower(params, ids, number).compile()
        gradients[number] = jax.device_get(compiled(params, ids))
        found = collectives.collectives(Module(compiled.as_text()), devices=8)
        found = [one for one in found if collectives.mesh_axes(one, mesh.shape) != "tensor"]
        sent[number] = sum(one.times * one.sent for one in found)
    assert 0 < sent[4] <= 1.05 * sent[1]
    assert all(one.times == 1 for one in found), found
    whole = norm(gradients[1])
    for got, want in zip(*map(jax.tree.leaves, gradients.values()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * whole)


def with_and_without(augment, *, micro_batches=4, devices=1, captions=1, **overrides):
    made = program(augment=augment, captions=captions, devices=devices, **overrides)
    return computed(made, micro_batches=micro_batches, captions=captions), computed(
        made, micro_batches=1, captions=captions
    )


@pytest.mark.slow
def test_views_at_every_kind_of_tap_and_tokens_that_are_dropped():
    """Of two modalities and two captions: pixels and tokens of both sides go on in micro-batches from their taps."""
    augment = (
        ("mixup", {"tap": "input", "sides": "both"}), ("xmda", {"sides": "both"}),
        ("patch_dropout", {"drop_rate": 0.5}), ("token_dropout", {"drop_rate": 0.5}),
    )  # fmt: skip
    got, want = with_and_without(augment, devices=2, captions=2, data__modalities=("image", "depth"))
    assert_equal(got, want)
    for name, value in want[0][1].items():
        if not name.endswith("_sd"):  # the root of a rounding error
            assert got[0][1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("tap", [None, "tokens@1"])
def test_every_augmentation_in_micro_batches(tap):
    """At its own tap, and those that can be in the middle of the towers there; on as many devices.

    An adversary's gradient at the tokens is ill-conditioned: on eight devices, in one micro-batch, it differs by 1e-4
    from that on one.
    """
    middle = {name: {"tap": tap} for name in ("mixup", "xmda", "tmmda")} | {"lemda": {"tap": tap, "kind": "attention"}}
    names = [name for name in plugins.names("mmjax.augment") if name != "modality_dropout"]  # which needs gates
    augment = tuple((name, middle.get(name, {}) if tap else {}) for name in names)
    for devices in (1, 8):
        assert_equal(*with_and_without(augment, devices=devices), learned=5e-4 if tap else 1e-6)


def test_rows_keep_their_order_whatever_is_made_of_them():
    """Of rows in one or several batches, to the same number, to more batches, and to none."""
    x, y = jnp.arange(24.0).reshape(12, 2), jnp.arange(24)

    def f(_, rows):
        x, y = rows
        return {"same": x * 2, "twice": jnp.concatenate([x[:, 0], x[:, 1]]), "other": (y[: len(y) // 2], y)}

    model = nnx.Module()
    for number in (1, 2, 3, 4, 6, 12):
        # In whole batches of 12 the two halves of y are rows of their own.
        got = MicroBatches(number=number).map(f, model, (x, y), count=12)
        jax.tree.map(np.testing.assert_array_equal, got, f(model, (x, y)))
        if 12 % (2 * number) == 0:
            spread = MicroBatches(
                number=number, row_sharding=batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()[:2]))
            )
            got = jax.jit(lambda rows, spread=spread: spread.map(f, model, rows, count=12))((x, y))
            jax.tree.map(np.testing.assert_array_equal, got, f(model, (x, y)))
    with pytest.raises(ValueError, match="12 rows on 1 devices do not divide into 5 micro-batches"):
        MicroBatches(number=5).map(f, model, (x, y), count=12)


@pytest.mark.parametrize(("dtype", "second"), [(None, 258), (jnp.bfloat16, 256)])
def test_gradients_are_summed_in_the_type_of_parameters_and_sent_in_another(dtype, second):
    """256 + 1 + 1 is 256 in bfloat16 one after the other, and 258 if only the sum is rounded; 257 is sent as 256."""
    model = nnx.Module()
    model.kernel = nnx.Param(jnp.zeros(2))
    x = jnp.asarray([[256, 256], [1, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]], jnp.float32)
    rows = batch_sharding(make_mesh(MeshConfig(), devices=jax.devices()[:2]))
    spread = MicroBatches(number=4, row_sharding=rows, gradient_dtype=dtype)
    graph, state = nnx.split(model)

    def loss(params):
        model = merge(graph, params)
        return jnp.sum(spread.map(lambda model, x: x * model.kernel[...], model, x, count=8))

    [gradient] = jax.tree.leaves(jax.jit(jax.grad(loss))(nnx.to_pure_dict(state)))
    assert gradient.dtype == jnp.float32 and gradient.tolist() == [258, second]


def test_each_micro_batch_is_computed_again_and_one_is_kept():
    kernels = jnp.ones((6, 32, 32)) / 40

    class Layers(nnx.Module):
        def __init__(self, kernels):
            self.kernels = nnx.Param(kernels)

    def f(layers, x):
        for kernel in layers.kernels[...]:
            x = jnp.tanh(x @ kernel)
        return x

    def value(kernels, x, micro_batches):
        return jnp.sum(MicroBatches(number=micro_batches).map(f, Layers(kernels), x, count=len(x)) ** 2)

    shape = jax.ShapeDtypeStruct((4096, 32), jnp.float32)
    kept = {}
    for micro_batches in (1, 4, 16):
        lowered = jax.jit(jax.grad(value), static_argnums=2).lower(kernels, shape, micro_batches)
        kept[micro_batches] = lowered.compile().memory_analysis().temp_size_in_bytes
    layer = 4096 * 32 * 4
    assert kept[1] > 6 * layer and kept[4] < 0.7 * kept[1] and kept[16] < kept[4]
    x = jax.random.normal(jax.random.key(0), (64, 32))
    one, four = (jax.jit(jax.grad(value), static_argnums=2)(kernels, x, micro_batches) for micro_batches in (1, 4))
    np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"micro_batches": 0}, r"micro_batches=0: must be at least 1"),
        ({"micro_batches": 3}, r"micro_batches=3: does not divide the 8 examples of batch_size=32 .*: 24, 36"),
        ({"micro_batches": 16}, r"micro_batches=16: does not divide the 8 examples .*: 64"),
    ],
)
def test_micro_batches_that_do_not_divide_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        program(devices=4, **overrides)


def test_what_is_computed_again_is_no_work_of_the_model():
    one, four = (program(micro_batches=micro_batches) for micro_batches in (1, 4))
    assert one.count_flops(batch_shapes(one.experiment)) == four.count_flops(batch_shapes(four.experiment))
