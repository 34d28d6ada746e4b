"""Plans: shapes without data, FLOPs by the trace, figures of a compiled step, and the search for a batch."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mmjax import cli
from mmjax.core.config import ConfigError
from mmjax.data.scenes import negatives
from mmjax.parallel.mesh import MeshConfig, make_mesh
from mmjax.planning import abstract_data, plan, plan_text
from mmjax.program import topologies
from mmjax.program.chips import GIB, TPUS
from mmjax.program.flops import count_flops
from mmjax.program.topology import OutOfMemory
from mmjax.program.tpu_slice import TpuSlice
from mmjax.train.setup import setup
from support import command, tiny


@pytest.fixture(scope="module")
def topology():
    """The simulated devices as a slice of eight chips."""
    devices = tuple(jax.devices())
    places = tuple(divmod(i, 4) for i in range(len(devices)))
    return TpuSlice(name="v5e:2x4", chip=TPUS["v5e"], sides=(2, 4), devices=devices, coordinates=places)


@pytest.fixture(scope="module")
def planned(topology):
    return plan.make_plan(tiny.experiment(mesh={"data": 2, "fsdp": 4}), topology, explain=True)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"data__captions_per_image": 3},
        {
            "data__modalities": ("image", "depth"),
            "data__train__negatives": negatives.KINDS,
            "data__negatives_per_image": 2,
        },
        {"data__modalities": ("image", "thermal"), "model__vision_cfg__fusion": "gated"},
        {"data__transforms": (("mixgen", {"fraction": 0.25}),)},
        {"data__transforms": (("mixgen", {"num": 4}), ("token_mask", {})), "data__captions_per_image": 2},
        {"data__transforms": (("random_resized_crop", {}), ("flip", {}), ("style_statistics", {}))},
    ],
)
def test_shapes_are_those_that_the_data_pipeline_makes(overrides):
    given = tiny.experiment(**overrides)
    resolved = setup(given)
    wanted = resolved.program.batch_shape(resolved.make_batches()[0])
    settled, _ = abstract_data.resolve_without_data(given, shards=8)
    found = abstract_data.batch_shapes(settled)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)
    assert settled.model.vision_cfg == resolved.experiment.model.vision_cfg


def test_a_transform_that_training_would_refuse_is_refused():
    settled, _ = abstract_data.resolve_without_data(
        tiny.experiment(data__transforms=(("mixgen", {"num": 17}),)), shards=8
    )
    with pytest.raises(ConfigError, match="num=17"):
        abstract_data.batch_shapes(settled)


def test_what_is_guessed_is_said():
    settled, notes = abstract_data.resolve_without_data(tiny.experiment(eval__batch_size=50), shards=8)
    assert settled.model.text_cfg.vocab_size == 8192 and settled.eval.batch_size == 56
    assert any("vocab_size" in note and "8192" in note for note in notes)
    assert any("eval.batch_size=50" in note and "56" in note for note in notes)
    told = tiny.experiment(data__tokenizer={"name": "bpe", "vocab_size": 500})
    assert abstract_data.resolve_without_data(told, shards=8)[0].model.text_cfg.vocab_size == 500
    own = tiny.experiment(model="ViT-B-16", data__source__image_size=224)
    assert abstract_data.resolve_without_data(own, shards=8)[1] == []


def test_flops_of_a_trace():
    w = jnp.ones((8, 8))

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

    once = 2 * 4 * 8 * 8
    x = jnp.ones((4, 8))
    assert count_flops(jax.make_jaxpr(lambda x: x @ w)(x)) == once
    assert count_flops(jax.make_jaxpr(scanned)(x)) == 5 * once
    assert count_flops(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(scanned(x))))(x)) == 2 * 5 * once
    repeated = jax.checkpoint(scanned)
    assert count_flops(jax.make_jaxpr(jax.jit(repeated))(x)) == 5 * once
    two = [lambda x: x, lambda x: x @ w @ w]
    assert count_flops(jax.make_jaxpr(lambda i, x: jax.lax.switch(i, two, x))(1, x)) == 2 * once
    batched = jax.make_jaxpr(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))(jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6)))
    assert count_flops(batched) == 2 * 3 * 4 * 5 * 6


def test_flops_of_a_convolution_and_its_gradients_are_equal():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

    def loss(x, w):
        return jnp.sum(jax.lax.conv_general_dilated(x, w, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))

    once = 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)
    assert count_flops(jax.make_jaxpr(loss)(x, w)) == once
    assert count_flops(jax.make_jaxpr(jax.grad(loss, argnums=1))(x, w)) == 2 * once


@pytest.mark.parametrize("tensor", [1, 2])
def test_an_islands_flops_are_those_of_all_its_devices(tensor):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4 // tensor, tensor=tensor))
    rows = PartitionSpec(("data", "fsdp"))
    island = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert count_flops(jax.make_jaxpr(island)(jnp.ones((16, 4)), jnp.ones((4, 6)))) == 2 * 16 * 4 * 6


def test_a_plans_figures_agree_with_each_other(planned, topology):
    assert planned["fits"] and planned["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    memory = planned["memory"]
    assert memory["arguments"] == pytest.approx(planned["state_bytes"] + planned["batch_bytes"], rel=0.02)
    assert memory["aliased"] == pytest.approx(planned["state_bytes"], rel=0.05)  # donated
    together = sum(memory.values()) - 2 * memory["aliased"]
    assert planned["needed_bytes"] == together
    # What a device does is its share of the model's arithmetic, and what remat and the loss do again.
    assert 0.9 < planned["flops"] / planned["model_flops"] < 2
    assert planned["unknown_loops"] == []
    assert planned["collectives"] and all(row["axes"] != "none" for row in planned["collectives"])
    found = planned["roofline"]
    assert found["step_seconds"] == max(found["seconds"].values())
    at_peak = planned["flops"] / 197e12
    assert at_peak <= found["seconds"]["compute"] < 1.1 * at_peak  # the loss multiplies float32 at full precision
    assert 0 < found["mfu"] < 1
    kernels, step = planned["kernels"], planned["estimate"]
    assert (sum(row["flops"] for row in kernels), sum(row["bytes"] for row in kernels)) == (
        planned["flops"],
        planned["bytes"],
    )
    assert step["kernel_seconds"] == pytest.approx(sum(row["seconds"] for row in kernels))
    # One after the other takes longer than what all overlapped would, but for what collectives move.
    assert step["step_seconds"] >= max(found["seconds"]["compute"], found["seconds"]["collectives"])
    assert step["step_seconds"] == pytest.approx(step["kernel_seconds"] + step["exposed_seconds"])
    assert json.loads(json.dumps(planned)) == planned


def test_the_roofline_is_arithmetic(topology):
    made = {"model_flops": 98.5e9, "bytes": 1638e6, "batch_size": 64, "collectives": []}
    made["kernels"] = [{"compute_seconds": 0.0004}, {"compute_seconds": 0.0006}]
    found = plan.roofline(made, topology)
    assert found["seconds"] == {"compute": pytest.approx(1e-3), "memory": pytest.approx(2e-3), "collectives": 0}
    assert (found["bound"], found["mfu"]) == ("memory", pytest.approx(0.25))
    assert found["examples_per_second"] == pytest.approx(32_000)
    busy = plan.roofline(made | {"collectives": [{"seconds": 0.004}, {"seconds": 0.001}]}, topology)
    assert (busy["bound"], busy["step_seconds"]) == ("collectives", pytest.approx(5e-3))


def test_the_dearest_kernels_come_with_their_lines(planned):
    rows = planned["dearest_kernels"]
    assert len(rows) == plan.NUM_EXPLAINED and {row["bound"] for row in rows} <= {"bytes", "FLOPs"}
    assert any("mmjax/models/layers.py:" in row["source"] and "__call__" in row["source"] for row in rows)
    shown = plan_text.format_plan(planned)
    assert "the dearest kernels" in shown and rows[0]["source"] in shown


def test_what_does_not_fit_a_gpus_client_is_told_of_its_fraction(topology):
    made = {
        "usable_bytes": 59 * GIB, "hbm_bytes": 79 * GIB, "state_bytes": 0, "batch_size": 64, "batch_size_per_device": 8,
        "devices": 8, "mesh": {"data": 8, "fsdp": 1},
    }  # fmt: skip
    for needed, expected in ((70 * GIB, True), (72 * GIB, False)):
        advice = plan.suggest_changes(tiny.experiment(), made, needed=needed)
        assert any(line.startswith("XLA_CLIENT_MEM_FRACTION=0.9") for line in advice) == expected


def test_people_are_told_the_same(planned):
    shown = plan_text.format_plan(planned)
    assert max(map(len, shown.splitlines())) <= 140
    for mention in (
        "v5e:2x4: 8 chips, mesh data 2 x fsdp 4",
        "fits, with 15.7",
        "collectives per device and step (link 50 GB/s, one way)",
        "all-reduce",
        "MFU",
        "estimate: kernels one after the other",
        "note: model.text_cfg",
    ):
        assert mention in shown, shown


def test_a_program_that_cannot_be_read_leaves_memory_and_a_note(topology, monkeypatch):
    def unreadable(text):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nat length")

    monkeypatch.setattr(plan, "Module", unreadable)
    monkeypatch.setattr(plan, "compile_program", lambda lowered, options: Compiled())
    made = plan.make_plan(tiny.experiment(), topology)
    assert made["fits"] and made["needed_bytes"] == 3 + 5 - 2 + 7 + 1 and "roofline" not in made
    shown = plan_text.format_plan(made)
    assert (
        "on the host   1.0 MiB" in shown
        and "HBM per device" in shown
        and "RET_CHECK" in shown
        and "at length" not in shown
    )


class Compiled:
    """Of a program, its memory alone."""

    def memory_analysis(self):
        return SimpleNamespace(
            argument_size_in_bytes=3, temp_size_in_bytes=7, output_size_in_bytes=5, alias_size_in_bytes=2,
            generated_code_size_in_bytes=1, host_argument_size_in_bytes=2, host_temp_size_in_bytes=2**20,
        )  # fmt: skip

    def as_text(self):
        return ""


def test_a_step_that_does_not_fit_says_by_how_much_and_what_would_help(topology, monkeypatch):
    def refuse(lowered, options):
        raise OutOfMemory("too large for HLO temporaries", needed=20 * GIB, usable=15.75 * GIB)

    monkeypatch.setattr(plan, "compile_program", refuse)
    made = plan.make_plan(tiny.experiment(batch_size=64, micro_batches=2), topology)
    assert not made["fits"]
    assert made["needed_bytes"] == 20 * GIB
    advice = "\n".join(made["suggestions"])
    assert all(f"model.remat={name}" in advice for name in ("attention", "full"))
    assert "precision=bfloat16" in advice and "batch_size=48" in advice
    assert "mesh.fsdp" not in advice  # the state of this model is next to nothing
    shown = plan_text.format_plan(made)
    assert "does not fit, by 4.25 GiB" in shown and "batch_size=48" in shown and "2 micro-batches, remat" in shown


@pytest.mark.parametrize(
    ("given", "changes", "mention"),
    [
        ({"precision": "bfloat16"}, {"state_bytes": 8 * GIB}, "mesh.fsdp=8"),
        ({"precision": "bfloat16"}, {"state_bytes": 8 * GIB, "mesh": {"data": 4, "fsdp": 2}}, "mesh.fsdp=8"),
        ({"precision": "bfloat16"}, {"state_bytes": 8 * GIB}, "mesh.optimizer=zero"),
        ({"objective__impl": "dense"}, {"batch_size": 2**17}, "objective.impl=ring"),
    ],
)
def test_advice_follows_what_is_large(given, changes, mention):
    made = {
        "usable_bytes": 16 * GIB, "hbm_bytes": 16 * GIB, "state_bytes": 0,
        "batch_size": 64, "batch_size_per_device": 8, "devices": 8,
        "mesh": {"data": 8, "fsdp": 1},
    }  # fmt: skip
    advice = plan.suggest_changes(tiny.experiment(**given), made | changes, needed=20 * GIB)
    assert any(line.startswith(mention) for line in advice), advice
    plain = plan.suggest_changes(tiny.experiment(**given), made, needed=20 * GIB)
    assert not any(line.startswith(mention) for line in plain)


@pytest.mark.parametrize(("parts", "each", "more"), [(1, 8, 2), (1, 9, 3), (2, 8, 4), (4, 12, 12), (8, 8, None)])
def test_advice_names_the_next_number_of_parts(parts, each, more):
    made = {
        "usable_bytes": 16 * GIB, "hbm_bytes": 16 * GIB, "state_bytes": 0,
        "batch_size": 8 * each, "batch_size_per_device": each, "devices": 8,
        "mesh": {"data": 8, "fsdp": 1},
    }  # fmt: skip
    advice = plan.suggest_changes(tiny.experiment(micro_batches=parts), made, needed=20 * GIB)
    named = [line.split(":")[0] for line in advice if line.startswith("micro_batches")]
    assert named == ([] if more is None else [f"micro_batches={more}"])
    [size] = [
        int(line.split(":")[0].removeprefix("batch_size=")) for line in advice if line.startswith("batch_size=")
    ] or [0]
    assert size % (8 * parts) == 0


@pytest.mark.parametrize("start", [1, 8, 60, 64, 500, 100_000])
@pytest.mark.parametrize("bend", [0.0, 0.3, -0.2])
def test_the_search_for_a_batch_needs_few_compilations(start, bend):
    usable, fixed = 16e9, 3e9

    def needed(each):
        return fixed + 1e8 * each * (1 + bend * min(each, 200) / 200) + (each % 7) * 1e7

    best = max(each for each in range(1, 1000) if needed(each) <= usable)
    tried, each = {}, start
    while each is not None and len(tried) < 9:
        tried[each] = (needed(each) <= usable, needed(each))
        each = plan.next_guess(tried, fixed=fixed, usable=usable)
    assert len(tried) <= 5
    found = max(size for size, (fits, _) in tried.items() if fits)
    assert found >= best - max(2, best // 14)


def test_the_largest_batch_is_that_of_the_plans_tried(topology, monkeypatch, messages):
    def pretend(experiment, on, explain):
        needed = 2e9 + 1e8 * experiment.batch_size / 8
        made = {"batch_size": experiment.batch_size, "needed_bytes": needed, "compile_seconds": 7}
        return made | {"state_bytes": 1.5e9, "parameter_bytes": 0.5e9, "fits": needed <= on.usable_bytes}

    monkeypatch.setattr(plan, "make_plan", pretend)
    found = plan.fit_batch(tiny.experiment(), topology)
    best = int((topology.usable_bytes - 2e9) / 1e8)
    assert found["fits"] and 0.95 * best <= found["batch_size"] / 8 <= best
    assert found["batch_size"] / 8 % plan.ROWS_MULTIPLE == 0
    assert len(messages) == len(found["tried"]) == 2 and f"batch_size={found['batch_size']}: needs" in messages[-1]
    assert [row["batch_size"] for row in found["tried"]] == sorted({row["batch_size"] for row in found["tried"]})
    far = plan.fit_batch(tiny.experiment(batch_size=2**20), topology)  # its first guess is not the configured one
    assert max(row["batch_size"] for row in far["tried"]) == 8 * plan.MAX_ROWS_PER_DEVICE
    assert 0.95 * best <= far["batch_size"] / 8 <= best
    few = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, usable_hbm=2.55e9))
    assert plan.fit_batch(tiny.experiment(batch_size=64), few)["batch_size"] == 4 * 8  # fewer than the multiple
    small = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, usable_hbm=1e9))
    monkeypatch.setattr(plan, "make_plan", lambda e, on, explain: pretend(e, on, explain) | {"fits": False})
    with pytest.raises(ConfigError, match=r"not even batch_size=8 .*mesh\.fsdp"):
        plan.fit_batch(tiny.experiment(), small)


@pytest.mark.parametrize(("fits", "status"), [(True, 0), (False, 1)])
def test_the_command_prints_a_plan(fits, status, planned, topology, tmp_path, monkeypatch, capsys):
    asked = {}

    def fake(experiment, on, explain):
        asked.update(batch_size=experiment.batch_size, topology=on, explain=explain)
        return planned | {"fits": fits, "suggestions": []}

    monkeypatch.setattr(topologies, "make_topology", lambda name: name)
    monkeypatch.setattr(plan, "make_plan", fake)
    words = ["compile", f"--config={command.config_file(tmp_path)}", "--topology=v5e:2x4", "--config.batch_size=32"]
    assert cli.main(words) == status
    assert "HBM per device" in capsys.readouterr().out
    assert asked == {"batch_size": 32, "topology": "v5e:2x4", "explain": False}
    assert cli.main([*words, "--json", "--explain"]) == status and asked["explain"]
    assert json.loads(capsys.readouterr().out)["devices"] == 8


def test_the_command_explains_a_wrong_topology(tmp_path, capsys):
    assert cli.main(["compile", f"--config={command.config_file(tmp_path)}", "--topology=v5e:16"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and "v5e:4x4" in error


def plan_in_a_process(tmp_path, *words):
    """What the command prints, with a compiler of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "compile", f"--config={command.config_file(tmp_path)}", "--json", *words],
        env=command.environment(**{"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'mmjax[aot]'")
class TestRealTopologies:
    """With the compiler of TPUs itself, on small models."""

    @pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
    def test_every_generation_compiles(self, name, tmp_path):
        made = plan_in_a_process(tmp_path, f"--topology={name}", "--config.precision=bfloat16")
        chip = TPUS[name.partition(":")[0]]
        assert made["fits"] and made["devices"] == 4 * chip.devices and made["model_flops"] > 0
        if "flops" not in made:
            pytest.skip(made["notes"][-1])
        assert 0.9 < made["flops"] / made["model_flops"] < 2
        assert made["unknown_loops"] == []

    def test_an_augmentation_costs_arithmetic_and_mixed_rows_a_wider_batch(self, tmp_path):
        words = ["--topology=v5e:2x2", "--config.data.transforms=(('mixgen', {}),)"]
        plain = plan_in_a_process(tmp_path, *words)
        more = plan_in_a_process(tmp_path, *words, "--config.augment=(('lemda', {}),)")
        assert more["model_flops"] > plain["model_flops"]

    def test_a_batch_too_large_is_refused(self, tmp_path):
        words = ["--topology=v5e:2x2", "--config.batch_size=262144", "--config.objective.impl=dense"]
        made = plan_in_a_process(tmp_path, *words)
        assert not made["fits"] and made["needed_bytes"] > made["usable_bytes"]
        assert any(line.startswith("objective.impl=ring") for line in made["suggestions"])


@pytest.mark.slow
@pytest.mark.skipif(
    not any(find_spec("jax_plugins") and find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)),
    reason="needs JAX's CUDA plugin: pip install 'mmjax[aot-gpu]'",
)
class TestRealGpus:
    """With the compiler of GPUs itself, on small models."""

    @pytest.mark.parametrize("name", ["a100:1", "h100:2x8", "h200:2", "b200:4"])
    def test_every_card_compiles(self, name, tmp_path):
        made = plan_in_a_process(tmp_path, f"--topology={name}", "--config.precision=bfloat16", "--explain")
        assert made["fits"] and made["usable_bytes"] < made["hbm_bytes"]
        assert 0.9 < made["flops"] / made["model_flops"] < 2 and made["unknown_loops"] == []
        kinds = {row["kind"] for row in made["kernels"]}
        assert {"product", "convolution", "reduction", "elementwise"} <= kinds
        assert any(row["source"].startswith("mmjax/") for row in made["dearest_kernels"])
        assert bool(made["collectives"]) == (made["devices"] > 1)

    def test_activations_in_the_hosts_memory_are_planned_too(self, tmp_path):
        made = plan_in_a_process(tmp_path, "--topology=h100:1", "--config.model.remat=offload")
        assert made["fits"] and made["remat"] == "offload"
