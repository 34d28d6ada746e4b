"""The loop in this process: compilations counted, divergence stopped, the best checkpoint measured."""

import contextlib
import json
import os
import shutil
import signal

import jax.monitoring
import numpy as np
import pytest

from mmjax.checkpoints.manager import Checkpoints
from mmjax.commands.common.trained_model import open_model
from mmjax.core.config import ConfigError
from mmjax.parallel import host_memory
from mmjax.runs import folder as run_folder
from mmjax.train import guard, loop
from mmjax.train.program import Program
from mmjax.train.setup import setup
from support import tiny

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """How often XLA has compiled something since the test began."""
    seen = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_longer_run_compiles_nothing_more(compilations, tmp_path):
    counts = []
    for steps in (6, 24):
        before = len(compilations)
        outcome = loop.train(tiny.experiment(steps=steps, eval__every_steps=3), workdir=tmp_path / str(steps))
        assert outcome.finished and outcome.step == steps
        counts.append(len(compilations) - before)
    assert counts[0] > 0 and counts[1] <= counts[0]


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(tmp_path):
    experiment = tiny.experiment(
        steps=30,
        optimizer__learning_rate=1e30,
        optimizer__warmup_steps=0,
        optimizer__clip_norm=None,
        checkpoint__every_steps=1,
        checkpoint__keep=30,
        eval__every_steps=30,
    )
    with pytest.raises(guard.Diverged, match=r"loss is .* at step .*optimizer\.learning_rate"):
        loop.train(experiment, workdir=tmp_path)
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.steps and checkpoints.steps[-1] < 30
        for step in checkpoints.steps:
            assert all(np.isfinite(array).all() for array in checkpoints.read_params(step=step).values()), step


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_measured(tmp_path):
    experiment = tiny.experiment(
        steps=12,
        eval__every_steps=2,
        eval__weights="best",
        eval__final_splits=("val", "test"),
        checkpoint__best="val/rsum",
        checkpoint__keep=1,
    )
    outcome = loop.train(experiment, workdir=tmp_path)
    scores = {line["step"]: line["val/rsum"] for line in lines(tmp_path) if "val/rsum" in line}
    chosen = int(outcome.metrics["final/weights_of_step"])
    assert scores[chosen] == max(scores.values())
    model = open_model(f"{tmp_path}@best", options={})
    again = model.evaluation.run_final(model.params)
    assert again["val/rsum"] == pytest.approx(scores[chosen], abs=1e-6)
    assert {"val/rsum", "test/rsum"} <= again.keys() & outcome.metrics.keys()  # each final split
    assert again.keys() <= outcome.metrics.keys()


def test_a_folder_in_use_is_refused(tmp_path):
    experiment = tiny.experiment()
    second = run_folder.claim(tmp_path, experiment, overrides=[])
    with (
        run_folder.claim(tmp_path, experiment, overrides=[]),
        pytest.raises(ConfigError, match=r"process \d+ on \S+ is training there"),
    ):
        second.__enter__()


def test_a_long_warm_up_and_many_epochs_are_pointed_out():
    def advice(**options):
        return list(setup(tiny.experiment(**options)).advice())

    assert advice() == []
    short, long = advice(optimizer__warmup_steps=40), advice(steps=400)
    assert short == ["optimizer.warmup_steps=40: longer than the run (steps=6); it warms up for 0"]
    assert len(long) == 1 and "each of the 48 examples comes 133 times" in long[0] and "steps=300" in long[0]


def test_clusters_that_no_batch_has_are_pointed_out():
    def advice(**clusters):
        return list(setup(tiny.experiment(data__clusters={"refresh_every": 2, "size": 4, **clusters})).advice())

    # Batches are of steps 0 to 5, and one cluster is a quarter of a batch.
    assert advice() == advice(first_fraction=1 / 8, double_every=5) == []
    (few,) = advice(first_fraction=1 / 8, double_every=6)
    assert "not even the last of 6 batches of 16 has a cluster of size=4, as 12.5% of it" in few
    assert advice(refresh_every=5) == []
    (late,) = advice(refresh_every=6)
    assert "all 6 batches are random" in late


def test_negatives_that_no_batch_has_are_pointed_out(tmp_path):
    table = tmp_path / "n.csv"
    table.write_text("key,negative\n0,a false caption\n")
    options = {
        "objective": {"name": "tsvlc"},
        "data__negatives": {"path": str(table)},
        "data__transforms": (("negatives_rules", {}),),
    }
    lines = list(setup(tiny.experiment(**options)).advice())
    assert [line.partition(":")[0] for line in lines] == ["data.negatives.path=" + repr(str(table)), "data.transforms",
                                                          "objective.name='tsvlc'"]  # fmt: skip
    assert all("set data.negatives_per_image=1 or more" in line for line in lines) and "negatives_rules" in lines[1]
    assert list(setup(tiny.experiment(**options, data__negatives_per_image=1)).advice()) == []


