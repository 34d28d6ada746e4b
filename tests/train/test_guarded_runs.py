"""Runs that meet bad batches: what they skip, where they stop, what they save, and how they go back."""

import contextlib
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.checkpoints.manager import Checkpoints
from mmjax.runs import rewinds
from mmjax.train import guard, loop, setup
from mmjax.train.program import Program
from support import poison, processes, tiny

STEPS = 20
NAN = math.nan


class CompiledOnce:
    """A trace of the step that was compiled already."""

    def __init__(self, traced):
        self.jaxpr, self.compiled = traced.jaxpr, traced.lower().compile()

    def lower(self):
        return self

    def compile(self):
        return self.compiled


@pytest.fixture(scope="module", autouse=True)
def shared():
    """One device and one compilation for all runs here; the calls for one are counted."""
    made, calls = {}, []
    trace, initialise = Program.trace, Program.initialize

    def traced(self, batch):
        calls.append(batch)
        if "step" not in made:
            made["step"] = CompiledOnce(trace(self, batch))
        return made["step"]

    def initial(self):
        if "state" not in made:
            made["state"] = jax.device_get(initialise(self))
        return jax.tree.map(jax.device_put, made["state"], self.shardings)

    with pytest.MonkeyPatch.context() as patch:
        poison.prepare(patch.setattr)
        patch.setattr(Program, "trace", traced)
        patch.setattr(Program, "initialize", initial)
        patch.setattr(setup, "Program", functools.partial(Program, devices=jax.devices()[:1]))
        yield calls


PLAN = {
    "steps": STEPS, "checkpoint__every_steps": 4, "checkpoint__keep": 3, "eval__tasks": (), "eval__final_tasks": (),
    "optimizer__ema_decay": 0.9, "optimizer__warmup_steps": 4, "data__threads": 0,
}  # fmt: skip
"""Twenty steps, a checkpoint every four, nothing measured on the way, each batch made when it is asked for."""


def run(workdir, monkeypatch, factors=None, *, fatal=(), terminating=None, **options):
    with monkeypatch.context() as patch:
        poison.put(factors or {}, patch.setattr, fatal=fatal, terminating=terminating)
        settings = tiny.experiment(**PLAN, guard=options or {"max_rejected": 10})
        return loop.train(settings, workdir=workdir)


def saved(workdir):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.steps


def parameters(workdir, step="last"):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.read_params(step=step)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    """By step; each step must be there once."""
    found = [(line["step"], line["train/loss"]) for line in lines(workdir) if "train/loss" in line]
    assert [step for step, _ in found] == [*range(1, len(found) + 1)]
    return [loss for _, loss in found]


