"""Where parameters, moments and averages land, by policy and by rule, and what that makes devices send each other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmjax.core import row_sharding
from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import constrain_rows, num_shards
from mmjax.core.state import parameter_paths
from mmjax.experiment import Experiment
from mmjax.models import block_stack
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig
from mmjax.models.text import TextTower
from mmjax.parallel import sharding
from mmjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from mmjax.parallel.sharding import batch_shardings, parameter_shardings, update_shardings
from mmjax.planning import abstract_data
from mmjax.program import collectives
from mmjax.program.hlo import Module
from mmjax.train.program import Program, with_shardings
from support import tiny

P = PartitionSpec
READY = {"model__text_cfg__vocab_size": 40, "model__text_cfg__pad_id": 0, "model__text_cfg__eos_id": 2}
CONFIG = ClipConfig(
    embed_dim=24,
    vision_cfg=VisionConfig(
        image_size=32, width=32, head_width=8, layers=3, pool_type="map", class_token=False, qk_norm=True
    ),
    text_cfg=TextConfig(context_length=8, vocab_size=64, width=24, heads=3, layers=3, eos_id=2, pad_id=0),
)
TOWER = {"matmul_precision": "full", "embed_dim": 24, "scan": True, "remat": "none", "dtype": jnp.float32}


@pytest.fixture(scope="module")
def params():
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Clip(CONFIG, rngs=nnx.Rngs(0)))))


@pytest.fixture
def all_sizes(monkeypatch):
    """Arrays however small are split."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 1)


def specs(params, policy="auto", **sizes):
    found = parameter_shardings(params, make_mesh(MeshConfig(**sizes)), policy=policy)
    return dict(zip(jax.tree.leaves(parameter_paths(params)), (s.spec for s in jax.tree.leaves(found)), strict=True))


def test_fsdp_splits_the_largest_dimension_that_divides_of_large_arrays_only():
    shapes = {
        "stacked": (12, 64, 256),
        "square": (12, 256, 256),
        "odd": (127, 255),
        "second": (8, 4097),
        "blocks/layers": (64, 300, 7),
        "small": (8, 8),
        "scalar": (),
    }
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    wanted = {
        "stacked": P(None, None, "fsdp"),
        "square": P(None, None, "fsdp"),  # a tie goes to the last
        "odd": P(),
        "second": P("fsdp"),
        "blocks/layers": P(None, "fsdp"),
        "small": P(),
        "scalar": P(),
    }
    for policy in ("auto", "fsdp"):
        assert specs(params, policy, data=2, fsdp=4) == wanted
    params["blocks/layers"] = jax.ShapeDtypeStruct((64, 301, 7), np.float32)
    assert specs(params, data=2, fsdp=4)["blocks/layers"] == P()  # never by layers
    for policy, sizes in itertools.product(("auto", "fsdp"), ({"data": 8}, {"tensor": 8, "data": 1})):
        if policy == "fsdp" or "tensor" not in sizes:
            assert set(specs(params, policy, **sizes).values()) == {P()}
    assert set(specs(params, "replicated", data=2, fsdp=2, tensor=2).values()) == {P()}


def test_tensor_is_megatrons_split(params):
    """Of stacked blocks and of a head that is alone; the text tower's three heads stay whole under ``auto``."""
    found = specs(params, fsdp=1, tensor=4, data=2)
    split = {path: spec for path, spec in found.items() if spec != P()}
    heads = {
        f"visual/{part}/{name}": P(*lead, *spec)
        for part, lead in (("blocks", (None,)), ("map_head", ()))
        for name, spec in {
            **{f"attn/{name}/kernel": (None, "tensor") for name in ("query", "key", "value")},
            **{f"attn/{name}/bias": ("tensor",) for name in ("query", "key", "value")},
            "attn/out/kernel": ("tensor",),
        }.items()
    }
    hidden = {
        f"{part}/mlp/{name}": P(*lead, *spec)
        for part, lead in (("visual/blocks", (None,)), ("text/blocks", (None,)), ("visual/map_head", ()))
        for name, spec in {
            "fc1/kernel": (None, "tensor"), "fc1/bias": ("tensor",), "fc2/kernel": ("tensor",)
        }.items()
    }  # fmt: skip
    assert split == heads | hidden
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4: .*3 heads of text/blocks/attn/key/.*'auto'"):
        specs(params, "tensor", data=2, tensor=4)
    assert specs(params["visual"]["map_head"] | {}, "tensor", data=8) == {
        path.removeprefix("visual/map_head/"): P() for path in found if path.startswith("visual/map_head")
    }