def test_kinds_of_negatives_that_no_example_has_are_pointed_out(tmp_path):
    table = tmp_path / "n.csv"
    table.write_text("key,negative,kind\n0,a false caption,swap_color\n3,another one,replace_shape\n")

    def advice(*kinds, **options):
        objective = {"name": "ce_clip", "kinds": ",".join(kinds)}  # as a command line has them
        options = {"data__negatives": {"path": str(table)}, "data__negatives_per_image": 1} | options
        return list(setup(tiny.experiment(objective=objective, **options)).advice())

    assert advice("swap_color", "replace_shape") == []
    (line,) = advice("replace_shape", "swap_colour")
    assert "the first 48 examples" in line and "'swap_colour'; did you mean 'swap_color'?" in line
    assert advice("swap_colour", data__transforms=(("negatives_rules", {}),)) == []  # it adds kinds


def test_captions_that_lose_their_end_are_pointed_out():
    def advice(length, *transforms):
        options = {"data__transforms": transforms, "objective": {"name": "contrastive", "targets": "identity"}}
        return list(setup(tiny.experiment(model__text_cfg__context_length=length, **options)).advice())

    (cut,) = advice(8)
    assert cut.startswith("model.text_cfg.context_length=8: ") and "of the first captions of 'train' are longer" in cut
    assert advice(22, ("mixgen", {"variant": "d"})) == advice(22, ("flip", {})) == []
    for name, options in (("mixgen", {}), ("mixgen", {"variant": "c"}), ("side_by_side", {"exchange": "lists"})):
        (joined,) = (line for line in advice(22, (name, options)) if "context_length" in line)
        assert f"of the captions that {name!r} makes of two of the first ones are longer" in joined
        assert not any("context_length" in line for line in advice(int(joined.split()[-3]), (name, options)))


def test_targets_that_are_not_those_of_a_paper_are_pointed_out():
    def advice(**objective):
        options = {"data__transforms": (("mixgen", {"variant": "d"}),)}
        options["objective"] = {"name": "contrastive", **objective}
        return list(setup(tiny.experiment(**options)).advice())

    (line,) = advice()
    assert line.startswith("objective.targets='provenance', the default, gives 'mixgen' other targets than its paper")
    assert advice(targets="identity") == advice(targets="provenance") == []


def test_distillation_without_a_teacher_is_pointed_out():
    (line,) = setup(tiny.experiment(objective={"name": "distill"})).advice()
    assert line.startswith("objective.name='distill': there is no teacher") and line.endswith("set data.teacher.path")


def test_modules_and_labels_that_nothing_reads_are_pointed_out():
    decoder = {"width": 8, "heads": 2, "layers": 1, "inputs": "ids"}
    lines = list(setup(tiny.experiment(model__decoder=decoder, data__labels="signs")).advice())
    assert lines == [
        "model.decoder: objective.name='contrastive' does not train it; use objective.name=caption, or leave it out",
        "data.labels='signs': objective.name='contrastive' reads no labels; use objective.name=ctc, or leave it out",
    ]


@pytest.mark.slow
def test_a_stop_before_the_first_step_leaves_a_folder_that_goes_on(tmp_path, monkeypatch, capsys):
    initialize = Program.initialize

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return initialize(self)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "initialize", interrupted)
        outcome = loop.train(tiny.experiment(eval__tasks=(), eval__final_tasks=()), workdir=tmp_path)
    assert not outcome.finished and outcome.step == 0
    assert "stopped by SIGTERM before the first step" in capsys.readouterr().out
    assert loop.train(tiny.experiment(eval__tasks=(), eval__final_tasks=()), workdir=tmp_path).finished


def test_a_run_whose_folder_is_deleted_ends_with_all_that_a_start_needs(tmp_path, monkeypatch, capsys):
    workdir, experiment = (
        tmp_path / "run",
        tiny.experiment(steps=2, eval__tasks=(), eval__final_tasks=(), checkpoint__every_steps=1),
    )
    save = Checkpoints.save

    def delete_and_save(self, state, *, step, **more):
        save(self, state, step=step, **more)
        self.wait()
        shutil.rmtree(workdir)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", delete_and_save)
        patch.setattr(Checkpoints, "finish", lambda self, state, *, step: (patch.undo(), self.finish(state, step=step)))
        assert loop.train(experiment, workdir=workdir).finished
    assert capsys.readouterr().out.count("was deleted") == 2
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "starts.jsonl", "tokenizer", "checkpoints", "report.html", "metrics.jsonl"}
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        assert checkpoints.steps == [2]


def test_a_start_says_that_the_c_library_could_keep_large_temporaries(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(host_memory, "_LARGEST_IN_ARENA", 0)
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    loop.train(tiny.experiment(steps=1, eval__tasks=(), eval__final_tasks=()), workdir=tmp_path)
    assert "MALLOC_ARENA_MAX=1 in the environment keeps them from step to step" in capsys.readouterr().out


def test_advice_stands_on_lines_that_compare_passes_on(tmp_path, capsys):
    experiment = tiny.experiment(steps=1, optimizer__warmup_steps=40, eval__tasks=(), eval__final_tasks=())
    loop.train(experiment, workdir=tmp_path)
    assert any(
        line.startswith("note: optimizer.warmup_steps=40: longer") for line in capsys.readouterr().out.splitlines()
    )
