"""Every way to hold the matrix of logits gives the same loss, metrics and gradients, on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.types import Provenance
from mmjax.objectives import contrastive, sigmoid
from mmjax.objectives.common import base
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from support import objectives_reference as reference
from support.objective_problems import arguments, computing, problem

MODULES = {"contrastive": contrastive, "sigmoid": sigmoid}


@functools.cache
def dense(name, **options):
    """The whole matrix's function of ``arguments``, compiled once for each shape."""
    return jax.jit(computing(MODULES[name].Objective(impl="dense", **options)))


names = pytest.mark.parametrize("name", MODULES)


@functools.cache
def rows_of(data, fsdp=1, tensor=1):
    devices = jax.devices()[: data * fsdp * tensor]
    return batch_sharding(make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices=devices))


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


def assert_equal(got, want, *, rtol=1e-6):
    """Loss, metrics, and each gradient by its norm; that by the bias may be no more than rounding."""
    (value, metrics), gradients = got
    (wanted, wanted_metrics), wanted_gradients = want
    np.testing.assert_allclose(value, wanted, rtol=rtol)
    for name, metric in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], metric, rtol=rtol, err_msg=name)
    for name, a, b in zip(("image", "text", "scale", "bias"), gradients, wanted_gradients, strict=True):
        difference = norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        assert difference <= rtol * norm(b) + 1e-7 * norm(wanted_gradients), (name, difference / norm(b))


def by_reference(name, problem_):
    """The float64 loss and gradients; metrics are compared with the whole matrix's."""
    image, text, (ii, iw), (ti, tw), scale, bias = problem_
    mass = reference.source_mass(ii, iw.astype(np.float64), ti, tw.astype(np.float64))
    value, slope, logits = getattr(reference, name)(image, text, mass, ii[:, 0] >= 0, ti[:, 0] >= 0, scale, bias)
    by_scale = (slope * (logits - bias) / scale).sum()
    return (value, {}), (scale * slope @ text, scale * slope.T @ image, by_scale, slope.sum())


@names
@pytest.mark.parametrize(("chunk", "k"), [(1, 1), (4, 2), (5, 3), (100, 2)])
def test_tiles_equal_the_reference_and_the_whole_matrix(name, chunk, k):
    """Of 13 images and 22 texts, so that no chunk but the last divides."""
    chunked = jax.jit(computing(MODULES[name].Objective(impl="chunked", chunk=chunk)))
    for seed in range(4):
        p = problem(seed, n=13, m=22, k=k)
        got = chunked(*arguments(p))
        assert_equal(got, by_reference(name, p), rtol=2e-6)
        assert_equal(got, dense(name)(*arguments(p)))
        assert got[0][1].keys() == dense(name)(*arguments(p))[0][1].keys()


@names
@pytest.mark.parametrize("impl", ["chunked", "ring"])
@pytest.mark.parametrize(
    "mesh",
    [(1,), *(pytest.param(one, marks=pytest.mark.slow) for one in [(2,), (4,), (2, 4)]), (8,), (2, 2, 2)],
    ids=str,
)
def test_on_any_mesh(name, impl, mesh):
    """Rows over both axes, copies over the third; each device has several tiles, which do not divide its rows."""
    rows = rows_of(*mesh)
    spread = jax.jit(computing(MODULES[name].Objective(impl=impl, chunk=3, row_sharding=rows)))
    for seed in range(2):
        p = problem(seed, n=32, m=80)
        values, sources = arguments(p)
        placed = (*(jax.device_put(z, rows) for z in values[:2]), *values[2:])
        got = spread(placed, jax.device_put(sources, rows))
        assert_equal(got, dense(name)(values, sources))
        assert_equal(got, by_reference(name, p), rtol=2e-6)


