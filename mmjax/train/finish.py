"""Measurements of a run's weights, and its end: the final metrics, a summary of what happened, the report."""

from __future__ import annotations

import logging

import jax

from mmjax import report
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.state import Params, TrainState
from mmjax.parallel import collectives
from mmjax.runs import goodput, unreadable_examples
from mmjax.train.guard import rejected_updates
from mmjax.train.run import Run

logger = logging.getLogger(__name__)

PANEL_IMAGES = 12
GROUNDING_IMAGES = 8


def measured_params(state: TrainState) -> Params:
    """The weights that are measured: the moving average if there is one."""
    return state.params if state.ema_params is None else state.ema_params


def measure(run: Run, step: int, state: TrainState) -> dict[str, float]:
    """Evaluates during training; the metrics are written and shown."""
    # Evaluation reads its own data; the transfer guard is for the steps.
    with run.timer.measure("evaluation", f"the evaluation of step {step}"), jax.transfer_guard("allow"):
        metrics = run.evaluation.run_during(measured_params(state))
    run.tracker.write(step, metrics)
    run.progress.metrics(step, metrics)
    return metrics


def log_stop(run: Run) -> int:
    """Logs where a run was stopped; returns the step of its last checkpoint, or 0."""
    saved = run.checkpoints.steps
    place = f"at step {saved[-1]}, saved" if saved else "before the first step"
    logger.info(f"stopped by {run.stop.signal_name} {place}; run the same command again to go on")
    return saved[-1] if saved else 0


def measure_and_report(run: Run, state: TrainState) -> dict[str, float]:
    """Evaluates the final weights, and writes the report; returns the final metrics."""
    params, weights_of_step = measured_params(state), run.steps
    if run.setup.experiment.eval.weights == "best":
        weights_of_step = run.checkpoints.resolve("best")
        if weights_of_step != run.steps:
            with run.timer.measure("restoring", f"reading the weights of step {weights_of_step}"):
                params = run.checkpoints.restore_params(
                    run.program.abstract_state.params, step=weights_of_step, ema=state.ema_params is not None
                )
    summary = summarize(run, state)
    with run.timer.measure("evaluation", "the final evaluation"):
        metrics = run.evaluation.run_final(params)
        if metrics:
            run.progress.metrics(weights_of_step, metrics)
        metrics |= {
            "final/weights_of_step": float(weights_of_step),
            **{f"final/{name.replace(' ', '_')}": float(count) for name, count in summary.items()},
        }
        panel, caption_panel = run.evaluation.panels(params, count=PANEL_IMAGES)
        grounding_panel = run.evaluation.grounding_panel(params, count=GROUNDING_IMAGES)
    run.time_log.write()
    times = goodput.load_goodput(run.workdir) if collectives.is_main_process() else None
    run.tracker.write(run.steps, metrics | (times.metrics() if times else {}))
    if not collectives.is_main_process():
        return metrics
    summary["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
    try:
        path = report.write(
            run.workdir, panel=panel, caption_panel=caption_panel, grounding_panel=grounding_panel, summary=summary
        )
    except OSError as error:
        raise CheckpointNotSaved(
            f"the report could not be written ({error.strerror}); make room and run the same command again"
        ) from None
    if times is not None:
        logger.info(times.table())
    logger.info(f"report: {path}")
    return metrics


def summarize(run: Run, state: TrainState) -> dict[str, int]:
    """Counts of what went wrong in the run; logs them."""
    run.unreadable.gather()
    if run.unreadable.count:
        logger.info(f"unreadable: {run.unreadable.summary()}; see {run.workdir / unreadable_examples.FILE}")
    rejected = rejected_updates(state)
    if rejected:
        logger.info(f"{rejected:,} of {run.steps:,} updates were rejected")
    for rewind in run.rewinds.all:
        logger.info(f"step {rewind.spike_step:,} was a spike, undone by going back to step {rewind.restored_step:,}")
    return {"rejected updates": rejected, "rewinds": len(run.rewinds.all)}
