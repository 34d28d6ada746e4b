"""The training loop: keeps the devices busy, measures, evaluates, saves, and stops when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.order import shares
from mmjax.data.pipeline import Batches
from mmjax.data.reader import Skipped
from mmjax.data.sample import DataError
from mmjax.data.selection import Selected
from mmjax.parallel import distributed
from mmjax.train import assemble, report, rundir, skips
from mmjax.train.checkpoint import Checkpoints, Which
from mmjax.train.evaluate import Evaluation
from mmjax.train.experiment import Experiment
from mmjax.train.guard import Diverged, Guard, Spike, skipped_updates
from mmjax.train.logging import MetricsWriter, NoMetrics, Progress
from mmjax.train.meter import Meter
from mmjax.train.program import Program
from mmjax.train.rewinds import Rewinds
from mmjax.train.skips import Skips, check_index
from mmjax.train.state import TrainState
from mmjax.train.waiting import Waiting

PANEL_IMAGES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call to ``train`` ended; ``finished`` is False where a signal stopped it early."""

    finished: bool
    step: int
    metrics: dict[str, float]


def train(experiment: Experiment, *, workdir: str | Path, overrides: Sequence[str] = ()) -> Outcome:
    """Trains to ``experiment.steps``, going on from whatever ``workdir`` holds of the same experiment.

    Nothing is written before everything that can be wrong with the experiment has been checked.
    """
    workdir = Path(workdir)
    source = assemble.open_source(experiment.data, "train")
    left_out = check_index(source, limit=experiment.data.max_skipped)
    tokenizer = assemble.open_tokenizer(experiment, source, workdir=workdir)
    experiment = assemble.with_data(experiment, source, tokenizer)
    program = Program(experiment)
    evaluation = Evaluation(program, tokenizer)
    evaluation.open()
    rows = assemble.rows(experiment, source, tokenizer)
    with rundir.claim(workdir, experiment, overrides=overrides) as switched:
        first = distributed.is_first()
        if first:
            tokenizer.save(workdir / "tokenizer")
        checkpoints = Checkpoints(workdir, keep=experiment.checkpoint.keep, best=experiment.checkpoint.best)
        # Closing the checkpoints waits for all processes, so one that has failed must not come to that.
        with (
            contextlib.closing(checkpoints),
            distributed.failing_at_once(shared=(Diverged,), brief=(ConfigError, DataError)),
            _asked_to_stop() as stop,
        ):
            saved = checkpoints.steps
            done = saved[-1] if saved else 0
            if distributed.same_for_all(done == experiment.steps and (workdir / "report.html").exists()):
                if first:
                    print(f"already finished at step {done}; see {workdir / 'report.html'}", flush=True)
                return Outcome(finished=True, step=done, metrics={})
            with Progress(experiment.steps, quiet=not first) as progress:
                if isinstance(source, Selected):
                    progress.note(source.describe())
                for line in shares(source, rows=experiment.steps * experiment.batch_size):
                    progress.note(line)
                run = _Run(experiment, program, evaluation, checkpoints, progress, workdir, stop)
                return run.train(rows, switched=switched, left_out=left_out)


