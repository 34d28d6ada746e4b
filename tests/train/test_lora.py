"""Training with low-rank adapters: what is frozen keeps its bits, and costs no gradient."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mmjax.checkpoints.manager import Checkpoints
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.core.state import flatten
from mmjax.planning.abstract_data import batch_shapes, resolve_without_data
from mmjax.program.flops import count_flops
from mmjax.runs.rewinds import Rewinds
from mmjax.train.program import Program
from support import tiny
from support.training import assembled, trained

PLAIN = {"model__vision_cfg__stem": "patch", "model__vision_cfg__stem_widths": (), "mesh__data": 1}  # compiles faster
LORA = {"rank": 4, "train": ("logit_scale",)}


def arrays(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def is_trained(path):
    return path.endswith(("/lora/a", "/lora/b")) or path == "logit_scale"


def assert_only_adapters_moved(before, after):
    for path, array in arrays(after).items():
        if is_trained(path):
            assert not np.array_equal(array, arrays(before)[path]), path
        else:
            np.testing.assert_array_equal(array, arrays(before)[path], err_msg=path)


@pytest.mark.slow
def test_frozen_parameters_and_averages_keep_their_bits_for_fifty_steps():
    experiment = tiny.experiment(lora=LORA, optimizer__ema_decay=0.9, steps=50, **PLAIN)
    program, batches = assembled(experiment, jax.devices()[:1])
    batches.close()
    start = jax.device_get(program.initialize())
    history = trained(experiment, steps=50)
    state = history[-1][0]
    assert_only_adapters_moved(start.params, state.params)
    assert_only_adapters_moved(start.params, state.ema_params)
    assert history[-1][1]["loss"] < history[0][1]["loss"]
    adapters = sum(leaf.size for path, leaf in arrays(start.params).items() if is_trained(path))
    assert program.trained_parameters == adapters
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim or x.dtype == np.float32)
    assert moments == 2 * adapters


def trace_step(**overrides):
    """The trace of a step."""
    sizes, model = {"width": 64, "layers": 3}, tiny.sections()["model"]
    shape = {
        "model__vision_cfg": model["vision_cfg"] | sizes | {"head_width": 16, "stem": "patch", "stem_widths": ()},
        "model__text_cfg": model["text_cfg"] | sizes,
        "model__remat": "none",
        "mesh__data": 1,
    }
    experiment, _ = resolve_without_data(tiny.experiment(**shape | overrides), shards=1)
    return Program(experiment, devices=jax.devices()[:1]).trace(batch_shapes(experiment))


def flops(**overrides):
    """Of the products in a step."""
    return count_flops(trace_step(**overrides).jaxpr)


def test_no_gradient_of_a_frozen_kernel_is_computed():
    """Forward, by the activations and by the kernels are a third of the work each; the last third is not done."""
    traces = [trace_step(), trace_step(lora={"rank": 1})]
    whole, adapters = (count_flops(trace.jaxpr) for trace in traces)
    assert adapters < 0.75 * whole
    # Of all that the compiler is handed, not of products alone.
    lowered, adapters_lowered = (trace.lower().cost_analysis()["flops"] for trace in traces)
    assert adapters_lowered < 0.8 * lowered
    assert flops(lora={"rank": 1}, model__matmul_precision="int8") < 0.75 * whole
    assert flops(optimizer__unlocked_image_groups=0) < 0.75 * whole
    last = flops(optimizer__unlocked_image_groups=2, optimizer__unlocked_text_groups=2)
    assert last < 0.65 * whole  # of three blocks two have the forward pass alone


@pytest.mark.slow
@pytest.mark.parametrize("objective", plugins.names("mmjax.objectives"))
def test_adapters_train_with_every_augmentation_and_objective_on_any_mesh(objective, monkeypatch):
    monkeypatch.setattr("mmjax.parallel.sharding.FSDP_MIN_SIZE", 1)
    names = [name for name in plugins.names("mmjax.augment") if name != "modality_dropout"]  # which needs gates
    experiment = tiny.experiment(
        lora=LORA,
        augment=tuple((name, {}) for name in names),
        objective={"name": objective},
        model__init_logit_bias=-10.0 if objective == "sigmoid" else None,
        micro_batches=2,
        optimizer__learning_rate=1e-3,
        **PLAIN | {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
    )
    program, batches = assembled(experiment)
    batches.close()
    start = jax.device_get(program.initialize())
    history = trained(experiment, steps=2, devices=8)
    assert_only_adapters_moved(start.params, history[-1][0].params)
    single = dataclasses.replace(experiment, micro_batches=1, mesh=tiny.experiment(mesh__data=1).mesh)
    for (state, metrics), (want, wanted) in zip(history, trained(single, steps=2), strict=True):
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-4)
        for path, array in arrays(state.params).items():
            np.testing.assert_allclose(array, arrays(want.params)[path], atol=2e-4, err_msg=path)


def test_adapters_are_split_as_their_kernels():
    experiment, _ = resolve_without_data(tiny.experiment(lora={"rank": 2}, **PLAIN | {"mesh__tensor": 2}), shards=1)
    program = Program(experiment, devices=jax.devices()[:2])
    attn, mlp = (program.shardings.params["visual"]["blocks"][name] for name in ("attn", "mlp"))
    axes = {
        "query": (attn["query"]["lora"]["b"], 2), "out": (attn["out"]["lora"]["a"], 1),
        "fc1": (mlp["fc1"]["lora"]["b"], 2), "fc2": (mlp["fc2"]["lora"]["a"], 1),
    }  # fmt: skip
    for name, (sharding, axis) in axes.items():
        assert [k for k, split in enumerate(sharding.spec) if split] == [axis], name
    assert attn["query"]["lora"]["a"].is_fully_replicated and attn["out"]["lora"]["b"].is_fully_replicated


def test_layers_that_are_locked_keep_their_bits():
    experiment = tiny.experiment(
        optimizer__unlocked_image_groups=2, optimizer__unlocked_text_groups=1, optimizer__layer_decay=0.5,
        optimizer__ema_decay=0.5, model__vision_cfg__layers=3, **PLAIN,
    )  # fmt: skip
    program, batches = assembled(experiment, jax.devices()[:1])
    batches.close()
    start = jax.device_get(program.initialize())
    state, metrics = trained(experiment, steps=3)[-1]
    for tree in (state.params, state.ema_params):
        for path, array in arrays(tree).items():
            before = arrays(start.params)[path]
            if path.startswith("visual/blocks/"):
                np.testing.assert_array_equal(array[:2], before[:2], err_msg=path)
                array, before = array[2], before[2]
            moves = (
                path.startswith(("visual/blocks/", "visual/proj/", "visual/ln_post/", "text/proj/")) or "/" not in path
            )
            still = np.array_equal(array, before)
            assert still != moves or (moves and path.endswith("key/bias")), path  # a key's bias changes no attention
    assert metrics["gradient_norm"] > 0 and program.trained_parameters < sum(
        x.size for x in arrays(start.params).values()
    )


def test_a_rank_that_does_not_fit_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"^lora.rank=17: text/blocks/attn/key/kernel is 16 x 16"):
        assembled(tiny.experiment(lora={"rank": 17}, **PLAIN), jax.devices()[:1])


@pytest.mark.slow
def test_a_run_goes_on_and_back_with_the_same_bits(tmp_path, monkeypatch):
    """Once without a stop; once stopped after step 3; both go back once, after a spike that is made up."""
    from mmjax.train import loop
    from mmjax.train.guard import Guard

    experiment = tiny.experiment(
        lora=LORA,
        optimizer__ema_decay=0.9,
        guard__spike_factor=50.0,
        guard__spike_window=2,
        **PLAIN | {"mesh__data": -1},
    )
    judge = Guard.judge
    monkeypatch.setattr(
        Guard,
        "judge",
        lambda guard, step, metrics: judge(
            guard, step, {**metrics, "train/loss": 1e6} if step == 5 and guard._rewinds_left == 3 else metrics
        ),
    )
    start = arrays(assembled(experiment)[0].initialize().params)
    final = {}
    for name, stops in (("whole", (6,)), ("stopped", (3, 6))):
        for stop in stops:
            loop.train(experiment, workdir=tmp_path / name)
            if stop == 3:
                shutil.rmtree(tmp_path / name / "checkpoints" / "6")
                (tmp_path / name / "report.html").unlink()
        checkpoints = Checkpoints(tmp_path / name, read_only=True)
        final[name] = [checkpoints.read_params(), checkpoints.read_params(ema=True)]
        assert len(Rewinds(tmp_path / name).all) == 1
    for whole, stopped in zip(*final.values(), strict=True):
        for path, array in whole.items():
            np.testing.assert_array_equal(stopped[path], array, err_msg=path)
            assert is_trained(path) != np.array_equal(array, start[path]), path
