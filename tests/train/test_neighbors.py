"""Batches of similar examples that a run finds by its own weights: the same after kills and on any processes."""

import functools
import json
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.checkpoints.fingerprint import fingerprint
from mmjax.checkpoints.manager import Checkpoints
from mmjax.train import evaluation
from mmjax.train.loop import train
from support import command, processes, tiny
from support.speed_metrics import is_speed_metric

STEPS, DEVICES = 12, 4
CONFIG = """
import json, os, signal
from mmjax.runs import batch_feed
from support import tiny

read = batch_feed.OpenFeed.next

def record(feed, **options):
    "The next batch, of which the ids of this process's rows are written; at a certain step the process is killed."
    arrays = read(feed, **options)
    if str(feed._step) == os.environ.get("KILLED_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    with open(os.environ["BATCHES"], "a") as file:
        print(json.dumps([feed._step, arrays["image_ids"].ravel().tolist()]), file=file)
    return arrays

batch_feed.OpenFeed.next = record

def get_config(arg=""):
    return tiny.sections(
        steps=12, checkpoint__every_steps=3, checkpoint__keep=9, eval__tasks=(), eval__final_tasks=(),
        optimizer__ema_decay=0.9, data__clusters={"refresh_every": 2, "size": 4, "kind": "text", "fraction": 0.75},
    )
"""


def batches(workdir):
    """The examples of each step's batch in their order, from what all processes of each start read of it."""
    ids = {}
    for start in workdir.with_name(f"{workdir.name}-batches").iterdir():
        texts = [path.read_text() for path in sorted(start.iterdir())]
        read = [
            map(json.loads, text[: text.rfind("\n") + 1].splitlines()) for text in texts
        ]  # a kill cuts the last line
        for parts in zip(*read, strict=False):
            (step,) = {step for step, _ in parts}
            whole = [example for _, rows in parts for example in rows]
            assert len(set(whole)) == len(whole) == 16
            assert ids.setdefault(step, whole) == whole, f"batch {step} was another one before a kill"
    assert sorted(ids) == [*range(1, STEPS + 1)]
    return ids


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

    def start(workdir, count, **extra):
        port = processes.free_port()
        flags = f"--xla_force_host_platform_device_count={DEVICES // count} --xla_backend_optimization_level=0"
        extra |= {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": compiled}
        if count > 1:
            extra |= {"MMJAX_COORDINATOR": f"127.0.0.1:{port}", "MMJAX_PROCESSES": str(count)}
        starts = workdir.with_name(f"{workdir.name}-batches")
        read = starts / str(len([*starts.glob("*")]))
        read.mkdir(parents=True)
        files = [read / str(index) for index in range(count)]
        for file in files:
            file.touch()
        each = [extra | {"BATCHES": str(file)} for file in files]
        if count > 1:
            each = [own | {"MMJAX_PROCESS": str(index)} for index, own in enumerate(each)]
        arguments = "train", f"--config={folder / 'config.py'}", f"--workdir={workdir}"
        return [command.start(*arguments, **environment) for environment in each]

    return start


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """``bits`` and ``batches`` of that many processes that nobody kills."""

    @functools.cache
    def run(count):
        workdir = tmp_path_factory.mktemp("runs") / str(count)
        outputs = processes.outputs(start(workdir, count), timeout=600)
        assert (workdir / "report.html").exists(), outputs
        return bits(workdir), batches(workdir)

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
    assert (bits(workdir), batches(workdir)) == undisturbed(count)


def assert_same_but_for_rounding(run, other):
    """Batches are the same, and neighbors but for near ties: weights differ in the last bits, as sums of gradients do.

    With the same neighbors tables are the same, with their ids.
    """
    ((_, tables, losses), ids), ((_, other_tables, other_losses), other_ids) = run, other
    assert tables.keys() == other_tables.keys() and len(tables) > 1
    for name in tables:
        a, b = (
            np.array(pq.read_table(pa.BufferReader(t[name]))["neighbors"].to_pylist()) for t in (tables, other_tables)
        )
        assert np.mean(a != b) < 0.01 and (tables[name] == other_tables[name]) == (a == b).all()
    assert ids == other_ids
    for line, other_line in zip(losses, other_losses, strict=True):
        assert line["train/loss"] == pytest.approx(other_line["train/loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_neighbors_and_batches_are_the_same_on_any_processes(undisturbed, count):
    assert_same_but_for_rounding(undisturbed(count), undisturbed(1))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 2, 1), (1, 4, 2)])
def test_a_killed_run_goes_on_with_the_same_batches_on_other_processes(start, undisturbed, tmp_path, counts):
    workdir = tmp_path / "run"
    for number, (count, killed_at) in enumerate(zip(counts, ("8", "11", "never"), strict=True)):
        outputs = processes.outputs(start(workdir, count, KILLED_AT=killed_at), timeout=600)
        assert (workdir / "report.html").exists() == (killed_at == "never"), outputs
        assert ("going on from the checkpoint of step" in outputs[0]) == (number > 0), outputs
    assert_same_but_for_rounding((bits(workdir), batches(workdir)), undisturbed(1))


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
