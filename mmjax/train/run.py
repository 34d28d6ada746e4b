"""A run from its first step to its last: keeps the devices busy, measures, evaluates, saves, and stops when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import report
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.state import TrainState
from mmjax.data.pipeline import Batches
from mmjax.data.source import UnreadableEntry
from mmjax.experiment import Experiment
from mmjax.parallel import collectives
from mmjax.parallel.preemption import StopRequest
from mmjax.runs import goodput, unreadable_examples
from mmjax.runs.console import Progress
from mmjax.runs.metrics_file import MetricsWriter, NoMetrics
from mmjax.runs.rewinds import Rewinds
from mmjax.runs.timing import ActivityTimer
from mmjax.runs.unreadable_examples import UnreadableExamples
from mmjax.train import assemble, flops
from mmjax.train.evaluation import Evaluation
from mmjax.train.guard import Diverged, Guard, Spike, rejected_updates
from mmjax.train.metrics import Meter
from mmjax.train.profiler import Profiler
from mmjax.train.program import Program
from mmjax.train.rates import Rates, peak_of
from mmjax.train.saves import Saves

logger = logging.getLogger(__name__)

PANEL_IMAGES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call to ``train`` ended; ``finished`` is False where a signal stopped it early."""

    finished: bool
    step: int
    metrics: dict[str, float]