@names
@pytest.mark.parametrize("impl", ["chunked", "ring"])
def test_rows_that_do_not_divide_over_the_devices_and_masked_partners(name, impl):
    """Together, for a compilation less: neither changes what the other does."""
    make = functools.partial(MODULES[name].Objective, targets="identity", mask_partners=True)
    spread = jax.jit(computing(make(impl=impl, chunk=2, row_sharding=rows_of(4))))
    p = arguments(problem(5, n=11, m=18))
    masked = dense(name, targets="identity", mask_partners=True)(*p)
    assert_equal(spread(*p), masked)
    assert masked[0][0] < 0.99 * dense(name, targets="identity")(*p)[0][0]


@names
def test_large_logits_and_rows_without_a_positive(name):
    """Tiles whose largest logits are hundreds apart; then nobody has a positive."""
    chunked = jax.jit(computing(MODULES[name].Objective(impl="chunked", chunk=4)))
    image, text, (ii, iw), (ti, tw), _, bias = problem(2, n=12, m=16)
    steep = arguments((image, text, (ii, iw), (ti, tw), 400.0, bias))
    assert_equal(chunked(*steep), dense(name)(*steep), rtol=1e-4)  # a logit of 400 is rounded to 3e-5
    nobody = arguments((image, text, (ii, 0 * iw), (ti, 0 * tw), 3.0, bias))
    assert_equal(chunked(*nobody), dense(name)(*nobody))
    assert all(np.isfinite(g).all() for g in chunked(*nobody)[1])


def test_a_tie_across_tiles_is_no_miss():
    same = jnp.ones((8, 4)) / 2
    source = Provenance.from_ids(jnp.arange(8, dtype=jnp.int32))
    call = contrastive.Objective(impl="chunked", chunk=2)
    loss, metrics = call(same, same, image_source=source, text_source=source, scale=jnp.float32(10))
    np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)
    assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 1


@pytest.mark.parametrize(("name", "impl"), [("contrastive", "ring"), ("sigmoid", "chunked")])
def test_several_losses_of_other_rows_in_one_program(name, impl):
    """As views use it: with a factor, with rows of another number, and with gradients that add up."""
    rows = rows_of(2, 2)
    values, sources = arguments(problem(0, n=8, m=16))
    more = arguments(problem(1, n=16, m=8))[1]

    def total(objective, image, text, scale, bias):
        call = functools.partial(objective, scale=scale, bias=bias)
        clean, _ = call(image, text, image_source=sources[0], text_source=sources[1])
        view, _ = call(jnp.sin(text), jnp.cos(image), image_source=more[0], text_source=more[1])
        return clean + 0.3 * view

    want, got = (
        jax.jit(jax.grad(functools.partial(total, objective), argnums=(0, 1, 2, 3)))(*values)
        for objective in (
            MODULES[name].Objective(impl="dense"),
            MODULES[name].Objective(impl=impl, chunk=3, row_sharding=rows),
        )
    )
    assert_equal(((0, {}), got), ((0, {}), want))


def compiled(objective, n, *, d=16):
    """Value and gradients for ``n`` pairs, where the objective's rows are."""
    rows = objective.row_sharding or NamedSharding(rows_of(1).mesh, PartitionSpec())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=rows)
    z = shape((n, d), jnp.float32)
    one = jax.ShapeDtypeStruct((), jnp.float32)
    source = Provenance(ids=shape((n, 2), jnp.int32), weight=shape((n, 2), jnp.float32))
    return jax.jit(computing(objective)).lower((z, z, one, one), (source, source)).compile()


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


@names
def test_chunked_memory_grows_with_the_batch_and_not_its_square(name):
    objective = MODULES[name].Objective(impl="chunked", chunk=128)
    small, large = (compiled(objective, n) for n in (2048, 8192))
    assert temporaries(large) < 8192 * 8192 * 4 / 30
    assert temporaries(large) - temporaries(small) < 6 * (8192 - 2048) * 4 * 2 * (16 + 8)
    assert "8192,8192" not in large.as_text()


