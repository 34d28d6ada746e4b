"""Batches of similar examples that a run finds by its own weights: the same after kills and on any processes."""

import functools
import json
import time

import jax
import pytest

from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.checkpoints.manager import Checkpoints
from mmjax.train import evaluation
from mmjax.train.loop import train
from support import command, processes, tiny
from support.speed_metrics import is_speed_metric

STEPS, DEVICES = 12, 4
CONFIG = """
from support import tiny

def get_config(arg=""):
    return tiny.sections(
        steps=12, checkpoint__every_steps=3, checkpoint__keep=9, eval__tasks=(), eval__final_tasks=(),
        optimizer__ema_decay=0.9, data__clusters={"refresh_every": 2, "size": 4, "kind": "text", "fraction": 0.75},
    )
"""


def bits(workdir):
    """The parameters, the tables of neighbors and the losses of a run."""
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.steps[-1] == STEPS
    params = fingerprint(checkpoints.read_params())
    checkpoints.close()
    tables = {path.name: path.read_bytes() for path in sorted((workdir / "neighbors").iterdir())}
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if not is_speed_metric(k)} for line in metrics if "train/loss" in line]
    return params, tables, losses


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the run in a folder on four devices of that many processes."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.py").write_text(CONFIG)
    compiled = str(tmp_path_factory.mktemp("compiled"))

    def start(workdir, count):
        port = processes.free_port()
        flags = f"--xla_force_host_platform_device_count={DEVICES // count} --xla_backend_optimization_level=0"
        extra = {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": compiled}
        if count > 1:
            extra |= {"MMJAX_COORDINATOR": f"127.0.0.1:{port}", "MMJAX_PROCESSES": str(count)}
        each = [extra | ({"MMJAX_PROCESS": str(index)} if count > 1 else {}) for index in range(count)]
        arguments = "train", f"--config={folder / 'config.py'}", f"--workdir={workdir}"
        return [command.start(*arguments, **environment) for environment in each]

    return start


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """``bits`` of that many processes that nobody kills."""

    @functools.cache
    def run(count):
        workdir = tmp_path_factory.mktemp("runs") / str(count)
        outputs = processes.outputs(start(workdir, count), timeout=600)
        assert (workdir / "report.html").exists(), outputs
        return bits(workdir)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_killed_while_neighbors_are_written_it_ends_with_the_same_bits(start, undisturbed, tmp_path, count):
    workdir = tmp_path / "run"
    for table in ("2.parquet", "8.parquet"):
        running = start(workdir, count)
        deadline = time.monotonic() + 600
        # The folder has a file of another name while a table is written.
        while not any(table in path.name for path in workdir.glob("neighbors/*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in running:
            process.kill()
        processes.outputs(running)
    outputs = processes.outputs(start(workdir, count), timeout=600)
    assert (workdir / "report.html").exists(), outputs
    assert "going on from the checkpoint of step" in outputs[0]
    assert bits(workdir) == undisturbed(count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_neighbors_are_the_same_on_any_processes(undisturbed, count):
    """Their sums of gradients differ in the last bits, and what is found by the weights does not."""
    (_, tables, losses), (_, other_tables, other_losses) = undisturbed(count), undisturbed(1)
    assert tables == other_tables and len(tables) > 1
    for line, other in zip(losses, other_losses, strict=True):
        assert line["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)


@pytest.mark.slow
def test_a_run_that_ends_in_a_refresh_does_it_again_and_compiles_once(tmp_path, monkeypatch):
    found, calls, compiled = evaluation.find_neighbors, [], []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found(*arguments, **options)

    clusters = {"refresh_every": 2, "first_refresh": 0, "size": 4}
    experiment = tiny.experiment(
        steps=STEPS, checkpoint__every_steps=3, eval__tasks=(), eval__final_tasks=(), data__clusters=clusters
    )
    monkeypatch.setattr(evaluation, "find_neighbors", interrupted)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, own=jax.stages.Lowered.compile, **o: (
        compiled.append(_[0]), own(*_, **o))[1])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        train(experiment, workdir=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "neighbors").iterdir()} == {"0.parquet", "2.parquet"}
    before = len(compiled)
    train(experiment, workdir=tmp_path / "run")
    assert len(calls) == 3 + 4 and len(compiled) == before + 1
    train(experiment, workdir=tmp_path / "whole")
    (params, _, losses), (want, _, all_losses) = bits(tmp_path / "run"), bits(tmp_path / "whole")
    assert (params, losses) == (want, all_losses)
    left = {path.name for path in (tmp_path / "whole" / "neighbors").iterdir()}
    # That of step 6 goes only if the checkpoint of step 9 is on disk when those of step 10 are found.
    assert left in ({"8.parquet", "10.parquet"}, {"6.parquet", "8.parquet", "10.parquet"})