def test_auto_is_both_and_fsdp_takes_what_is_left(params, all_sizes):
    found = specs(params, data=2, fsdp=2, tensor=2)
    assert found["visual/blocks/attn/query/kernel"] == P(None, "fsdp", "tensor")
    assert found["visual/blocks/attn/query/bias"] == P(None, "tensor", "fsdp")
    assert found["visual/blocks/attn/out/kernel"] == P(None, "tensor", None, "fsdp")
    assert found["visual/blocks/mlp/fc2/kernel"] == P(None, "tensor", "fsdp")
    assert found["visual/blocks/mlp/fc1/bias"] == P(None, "tensor")  # not over the layers
    assert found["text/blocks/attn/query/kernel"] == P(None, "fsdp")  # three heads
    assert found["text/token_embed/embedding"] == P("fsdp")
    assert found["logit_scale"] == P()


def test_rules_count_in_order_and_leave_the_rest_to_auto(params):
    rules = (
        (".*/mlp/fc1/kernel", (None, "fsdp", "tensor")),
        ("visual/blocks/mlp", "replicated"),
        ("visual/.*attn", "tensor"),
        ("text/token_embed", ("data", None)),
    )
    flat = {"visual/blocks": params["visual"]["blocks"], "text/token_embed": params["text"]["token_embed"]}
    flat["text/blocks"] = params["text"]["blocks"]
    found = specs(flat, rules, data=2, fsdp=2, tensor=2)
    assert found["visual/blocks/mlp/fc1/kernel"] == P(None, "fsdp", "tensor")
    assert found["visual/blocks/mlp/fc1/bias"] == found["visual/blocks/mlp/fc2/kernel"] == P()
    assert found["visual/blocks/attn/out/kernel"] == P(None, "tensor")
    assert found["text/token_embed/embedding"] == P("data")
    assert found["text/blocks/mlp/fc2/kernel"] == P(None, "tensor")