@names
def test_ring_memory_a_device_is_that_of_its_rows(name):
    """However many devices there are; and embeddings only ever move to the next one."""
    sizes = []
    for devices in (2, 8):
        program = compiled(MODULES[name].Objective(impl="ring", chunk=32, row_sharding=rows_of(devices)), 64 * devices)
        sizes.append(temporaries(program))
        assert not re.search(r"all-gather|all-to-all|reduce-scatter", program.as_text())
        assert "collective-permute" in program.as_text()
    assert max(sizes) <= 1.02 * min(sizes)


@names
def test_ring_sends_what_it_has_before_it_computes(name):
    """No transfer within a hop takes what the hop's products gave: they can run side by side."""
    objective = MODULES[name].Objective(impl="ring", chunk=32, row_sharding=rows_of(2))
    values, sources = arguments(problem(0, n=64, m=64))
    jaxpr = jax.make_jaxpr(computing(objective))(values, sources)
    hops = [body for body in bodies(jaxpr.jaxpr) if any(eqn.primitive.name == "ppermute" for eqn in body.eqns)]
    loops = [body for body in hops if any(eqn.primitive.name == "dot_general" for eqn in body.eqns)]
    assert len(loops) == (2 if name == "contrastive" else 1)
    for body in loops:
        found = set()  # by this hop's products, or with their help
        for eqn in body.eqns:
            waits = any(id(v) in found for v in eqn.invars)
            assert not (waits and eqn.primitive.name == "ppermute")
            if waits or eqn.primitive.name == "dot_general":
                found |= {id(v) for v in eqn.outvars}
        assert any(id(v) in found for v in body.outvars)


def bodies(jaxpr):
    """This and all inner ones."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from bodies(inner)


class TestAuto:
    @names
    def test_it_says_what_it_takes(self, name):
        make = MODULES[name].Objective
        side = int(base.DENSE_PAIRS**0.5)
        assert make().choose_impl(side, side) == "dense"
        assert make().choose_impl(side, side + 1) == "chunked"
        assert make().choose_impl(8 * side, side, 8) == "dense"
        assert make().choose_impl(8 * side + 1, side, 8) == "ring"
        assert make(row_sharding=rows_of(2, 4)).choose_impl(8 * side, side) == "dense"
        assert make(row_sharding=rows_of(2, 4)).choose_impl(8 * side, side + 1) == "ring"
        assert make(row_sharding=rows_of(1)).choose_impl(8 * side, side) == "chunked"
        assert make(impl="chunked").choose_impl(2, 2, 8) == "chunked"

    @names
    def test_it_takes_what_it_says(self, name, monkeypatch):
        monkeypatch.setattr(base, "DENSE_PAIRS", 256)
        make = functools.partial(MODULES[name].Objective, chunk=8)
        for rows, n, square in ((None, 16, True), (None, 32, False), (rows_of(4), 32, True)):
            text = str(jax.make_jaxpr(computing(make(row_sharding=rows)))(*arguments(problem(0, n=n, m=n))))
            assert (f"f32[{n},{n}]" in text) == square
        text = str(jax.make_jaxpr(computing(make(row_sharding=rows_of(4))))(*arguments(problem(0, n=64, m=64))))
        assert "ppermute" in text and "f32[64,64]" not in text


def test_a_chunk_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.chunk=0"):
        plugins.make("mmjax.objectives", "Objective", {"name": "contrastive", "chunk": 0}, path="objective")


def test_the_row_sharding_is_no_key_of_a_config():
    make = functools.partial(plugins.make, "mmjax.objectives", "Objective", path="objective", row_sharding=rows_of(2))
    assert make({"name": "contrastive", "impl": "ring"}).row_sharding is rows_of(2)
    with pytest.raises(ConfigError, match=r"objective\.row_sharding=.*unknown key"):
        make({"name": "contrastive", "row_sharding": None})