class _Run:
    """One process's part in a run, from the first step after the last checkpoint to the last step."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        evaluation: Evaluation,
        checkpoints: Checkpoints,
        progress: Progress,
        workdir: Path,
        stop: _Stop,
    ):
        self.experiment = experiment
        self.program = program
        self.evaluation = evaluation
        self.checkpoints = checkpoints
        self.progress = progress
        self.workdir = workdir
        self.stop = stop
        self.rewinds = Rewinds(workdir)
        self.compiled: jax.stages.Compiled | None = None

    def train(self, rows: Batches, *, switched: Sequence[str], left_out: Sequence[Skipped]) -> Outcome:
        state = self._start(switched)
        step = int(jax.device_get(state.step))
        self.guard = self._guard(step)
        first = distributed.is_first()
        self.writer = self._writer(step)
        self.skips = Skips(self.workdir, limit=self.experiment.data.max_skipped, process=jax.process_index())
        if first:
            self.skips.list(0, left_out)
        try:
            while step < self.experiment.steps and not self.stop.asked:
                spike = None
                try:
                    state, step = self._steps(state, step, rows)
                except Spike as found:
                    spike = found.with_traceback(None)  # its frames would keep a second state alive
                if spike is not None:
                    state, step = self._rewind(spike)
            self.checkpoints.wait()
            if step < self.experiment.steps:
                self.progress.note(
                    f"stopped by {self.stop.name} at step {step}, saved; run the same command again to go on"
                )
                return Outcome(finished=False, step=step, metrics={})
            metrics = self._finish(state)
        finally:
            self.writer.close()
        return Outcome(finished=True, step=step, metrics=metrics)

    def _start(self, switched: Sequence[str]) -> TrainState:
        if not self.checkpoints.steps:
            state = self.program.initialise()
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            self.progress.note(f"{size:,} parameters on {self.program.mesh.size} x {jax.devices()[0].device_kind}")
            return state
        state = self._restored("last")
        step = int(jax.device_get(state.step))
        self.progress.note(f"going on from the checkpoint of step {step}")
        if switched:
            self.progress.note(f"augmentation changes after step {step}: {'; '.join(switched)}")
        return state

    def _restored(self, which: Which) -> TrainState:
        state = self.checkpoints.restore(self.program.state, which=which)
        new = [name for name in self.program.state.augment if name not in state.augment]
        if new:
            fresh = self.program.initialise_augmentations()
            state = dataclasses.replace(state, augment={n: state.augment.get(n, fresh[n]) for n in fresh})
            self.progress.note(f"parameters of {', '.join(new)} start afresh")
        return state

    def _writer(self, step: int) -> MetricsWriter | NoMetrics:
        return MetricsWriter(self.workdir, resume_step=step) if distributed.is_first() else NoMetrics()

    def _guard(self, step: int) -> Guard:
        """As it was when the checkpoint of ``step`` was saved."""
        settings = self.experiment.guard
        return Guard(
            self.experiment,
            note=self.progress.note,
            losses=() if settings.spike is None else self.checkpoints.read_losses(step),
            rewinds_left=0 if settings.spike is None else max(settings.rewinds - len(self.rewinds.all), 0),
        )

    def _rewind(self, spike: Spike) -> tuple[TrainState, int]:
        """The state of before the spike; killed anywhere in here, the next start comes to the same one."""
        self.checkpoints.wait()
        goal = distributed.same_for_all(self.rewinds.goal(spike.step, saved=self.checkpoints.steps))
        # First: once the batches are others, what was saved later belongs to no run.
        self.checkpoints.forget_after(goal)
        rewind = self.rewinds.add(spike=spike.step, after=goal)
        self.writer.close()
        self.writer = self._writer(goal)
        self.progress.note(
            f"{spike}: going back to step {goal} and leaving out {rewind.skipped:,} batches "
            f"({len(self.rewinds.all)} of guard.rewinds={self.experiment.guard.rewinds})"
        )
        self.guard = self._guard(goal)
        return self._restored(goal) if goal else self.program.initialise(), goal

    def _steps(self, state: TrainState, step: int, rows: Batches) -> tuple[TrainState, int]:
        """To the last step, to where batches are left out, or to where a signal stops it."""
        settings = self.experiment
        until = min(settings.steps, self.rewinds.next_after(step))
        batches = assemble.stream(settings, rows, start_step=self.rewinds.batch_after(step), note=self.progress.note)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))
            waiting = stack.enter_context(contextlib.closing(Waiting(iter(batches), note=self.progress.warn)))
            arrays = self._taken(step, waiting)
            if self.compiled is None:
                self.compiled = self._compile(arrays)
            meter = Meter(settings, self.progress, self.writer, waiting, self.skips, self.guard)
            stack.enter_context(jax.transfer_guard("disallow"))
            try:
                while step < until:
                    state, metrics = self.compiled(state, self.program.place(arrays))
                    step += 1
                    if step < until:
                        arrays = self._taken(step, waiting)
                    # The last step's numbers are read while this one runs, and no step is more than one ahead.
                    meter.push(step, metrics)
                    self._housekeeping(state, step, meter)
                    if self.stop.after(step):
                        break
                meter.flush()
                if self.stop.asked and step not in self.checkpoints.steps:
                    step = self._save(state, step)
            except Diverged:
                with contextlib.suppress(Diverged):
                    meter.flush()  # a further step is already done, and may have changed the state
                if self.guard.streak:
                    with contextlib.suppress(Diverged):
                        self._save(state, step)
                raise
        return state, step

    def _compile(self, arrays: dict[str, Any]) -> jax.stages.Compiled:
        started = time.perf_counter()
        self.progress.note("compiling the training step …")
        shape = self.program.batch_shape(arrays)
        compiled = self.program.compile(shape)
        logits = self.program.objective.chosen(len(shape.image_source.ids), len(shape.tokens))
        self.progress.note(f"compiled in {time.perf_counter() - started:.1f} s; the loss is {logits}")
        return compiled

    def _taken(self, step: int, waiting: Waiting) -> dict[str, Any]:
        """The next batch's arrays, with what was skipped to make it counted."""
        arrays = next(waiting)
        self.skips.count_batch(step + 1, arrays.pop("skipped"), rows=len(arrays["image_ids"]))
        return arrays

    def _housekeeping(self, state: TrainState, step: int, meter: Meter) -> None:
        settings = self.experiment
        last = step == settings.steps
        evaluate = bool(settings.eval.tasks) and (step % settings.eval.every_steps == 0 or last)
        due = step % settings.checkpoint.every_steps == 0 or last
        if evaluate or due:
            meter.flush()  # a step that diverged must not become the checkpoint that the next start goes on from
        measured = self._measure(state, step) if evaluate else None
        if due or (measured is not None and settings.checkpoint.best is not None):
            self._save(state, step, metrics=measured, finished=last)
        if measured is not None or due:
            meter.restart()

    def _save(
        self, state: TrainState, step: int, *, metrics: dict[str, float] | None = None, finished: bool = False
    ) -> int:
        """Saves the state and gives the step that it is saved as: after skipped updates that of the last update.

        So a start from there meets the same steps as this run, which a ``finished`` one need not. It is no candidate
        for the best one meanwhile, as no loss has yet come of it.
        """
        self.guard.check(step, state.params)
        good = step if finished else step - self.guard.streak
        if good < step:
            if good in self.checkpoints.steps:
                return good
            with jax.transfer_guard("allow"):
                at = jax.make_array_from_callback((), state.step.sharding, lambda _: np.asarray(good, np.int32))
            state = dataclasses.replace(state, step=at)
        if self.guard.streak:
            metrics = None
        self.checkpoints.save(state, step=good, metrics=metrics, losses=self.guard.losses)
        return good

    def _measure(self, state: TrainState, step: int) -> dict[str, float]:
        params = state.params if state.average is None else state.average
        with jax.transfer_guard("allow"):  # evaluation reads its own data; the guard is for the steps
            metrics = self.evaluation.during(params)
        self.writer.write(step, metrics)
        self.progress.metrics(step, metrics)
        return metrics

    def _finish(self, state: TrainState) -> dict[str, float]:
        settings = self.experiment
        params = state.params if state.average is None else state.average
        chosen = settings.steps
        if settings.eval.weights == "best":
            chosen = self.checkpoints.resolve("best")
            if chosen != settings.steps:
                params = self.checkpoints.restore_params(
                    self.program.state.params, which=chosen, averaged=state.average is not None
                )
        if self.skips.count:
            self.progress.note(f"skipped {self.skips.summary()}; see {self.workdir / skips.FILE}")
        facts = {"skipped updates": skipped_updates(state), "rewinds": len(self.rewinds.all)}
        if facts["skipped updates"]:
            self.progress.note(f"{facts['skipped updates']:,} of {settings.steps:,} updates were skipped")
        for rewind in self.rewinds.all:
            self.progress.note(f"step {rewind.spike:,} was a spike, undone by going back to step {rewind.after:,}")
        metrics = self.evaluation.final(params) | {
            "final/weights_of_step": float(chosen),
            **{f"final/{name.replace(' ', '_')}": float(count) for name, count in facts.items()},
        }
        self.writer.write(settings.steps, metrics)
        self.progress.metrics(chosen, metrics)
        panel, caption_panel = self.evaluation.panels(params, count=PANEL_IMAGES)
        if not distributed.is_first():
            return metrics
        facts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
        path = report.write(self.workdir, panel=panel, caption_panel=caption_panel, facts=facts)
        self.progress.note(f"report: {path}")
        return metrics


@dataclasses.dataclass
class _Stop:
    asked: bool = False
    name: str = ""

    def after(self, step: int) -> bool:
        """Whether this step was the last for now; of several processes all say so at the same one."""
        if distributed.asked_to_stop(step):
            self.asked, self.name = True, signal.SIGTERM.name
        return self.asked


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    """Turns SIGTERM and the first Ctrl-C into a request that the loop looks at after each step.

    With several processes jax itself listens for SIGTERM, and gets Ctrl-C as such.
    """
    stop = _Stop()
    alone = jax.process_count() == 1

    def ask(number: int, _: Any) -> None:
        if alone:
            stop.asked, stop.name = True, signal.Signals(number).name
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means now

    numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