@pytest.mark.parametrize(
    ("rules", "mention"),
    [
        ((("visual/blokcs", "fsdp"),), r"'visual/blokcs' matches no parameter; .*text, visual"),
        ((("visual/blocks/mlp", (None, "tensor")),), r"2 axes, but visual/blocks/mlp/fc1/kernel .*3 dimensions"),
        (((".*fc1/kernel", ("fsdp", None, None)),), r"mesh\.fsdp=4 does not divide 1, .*fc1/kernel"),
        ((("augment/lemda/", "replicated"), ("augment/xmda/", "fsdp")), r"'augment/xmda/' matches no parameter"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, mention):
    given = tiny.experiment(**READY, augment=(("lemda", {}),), mesh={"data": 2, "fsdp": 4, "parameters": rules})
    with pytest.raises(ConfigError, match=rf"mesh\.parameters: .*{mention}"):
        Program(given)


@pytest.mark.parametrize(
    ("parameters", "mention"),
    [
        ("fdsp", r"mesh\.parameters='fdsp': expected .*'fsdp'"),
        ((("visual", "fdsp"),), r"mesh\.parameters="),
        ((("visual", ("fsdp", "model")),), r"mesh\.parameters="),
        ((("visual", ("fsdp", "fsdp")),), r"mesh\.parameters: .*'visual' names an axis twice"),
        ((("visual/(", "fsdp"),), r"mesh\.parameters='visual/\(': not a regular expression"),
    ],
)
def test_a_policy_that_is_none_is_refused_when_the_config_is_read(parameters, mention):
    with pytest.raises(ConfigError, match=mention):
        tiny.experiment(mesh__parameters=parameters)


def test_a_tensor_axis_that_splits_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"mesh\.tensor=8: .*neither the heads nor the hidden units"):
        narrow = {f"model__{tower}_cfg__mlp_ratio": 3 / 16 for tower in ("vision", "text")}
        Program(tiny.experiment(**READY, **narrow, mesh={"data": 1, "tensor": 8}))


def test_zero_splits_the_largest_dimension_that_is_left_over_data(params, all_sizes):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rules = (("text/token_embed", ("data", None)), ("visual/.*fc2", "replicated"))
    lives = parameter_shardings(params, mesh, policy=rules)
    paths = jax.tree.leaves(parameter_paths(params))
    updated = update_shardings(params, lives, optimizer="zero")
    found = dict(zip(paths, (s.spec for s in jax.tree.leaves(updated)), strict=True))
    assert found["visual/blocks/attn/query/kernel"] == P(None, "fsdp", "tensor", "data")
    assert found["visual/blocks/mlp/fc1/bias"] == P(None, "tensor")  # never by layers
    assert found["visual/blocks/mlp/fc2/kernel"] == P(None, "data")
    assert found["text/token_embed/embedding"] == P("data")  # is already
    assert found["logit_scale"] == P()
    assert update_shardings(params, lives, optimizer="parameters") == lives


RULES = ((r"visual/blocks/mlp/fc1/kernel", (None, "tensor", "fsdp")), ("augment/lemda/.*kernel", (None, "data")))


@pytest.mark.parametrize("policy", ["auto", "tensor", "fsdp", "replicated", RULES])
def test_moments_averages_and_augmentations_follow(policy, all_sizes):
    given = tiny.experiment(
        **READY,
        optimizer__ema_decay=0.9,
        optimizer__learning_rate_multipliers=(("text/", 0.0),),
        augment=(("lemda", {}),),
        mesh={"data": 2, "fsdp": 2, "tensor": 2, "parameters": policy},
    )
    again = Experiment.from_dict(given.to_dict())  # as a run folder keeps it
    assert again == given
    state = Program(again).abstract_state
    wanted = {path: leaf.sharding for path, leaf in flat(state.params)}
    for place in (state.ema_params, state.opt_state, state.augment["lemda"].opt_state):
        own = wanted if place is not state.augment["lemda"].opt_state else of_augment(state)
        moments = [(path, leaf) for path, leaf in flat(place) if leaf.ndim]
        assert moments
        for path, leaf in moments:
            name = next(name for name in own if path.endswith(name))
            assert leaf.sharding == own[name], path
            leaf.sharding.shard_shape(leaf.shape)  # raises where it does not divide
    over = {axis for _, leaf in flat(state) for axis in leaf.sharding.spec if axis is not None}
    assert over == {"auto": {"fsdp", "tensor"}, "replicated": set(), RULES: {"data", "fsdp", "tensor"}}.get(
        policy, {policy}
    )
    learned = {axis for s in of_augment(state).values() for axis in s.spec if axis}
    assert learned == {"auto": {"fsdp"}, "fsdp": {"fsdp"}, RULES: {"fsdp", "data"}}.get(policy, set())


def flat(tree):
    return [
        (jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def of_augment(state):
    return {path: leaf.sharding for path, leaf in flat(state.augment["lemda"].params)}


class TestRows:
    @staticmethod
    def lowered(given, devices=8):
        program = Program(given, devices=jax.devices()[:devices])
        batch = abstract_data.batch_shapes(given)
        return program.trace(with_shardings(batch, batch_shardings(batch, program.mesh))).lower()

    def test_of_a_number_that_divides_are_spread(self):
        rows = Program(tiny.experiment(**READY, mesh={"data": 2, "fsdp": 2, "tensor": 2})).row_sharding
        assert num_shards(rows) == 4
        made = jax.jit(lambda x: constrain_rows(x, rows))
        assert made(np.ones((8, 3))).sharding.spec == rows.spec
        assert made(np.ones((6, 3))).sharding.is_fully_replicated
        assert constrain_rows(rows, None) is rows

    def test_one_device_has_no_constraints(self):
        given = tiny.experiment(**READY, mesh__data=1)
        assert "sharding_constraint" not in self.lowered(given, devices=1).as_text()
        assert "sharding_constraint" in self.lowered(tiny.experiment(**READY), devices=8).as_text()

    @pytest.mark.parametrize(
        ("sizes", "platform"),
        [
            ({"data": 1, "fsdp": 8}, "cpu"),
            ({"data": 1, "fsdp": 4, "tensor": 2}, "cpu"),
            ({"data": 1, "fsdp": 4, "tensor": 2}, "gpu"),
        ],
    )
    def test_what_devices_send_does_not_grow_with_their_rows(self, sizes, platform, all_sizes, monkeypatch):
        """But for Megatron's sums over ``tensor``. Were rows not spread, activations would go over ``fsdp`` too."""
        for module in (block_stack, row_sharding):
            monkeypatch.setattr(module, "platform_of", lambda rows: platform)
        mesh = make_mesh(MeshConfig(**sizes))
        rows = batch_sharding(mesh)
        config = dataclasses.replace(CONFIG, text_cfg=dataclasses.replace(CONFIG.text_cfg, heads=2))
        graph, state = nnx.split(
            nnx.eval_shape(lambda: TextTower(config.text_cfg, row_sharding=rows, rngs=nnx.Rngs(0), **TOWER))
        )
        shapes = nnx.to_pure_dict(state)
        places = parameter_shardings(shapes, mesh)

        def loss(params, ids):
            return jnp.mean(jnp.square(nnx.merge(graph, nnx.State(params))(ids)))

        def sent(batch):
            ids = jax.ShapeDtypeStruct((batch, 8), jnp.int32)
            made = jax.jit(jax.grad(loss), in_shardings=(places, rows), out_shardings=places).lower(shapes, ids)
            found = collectives.collectives(Module(made.compile().as_text()), devices=8)
            return sum(one.times * one.sent for one in found if collectives.mesh_axes(one, mesh.shape) != "tensor")

        assert 0 < sent(512) <= 1.02 * sent(128)  # of still fewer rows the last position alone would go
