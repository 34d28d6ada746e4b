"""The training loop: batch, step, callbacks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.core.types import Metrics
from mmjax.evals.common.metric_names import check_metric
from mmjax.experiment import Experiment
from mmjax.parallel import collectives
from mmjax.runs.timing import ActivityTimer
from mmjax.runs.trackers.common.base import load_trackers
from mmjax.runs.unreadable_examples import check_left_out
from mmjax.train import finish
from mmjax.train.callbacks import Callback, Evaluate, SaveCheckpoints
from mmjax.train.evaluation import make_evaluation
from mmjax.train.guard import Diverged, Spike
from mmjax.train.metrics import StepMetrics
from mmjax.train.run import Run, claim_folder, open_run
from mmjax.train.setup import setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call to ``train`` ended; ``finished`` is False if a signal stopped the run."""

    finished: bool
    step: int
    metrics: dict[str, float]


def train(
    experiment: Experiment,
    *,
    workdir: str | Path,
    overrides: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
    timer: ActivityTimer | None = None,
) -> Outcome:
    """Trains to ``experiment.steps``, from the last checkpoint of the same experiment in ``workdir`` if there is one.

    Everything that can be wrong with the experiment is found before anything is written.

    Args:
      experiment: what to train.
      workdir: the run folder.
      overrides: of the command line, to be kept with the start.
      profile: the first and the last step to trace.
      timer: what has accounted the time since this process began.

    Example::

        sections = load_config("configs/quickstart.py", [("steps", "100")])
        train(Experiment.from_dict(sections), workdir="runs/quickstart")
    """
    workdir, timer = Path(workdir), ActivityTimer() if timer is None else timer
    if profile is not None and profile[1] > experiment.steps:
        raise ConfigError(f"--profile=steps:{profile[0]}-{profile[1]}: the run has only {experiment.steps} steps")
    if (best := experiment.checkpoint.best) is not None:
        check_metric(best, tasks=experiment.eval.tasks, splits=[experiment.eval.split], path="checkpoint.best")
    load_trackers(experiment.log.trackers)  # refuses one that cannot be used here
    resolved = setup(experiment, workdir=workdir)
    left_out = check_left_out(resolved.source, limit=experiment.data.max_unreadable)
    evaluation = make_evaluation(resolved.experiment, resolved.program, resolved.tokenizer)
    evaluation.open()
    batches = resolved.make_batches()
    with claim_folder(resolved, workdir, overrides=overrides) as folder:
        if folder.finished_at(experiment.steps):
            if collectives.is_main_process():
                untraced = "" if profile is None else "; nothing was left to profile"
                print(
                    f"already finished at step {experiment.steps}; see {workdir / 'report.html'}{untraced}", flush=True
                )
            return Outcome(finished=True, step=experiment.steps, metrics={})
        with open_run(
            resolved, evaluation, folder, batches=batches, timer=timer, left_out=left_out, profile=profile
        ) as run:
            state = run.first_state(folder.claim.augmentation_changes)
            run.begin(steps_done(state))
            while steps_done(state) < run.steps and not run.stop.requested:
                spike = None
                try:
                    state = train_steps(run, state)
                except Spike as error:
                    spike = error.with_traceback(None)  # its frames would keep a second state alive
                if spike is not None:
                    state = run.rewind(spike)
            run.restore_folder(required=True)
            run.tracker.finish()
            if steps_done(state) < run.steps:
                return Outcome(finished=False, step=finish.log_stop(run), metrics={})
            metrics = finish.measure_and_report(run, state)
            if run.claim.is_deleted():
                raise CheckpointNotSaved(f"--workdir={workdir}: was deleted while the finished run was measured")
            run.tracker.finish()
            return Outcome(finished=True, step=run.steps, metrics=metrics)


def train_steps(run: Run, state: TrainState) -> TrainState:
    """Takes all steps that are left, or those until the run is asked to stop; a callback may raise."""
    begin = steps_done(state)
    run.refresh_neighbors(begin, state, resumed=True)
    with run.feed.open(begin) as batches, contextlib.ExitStack() as stack:
        batch = batches.next()
        train_step = run.compile(batch)
        callbacks = make_callbacks(run, begin=begin)
        stack.enter_context(run.timer.measure("steps"))
        for callback in callbacks:
            stack.callback(callback.close)
        stack.enter_context(jax.transfer_guard("disallow"))
        try:
            for step in range(begin + 1, run.steps + 1):
                for callback in callbacks:
                    callback.before_step(step, state)
                state, metrics = train_step(state, run.program.place(batch))
                if step < run.steps:
                    run.refresh_neighbors(step, state)
                    batch = batches.next(running=metrics)  # while the devices work
                for callback in callbacks:
                    callback.after_step(step, state, metrics)
                if run.stop.check(step):
                    break
            for callback in callbacks:
                callback.finish(step, state)
        except Diverged:
            for callback in callbacks:
                callback.on_divergence(step, state)
            raise
    return state


def make_callbacks(run: Run, *, begin: int) -> list[Callback]:
    """What happens around each step, in this order."""
    config = run.setup.experiment

    def on_metrics(step: int, values: Metrics, *, is_logged: bool) -> None:
        run.throughput.update_metrics(step, values, is_logged=is_logged)
        run.unreadable.update_metrics(step, values)
        run.progress.step(step, values)
        if is_logged:
            run.tracker.write(step, values)
        run.guard.judge(step, values)
        run.time_log.set_step(step)

    metrics = StepMetrics(
        on_metrics,
        every_steps=config.log.every_steps,
        last_step=run.steps,
        count_unreadable=run.unreadable.total if run.unreadable.is_distributed else None,
    )
    evaluate = Evaluate(
        lambda step, state: finish.measure(run, step, state),
        every_steps=config.eval.every_steps,
        last_step=run.steps,
        flush=metrics.flush,
    )

    def before_save() -> None:
        run.restore_folder()
        run.time_log.write()

    save = SaveCheckpoints(
        run.checkpoints,
        config.checkpoint,
        guard=run.guard,
        evaluate=evaluate,
        stop=run.stop,
        timer=run.timer,
        last_step=run.steps,
        flush=metrics.flush,
        before_save=before_save,
        record=run.throughput.record,
    )
    return [run.profiler(begin), metrics, *([evaluate] if config.eval.tasks else []), save]


def steps_done(state: TrainState) -> int:
    """The number of the last step that the state has seen."""
    return int(jax.device_get(state.step))