class Run:
    """One process's part in a run, from the first step after the last checkpoint to the last step."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        evaluation: Evaluation,
        checkpoints: Checkpoints,
        progress: Progress,
        workdir: Path,
        stop: StopRequest,
        profile: tuple[int, int] | None,
        clock: ActivityTimer,
        ledger: goodput.TimeLog,
    ):
        self.experiment = experiment
        self.program = program
        self.evaluation = evaluation
        self.checkpoints = checkpoints
        self.progress = progress
        self.workdir = workdir
        self.stop = stop
        self.profile = profile
        self.clock = clock
        self.ledger = ledger
        self.saves = Saves(checkpoints, clock)
        self.rewinds = Rewinds(workdir, directory=experiment.checkpoint.directory)
        self.compiled: jax.stages.Compiled | None = None
        self.profiler: Profiler | None = None

    def train(self, rows: Batches, *, switched: Sequence[str], left_out: Sequence[UnreadableEntry]) -> Outcome:
        """To the last step, or to where a signal stops it; ``switched`` and ``left_out`` are said and listed."""
        state = self._start(switched)
        step = int(jax.device_get(state.step))
        self._begin(step)
        self.skips = UnreadableExamples(
            self.workdir,
            limit=self.experiment.data.max_unreadable,
            process=jax.process_index(),
            processes=jax.process_count(),
            row_blocks=self.program.share[1],
        )
        if collectives.is_main_process():
            self.skips.list(0, left_out)
        try:
            while step < self.experiment.steps and not self.stop.requested:
                spike = None
                try:
                    state, step = self._steps(state, step, rows)
                except Spike as found:
                    spike = found.with_traceback(None)  # its frames would keep a second state alive
                if spike is not None:
                    state, step = self._rewind(spike)
            self.saves.finish(_as_of(step, state), step=step)
            self.writer.finish()
            if step < self.experiment.steps:
                logger.info(
                    f"stopped by {self.stop.signal_name} at step {step}, saved; run the same command again to go on"
                )
                return Outcome(finished=False, step=step, metrics={})
            metrics = self._finish(state)
            self.writer.finish()
        finally:
            self.writer.close()
        return Outcome(finished=True, step=step, metrics=metrics)

    def _start(self, switched: Sequence[str]) -> TrainState:
        if not self.checkpoints.steps:
            with self.clock.measure("compiling", "making the initial state"):
                state = self.program.initialise()
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            logger.info(f"{size:,} parameters on {self.program.mesh.size} x {jax.devices()[0].device_kind}")
            return state
        with self.clock.measure("restoring", f"reading the checkpoint of step {self.checkpoints.steps[-1]}"):
            state = self.checkpoints.restore_newest(self.program.abstract_state)
        step = int(jax.device_get(state.step))
        logger.info(f"going on from the checkpoint of step {step}")
        if switched:
            logger.info(f"augmentation changes after step {step}: {'; '.join(switched)}")
        return self._with_new_augmentations(state)

    def _with_new_augmentations(self, state: TrainState) -> TrainState:
        new = [name for name in self.program.abstract_state.augment if name not in state.augment]
        if new:
            fresh = self.program.initialise_augmentations()
            state = dataclasses.replace(state, augment={n: state.augment.get(n, fresh[n]) for n in fresh})
            logger.info(f"parameters of {', '.join(new)} start afresh")
        return state

    def _begin(self, step: int) -> None:
        """What goes along with the steps, as it was after ``step``."""
        settings, first = self.experiment.guard, collectives.is_main_process()
        self.writer = MetricsWriter(self.workdir, resume_step=step) if first else NoMetrics()
        self.ledger.start_segment(step)
        self.guard = Guard(
            self.experiment,
            losses=() if settings.spike_factor is None else self.checkpoints.read_losses(step),
            rewinds_left=0 if settings.spike_factor is None else max(settings.max_rewinds - len(self.rewinds.all), 0),
        )

    def _rewind(self, spike: Spike) -> tuple[TrainState, int]:
        """The state of before the spike; killed anywhere in here, the next start comes to the same one."""
        self.checkpoints.wait()
        goal = collectives.broadcast(self.rewinds.choose_step(spike.step, saved=self.checkpoints.steps))
        # First: once the batches are others, what was saved later belongs to no run.
        self.checkpoints.delete_after(goal)
        rewind = self.rewinds.add(spike_step=spike.step, restored_step=goal)
        logger.info(
            f"{spike}: going back to step {goal} and leaving out {rewind.skipped_batches:,} batches "
            f"({len(self.rewinds.all)} of guard.max_rewinds={self.experiment.guard.max_rewinds})"
        )
        self.writer.close()
        self._begin(goal)
        with self.clock.measure("restoring", f"going back to step {goal}"):
            if goal == 0:
                return self.program.initialise(), 0
            return self._with_new_augmentations(self.checkpoints.restore(self.program.abstract_state, step=goal)), goal

    def _steps(self, state: TrainState, step: int, rows: Batches) -> tuple[TrainState, int]:
        """To the last step, to where batches are left out, or to where a signal stops it."""
        settings = self.experiment
        until = min(settings.steps, self.rewinds.next_rewind(step))
        batches = assemble.stream(settings, rows, start_step=self.rewinds.next_batch(step))
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))
            coming = iter(batches)
            arrays = self._taken(step, coming)
            compiled = self.compiled = self.compiled or self._compile(arrays)
            profiler = self.profiler = self.profiler or Profiler(  # one: a run that goes back traces its steps once
                self.profile, self.workdir, begin=step, program=compiled, clock=self.clock
            )
            stack.enter_context(self.clock.measure("steps"))
            stack.enter_context(contextlib.closing(profiler))
            meter = Meter(settings, self.progress, self.writer, self.rates, self.skips, self.guard)
            stack.enter_context(jax.transfer_guard("disallow"))
            try:
                while step < until:
                    with profiler.step(step + 1, after=state):
                        state, metrics = compiled(state, self.program.place(arrays))
                    step += 1
                    traced = profiler.done(step, metrics)
                    if step < until:
                        arrays = self._taken(step, coming, beside=metrics)
                    # The last step's numbers are read while this one runs, and no step is more than one ahead.
                    meter.push(step, metrics)
                    self.ledger.set_step(step - 1)
                    self.saves.look()
                    self._housekeeping(state, step, meter)
                    if traced:
                        meter.restart()  # the writing and reading of a trace is no slow step
                    if self.stop.check(step):
                        break
                meter.flush()
                self.ledger.set_step(step)
                if self.stop.requested and step not in self.checkpoints.steps:
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
        logger.info("compiling the training step …")
        started = time.perf_counter()
        shape = self.program.batch_shape(arrays)
        with self.clock.measure("compiling", "compiling the training step"):
            traced = self.program.trace(shape)
            lowered = traced.lower()
            model_flops = flops.beside(self.experiment, shape, traced=traced)
            compiled = lowered.compile()
        seconds = time.perf_counter() - started
        logits = self.program.objective.choose_impl(len(shape.image_source.ids), len(shape.tokens))
        logger.info(f"compiled in {seconds:.1f} s; the loss is {logits}")
        self.rates = Rates(
            self.clock,
            batch_size=self.experiment.batch_size,
            devices=self.program.mesh.size,
            flops=model_flops,
            peak=peak_of(self.experiment.precision),
        )
        self.rates.tell("compile_seconds", seconds)
        self.saves.tell = self.rates.tell
        return compiled

    def _taken(
        self, step: int, coming: Iterator[dict[str, Any]], *, beside: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The next batch's arrays, with what was skipped to make it counted; the step of ``beside`` runs meanwhile."""
        with self.clock.measure("data", hidden=lambda: not all(value.is_ready() for value in (beside or {}).values())):
            arrays = next(coming)
        self.skips.add_batch(step + 1, arrays.pop("unreadable"), rows=len(arrays["image_ids"]))
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
            self.ledger.set_step(step)
            self.ledger.write()
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
            state = _as_of(good, state)
        if self.guard.streak:
            metrics = None
        self.saves.save(state, step=good, metrics=metrics, losses=self.guard.losses)
        return good

    def _measure(self, state: TrainState, step: int) -> dict[str, float]:
        params = state.params if state.ema_params is None else state.ema_params
        # Evaluation reads its own data; the guard is for the steps.
        with self.clock.measure("evaluation", f"the evaluation of step {step}"), jax.transfer_guard("allow"):
            metrics = self.evaluation.during(params)
        self.writer.write(step, metrics)
        self.progress.metrics(step, metrics)
        return metrics

    def _finish(self, state: TrainState) -> dict[str, float]:
        settings = self.experiment
        params = state.params if state.ema_params is None else state.ema_params
        chosen = settings.steps
        if settings.eval.weights == "best":
            chosen = self.checkpoints.resolve("best")
            if chosen != settings.steps:
                with self.clock.measure("restoring", f"reading the weights of step {chosen}"):
                    params = self.checkpoints.restore_params(
                        self.program.abstract_state.params, step=chosen, ema=state.ema_params is not None
                    )
        self.skips.gather()
        if self.skips.count:
            logger.info(f"skipped {self.skips.summary()}; see {self.workdir / unreadable_examples.FILE}")
        facts = {"rejected updates": rejected_updates(state), "rewinds": len(self.rewinds.all)}
        if facts["rejected updates"]:
            logger.info(f"{facts['rejected updates']:,} of {settings.steps:,} updates were rejected")
        for rewind in self.rewinds.all:
            logger.info(
                f"step {rewind.spike_step:,} was a spike, undone by going back to step {rewind.restored_step:,}"
            )
        with self.clock.measure("evaluation", "the final evaluation"):
            metrics = self.evaluation.final(params) | {
                "final/weights_of_step": float(chosen),
                **{f"final/{name.replace(' ', '_')}": float(count) for name, count in facts.items()},
            }
            self.progress.metrics(chosen, metrics)
            panel, caption_panel = self.evaluation.panels(params, count=PANEL_IMAGES)
        self.ledger.write()
        spent = goodput.load_goodput(self.workdir) if collectives.is_main_process() else None
        self.writer.write(settings.steps, metrics | (spent.metrics() if spent else {}))
        if not collectives.is_main_process():
            return metrics
        facts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
        try:
            path = report.write(self.workdir, panel=panel, caption_panel=caption_panel, summary=facts)
        except OSError as error:
            raise CheckpointNotSaved(
                f"the report could not be written ({error.strerror}); make room and run the same command again"
            ) from None
        if spent is not None:
            logger.info(spent.table())
        logger.info(f"report: {path}")
        return metrics


def _as_of(step: int, state: TrainState) -> TrainState:
    """The state with the number of a step that it did not change since."""
    with jax.transfer_guard("allow"):
        if int(state.step) == step:
            return state
        return dataclasses.replace(
            state, step=jax.make_array_from_callback((), state.step.sharding, lambda _: np.asarray(step, np.int32))
        )
