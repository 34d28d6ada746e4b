"""``mmjax bench``: what it says of a step and of the device."""

import jax
import jax.numpy as jnp

from mmjax import cli
from mmjax.commands import bench_step
from mmjax.commands.common import step_timing
from mmjax.program.chips import GPUS

ROW = {
    "augment": "none", "seconds": 0.5, "examples_per_second": 64.0, "flops_per_device": 1e9, "mfu": None,
    "flops_per_second_per_device": 2e9, "argument_bytes": 2**20, "temporary_bytes": 2**20, "compile_seconds": 3.0,
    "ratio": 1.0,
}  # fmt: skip


def test_a_step_on_a_known_chip_has_its_kernels_and_the_time_that_published_figures_give():
    chip = GPUS["h100"]
    traced = jax.jit(lambda x: jnp.sin(x @ x)).trace(jax.ShapeDtypeStruct((256, 256), jnp.float32))
    kernels = step_timing.summarize_kernels(traced.lower().compile(), traced, chip)
    assert sum(kind["flops"] for kind in kernels) == 2 * 256**3
    seconds, moved = (sum(kind[key] for kind in kernels) for key in ("seconds", "bytes"))
    assert moved >= 2 * 4 * 256**2 and seconds >= max(moved / chip.hbm_bandwidth, 2 * 256**3 / chip.f32)
    header, known, unknown = bench_step.format_text(
        [ROW | {"kernels": kernels, "modeled_seconds": 0.4}, ROW | {"kernels": None, "modeled_seconds": None}]
    ).splitlines()
    executions = sum(kind["executions"] for kind in kernels)
    assert header.split()[:4] == ["augment", "ms/step", "modeled", "kernels"]
    assert known.split()[1:4] == ["500.0", "400.0", str(executions)] and unknown.split()[1:4] == ["500.0", "-", "-"]


def test_objectives_are_rows_too(monkeypatch, capsys):
    """With their defaults, in the order of the flag."""
    seen = []

    def time_steps(experiments, **_):
        seen.extend((name, experiment.objective) for name, experiment in experiments)
        return [ROW | {"augment": name, "kernels": None, "modeled_seconds": None} for name, _ in experiments]

    monkeypatch.setattr(step_timing, "time_steps", time_steps)
    arguments = ["bench", "step", "--config=quickstart", "--objective=contrastive,ce_clip"]
    assert cli.main(arguments) == 0
    assert seen == [(name, {"name": name}) for name in ("contrastive", "ce_clip")]
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "objective" and [row.split()[0] for row in rows] == ["contrastive", "ce_clip"]
    assert cli.main([*arguments, "--augment=none"]) != 0
    assert "--objective=contrastive,ce_clip: with --augment" in capsys.readouterr().err


def test_a_device_is_measured_beside_its_published_figures(capsys):
    assert cli.main(["bench", "device", "--size=32", "--repeats=2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{jax.device_count()} x cpu, jax {jax.__version__}")
    assert shown.count("TFLOP/s") == 2 and "TB/s of memory" in shown
