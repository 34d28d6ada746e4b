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

from mmjax.config import ConfigError
from mmjax.data.order import shares
from mmjax.data.pipeline import Batches
from mmjax.data.reader import Skipped
from mmjax.data.sample import DataError
from mmjax.data.selection import Selected
from mmjax.parallel import distributed
from mmjax.train import assemble, report, rundir, skips
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.damage import NotSaved
from mmjax.train.evaluate import Evaluation
from mmjax.train.experiment import Experiment
from mmjax.train.logging import MetricsWriter, NoMetrics, Progress
from mmjax.train.meter import Diverged, Meter
from mmjax.train.program import Program
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
            rundir.keep_tokenizer(tokenizer, workdir)
        checkpoints = Checkpoints(workdir, keep=experiment.checkpoint.keep, best=experiment.checkpoint.best)
        # Closing the checkpoints waits for all processes, so one that has failed must not come to that.
        with (
            contextlib.closing(checkpoints),
            distributed.failing_at_once(shared=(Diverged,), brief=(ConfigError, DataError, NotSaved)),
            _asked_to_stop() as stop,
        ):
            saved = checkpoints.steps
            done = saved[-1] if saved else 0
            if distributed.same_for_all(done == experiment.steps and (workdir / "report.html").exists()):
                if first:
                    print(f"already finished at step {done}; see {workdir / 'report.html'}", flush=True)
                return Outcome(finished=True, step=done, metrics={})
            with Progress(experiment.steps, quiet=not first) as progress:
                checkpoints.say = progress.warn
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

    def train(self, rows: Batches, *, switched: Sequence[str], left_out: Sequence[Skipped]) -> Outcome:
        state = self._start(switched)
        step = int(jax.device_get(state.step))
        first, say = distributed.is_first(), self.progress.warn
        self.writer = MetricsWriter(self.workdir, resume_step=step, say=say) if first else NoMetrics()
        self.skips = Skips(self.workdir, limit=self.experiment.data.max_skipped, process=jax.process_index(), say=say)
        if first:
            self.skips.list(0, left_out)
        with contextlib.closing(self.writer):
            if step < self.experiment.steps:
                state, step = self._steps(state, step, rows)
            self.checkpoints.finish(state, step=step)
            self.writer.finish()
            if step < self.experiment.steps:
                self.progress.note(
                    f"stopped by {self.stop.name} at step {step}, saved; run the same command again to go on"
                )
                return Outcome(finished=False, step=step, metrics={})
            metrics = self._finish(state)
            self.writer.finish()
        return Outcome(finished=True, step=step, metrics=metrics)

    def _start(self, switched: Sequence[str]) -> TrainState:
        if not self.checkpoints.steps:
            state = self.program.initialise()
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            self.progress.note(f"{size:,} parameters on {self.program.mesh.size} x {jax.devices()[0].device_kind}")
            return state
        state = self.checkpoints.restore_newest(self.program.state)
        step = int(jax.device_get(state.step))
        self.progress.note(f"going on from the checkpoint of step {step}")
        if switched:
            self.progress.note(f"augmentation changes after step {step}: {'; '.join(switched)}")
        new = [name for name in self.program.state.augment if name not in state.augment]
        if new:
            fresh = self.program.initialise_augmentations()
            state = dataclasses.replace(state, augment={n: state.augment.get(n, fresh[n]) for n in fresh})
            self.progress.note(f"parameters of {', '.join(new)} start afresh")
        return state

    def _steps(self, state: TrainState, step: int, rows: Batches) -> tuple[TrainState, int]:
        settings = self.experiment
        batches = assemble.stream(settings, rows, start_step=step, note=self.progress.note)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))
            waiting = stack.enter_context(contextlib.closing(Waiting(iter(batches), note=self.progress.warn)))
            arrays = self._taken(step, waiting)
            started = time.perf_counter()
            self.progress.note("compiling the training step …")
            shape = self.program.batch_shape(arrays)
            compiled = self.program.compile(shape)
            logits = self.program.objective.chosen(len(shape.image_source.ids), len(shape.tokens))
            self.progress.note(f"compiled in {time.perf_counter() - started:.1f} s; the loss is {logits}")
            meter = Meter(settings, self.progress, self.writer, waiting, self.skips)
            with jax.transfer_guard("disallow"):
                while step < settings.steps:
                    state, metrics = compiled(state, self.program.place(arrays))
                    step += 1
                    if step < settings.steps:
                        arrays = self._taken(step, waiting)
                    # The last step's numbers are read while this one runs, and no step is more than one ahead.
                    meter.push(step, metrics)
                    self._housekeeping(state, step, meter)
                    self.checkpoints.check()
                    if self.stop.after(step):
                        break
                meter.flush()
                if self.stop.asked and step not in self.checkpoints.steps:
                    self.checkpoints.save(state, step=step)
        return state, step

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
            self.checkpoints.save(state, step=step, metrics=measured)
        if measured is not None or due:
            meter.restart()

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
        metrics = self.evaluation.final(params) | {"final/weights_of_step": float(chosen)}
        self.writer.write(settings.steps, metrics)
        self.progress.metrics(chosen, metrics)
        panel, caption_panel = self.evaluation.panels(params, count=PANEL_IMAGES)
        if not distributed.is_first():
            return metrics
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        facts = {"parameters": parameters}
        try:
            path = report.write(self.workdir, panel=panel, caption_panel=caption_panel, facts=facts)
        except OSError as error:
            raise NotSaved(
                f"the report could not be written ({error.strerror}); make room and run the same command again"
            ) from None
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