@pytest.fixture(scope="module")
def clean(shared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("clean") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome = run(workdir, monkeypatch)
    assert outcome.metrics["final/rejected_updates"] == 0
    return workdir


SOME_BAD = {2: NAN, 6: math.inf, 7: NAN, 12: NAN}


@pytest.fixture(scope="module")
def skipping(shared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("skipping") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome = run(workdir, monkeypatch, SOME_BAD, max_rejected=3)
    assert outcome.finished and outcome.metrics["final/rejected_updates"] == len(SOME_BAD)
    return workdir


@pytest.mark.slow
def test_bad_batches_are_skipped_counted_and_shown(skipping, clean, capsys):
    trained = [line for line in lines(skipping) if "train/loss" in line]
    assert [line["step"] for line in trained if line["train/rejected_update"]] == [n + 1 for n in SOME_BAD]
    assert trained[-1]["train/rejected_updates"] == len(SOME_BAD)
    assert all(np.isfinite(array).all() for array in parameters(skipping).values())
    assert losses(skipping)[:2] == losses(clean)[:2]
    assert "rejected updates" in (skipping / "report.html").read_text()


@pytest.mark.slow
def test_killed_within_bad_steps_it_goes_on_to_the_same_bits(skipping, tmp_path, monkeypatch, capsys):
    # The checkpoint of step 8 is due after steps 7 and 8 were skipped: it is that of step 6.
    with pytest.raises(RuntimeError, match="batch 9 kills"):
        run(tmp_path, monkeypatch, SOME_BAD, max_rejected=3, fatal=(9,))
    assert saved(tmp_path) == [4, 6]
    run(tmp_path, monkeypatch, SOME_BAD, max_rejected=3)
    assert "going on from the checkpoint of step 6" in capsys.readouterr().out
    assert losses(tmp_path) == losses(skipping)
    assert_same(parameters(tmp_path), parameters(skipping))
    assert lines(tmp_path)[-1]["final/rejected_updates"] == len(SOME_BAD)


@pytest.mark.slow
def test_a_signal_within_bad_steps_saves_the_state_before_them(skipping, tmp_path, monkeypatch, capsys):
    # Batch 7 is made while step 7 runs, whose update is skipped like that of no step before it.
    outcome = run(tmp_path, monkeypatch, SOME_BAD, max_rejected=3, terminating=7)
    assert not outcome.finished and outcome.step == 6
    assert saved(tmp_path) == [4, 6] and "stopped by SIGTERM at step 6, saved" in capsys.readouterr().out
    run(tmp_path, monkeypatch, SOME_BAD, max_rejected=3)
    assert losses(tmp_path) == losses(skipping)
    assert_same(parameters(tmp_path), parameters(skipping))


@pytest.mark.slow
def test_too_many_in_a_row_stop_after_the_last_good_state_is_saved(clean, tmp_path, monkeypatch):
    bad = dict.fromkeys(range(5, 9), NAN)
    for _ in range(2):  # started again it comes to the same end, and nothing else is lost to it
        with pytest.raises(guard.Diverged, match=r"at step 8; .* that of step 5: .* guard\.max_rejected is above 3"):
            run(tmp_path, monkeypatch, bad, max_rejected=3)
        assert saved(tmp_path) == [4, 5]
    # With batches that are not bad after all, it is the run that never met them.
    run(tmp_path, monkeypatch, max_rejected=3)
    assert losses(tmp_path) == losses(clean)
    assert_same(parameters(tmp_path), parameters(clean))


@pytest.mark.slow
def test_a_higher_limit_lets_the_same_run_pass_them(tmp_path, monkeypatch):
    bad = dict.fromkeys(range(5, 9), NAN)
    with pytest.raises(guard.Diverged):
        run(tmp_path, monkeypatch, bad, max_rejected=1)
    outcome = run(tmp_path, monkeypatch, bad, max_rejected=5)
    assert outcome.finished and outcome.metrics["final/rejected_updates"] == 4


@pytest.mark.slow
def test_bad_batches_at_the_very_end_leave_a_finished_run(tmp_path, monkeypatch, capsys):
    outcome = run(tmp_path, monkeypatch, {18: NAN, 19: NAN}, max_rejected=3)
    assert outcome.finished and saved(tmp_path)[-1] == STEPS
    run(tmp_path, monkeypatch, max_rejected=3)
    assert "already finished" in capsys.readouterr().out


SPIKE = {13: 40.0}
WATCH = {"spike_factor": 3.0, "spike_window": 5}


@pytest.fixture(scope="module")
def rewound(shared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rewound") / "run"
    before = len(shared)
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome = run(workdir, monkeypatch, SPIKE, **WATCH)
    assert outcome.finished and len(shared) == before + 1
    assert outcome.metrics["final/rewinds"] == 1
    return workdir


@pytest.mark.slow
def test_a_spike_takes_the_run_back_and_past_its_batches(rewound, clean):
    assert json.loads((rewound / rewinds.FILE).read_text()) == [
        {"spike_step": 14, "restored_step": 12, "skipped_batches": 2}
    ]
    assert losses(rewound)[:12] == losses(clean)[:12]
    assert max(losses(rewound)) < 10 and len(losses(rewound)) == STEPS
    assert losses(rewound)[12] != losses(clean)[12]
    assert lines(rewound)[-1]["goodput/lost_seconds"] > 0 == lines(clean)[-1]["goodput/lost_seconds"]


@pytest.mark.slow
def test_a_run_that_never_saw_the_spike_and_leaves_out_its_batches_is_the_same(rewound, tmp_path, monkeypatch):
    shutil.copy(rewound / "config.json", tmp_path)
    shutil.copy(rewound / rewinds.FILE, tmp_path)
    run(tmp_path, monkeypatch, **WATCH)
    assert losses(tmp_path) == losses(rewound)
    assert_same(parameters(tmp_path), parameters(rewound))


def fail(*_, **__):
    raise RuntimeError("killed")


KILLS = {
    "before the list": (rewinds.Rewinds, "add"),
    "before the metrics": (rewinds.collectives, "barrier"),
    "before the state": (Checkpoints, "restore"),
    "before it saves": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_any_point_of_a_rewind_it_goes_on_to_the_same_bits(kind, rewound, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="kill"):
        if KILLS[kind]:
            meet = rewinds.collectives.barrier
            fails = fail if kind != "before the metrics" else lambda name: fail() if name == "rewind" else meet(name)
            patch.setattr(*KILLS[kind], fails)
        run(tmp_path, patch, SPIKE, fatal=() if KILLS[kind] else (16,), **WATCH)
    assert saved(tmp_path)[-1] == 12
    run(tmp_path, monkeypatch, SPIKE, **WATCH)
    assert losses(tmp_path) == losses(rewound)
    assert_same(parameters(tmp_path), parameters(rewound))
    assert (tmp_path / rewinds.FILE).read_text() == (rewound / rewinds.FILE).read_text()


@pytest.mark.slow
def test_a_second_spike_goes_back_further_and_then_no_more(tmp_path, monkeypatch, capsys):
    # Batches 14 and 15 follow the first rewind, to after step 12; the next one is to after step 8.
    outcome = run(tmp_path, monkeypatch, {13: 40.0, 15: 40.0, 20: 40.0}, max_rewinds=2, **WATCH)
    assert outcome.finished and outcome.metrics["final/rewinds"] == 2
    entries = json.loads((tmp_path / rewinds.FILE).read_text())
    assert [(entry["spike_step"], entry["restored_step"]) for entry in entries] == [(14, 12), (14, 8)]
    assert entries[1]["skipped_batches"] == 16 - 8
    said = capsys.readouterr().out
    assert "guard.max_rewinds=2 are used up" in said
    values = losses(tmp_path)
    assert [step for step, loss in enumerate(values, start=1) if loss > 10] == [13]  # batch 20 after step 12
    assert saved(tmp_path) == [12, 16, 20]


@pytest.mark.slow
def test_before_any_checkpoint_it_goes_back_to_the_start(tmp_path, monkeypatch):
    outcome = run(tmp_path, monkeypatch, {0: NAN, 1: NAN}, max_rejected=2, **WATCH)
    assert outcome.finished and outcome.metrics["final/rejected_updates"] == 0
    assert json.loads((tmp_path / rewinds.FILE).read_text()) == [
        {"spike_step": 2, "restored_step": 0, "skipped_batches": 2}
    ]


PROGRAM = """
sys.path.insert(0, {tests!r})
from mmjax.train import guard, loop
from support import poison, tiny
poison.prepare()

def run(workdir, factors, **options):
    poison.put(factors)
    settings = tiny.experiment(**{experiment!r}, guard=options)
    return loop.train(settings, workdir=workdir)

nan, inf = float("nan"), float("inf")
with distributed.join(shared_errors=(guard.Diverged,)):
    outcome = run({folder!r} + "/rewound", {factors!r}, **{watch!r})
    print("process", me, "ended with", outcome.metrics)
    try:
        run({folder!r} + "/stopped", dict.fromkeys(range(5, 9), nan), max_rejected=3)
    except guard.Diverged as error:
        print("process", me, "diverged:", error)
"""


@pytest.mark.slow
def test_two_processes_decide_alike_and_as_one_does(tmp_path, monkeypatch):
    factors = {4: NAN, 9: NAN, 10: math.inf, **SPIKE}
    given = {"tests": str(Path(__file__).parents[1]), "experiment": PLAN, "folder": str(tmp_path)}
    program = PROGRAM.format(**given, factors=factors, watch=WATCH)
    together = processes.start(program, 2)
    said = processes.outputs(together, timeout=400)
    assert [process.returncode for process in together] == [0, 0], said
    for process, text in enumerate(said):
        ended = [line for line in text.splitlines() if line.startswith(f"process {process} ended with")]
        assert len(ended) == 1 and "'final/rejected_updates': 3.0, 'final/rewinds': 1.0" in ended[0]
        assert f"process {process} diverged: the loss is nan" in text and "that of step 5:" in text
    assert saved(tmp_path / "stopped") == [4, 5]
    run(tmp_path / "alone", monkeypatch, factors, **WATCH)
    assert (tmp_path / "rewound" / rewinds.FILE).read_text() == (tmp_path / "alone" / rewinds.FILE).read_text()
    together, one = ([float(loss) for loss in losses(tmp_path / name)] for name in ("rewound", "alone"))
    np.testing.assert_allclose(together, one, rtol=1e-5)
