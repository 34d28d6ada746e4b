"""Training: opens all that an experiment needs, claims the run folder, and runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.config import ConfigError
from mmjax.data.order import mixture_summary
from mmjax.data.sample import DataError
from mmjax.data.selection import FilteredSource
from mmjax.experiment import Experiment
from mmjax.parallel import collectives, distributed
from mmjax.parallel.preemption import handle_stop_signals
from mmjax.runs import folder as run_folder
from mmjax.runs import goodput
from mmjax.runs.console import Progress
from mmjax.runs.timing import ActivityTimer
from mmjax.runs.unreadable_examples import TooManyUnreadable, check_index
from mmjax.train import assemble
from mmjax.train.evaluation import Evaluation
from mmjax.train.guard import Diverged
from mmjax.train.program import Program
from mmjax.train.run import Outcome, Run

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    *,
    workdir: str | Path,
    overrides: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
    clock: ActivityTimer | None = None,
) -> Outcome:
    """Trains to ``experiment.steps``, going on from whatever ``workdir`` holds of the same experiment.

    Nothing is written before everything that can be wrong with the experiment has been checked. ``profile`` are the
    first and the last step to trace; ``clock`` has counted since this process began.
    """
    workdir = Path(workdir)
    clock = ActivityTimer() if clock is None else clock
    if profile is not None and profile[1] > experiment.steps:
        raise ConfigError(f"--profile=steps:{profile[0]}-{profile[1]}: the run has but {experiment.steps} steps")
    source = assemble.open_source(experiment.data, "train")
    left_out = check_index(source, limit=experiment.data.max_unreadable)
    tokenizer = assemble.open_tokenizer(experiment, source, workdir=workdir)
    experiment = assemble.with_data(experiment, source, tokenizer)
    program = Program(experiment)
    evaluation = Evaluation(program, tokenizer)
    evaluation.open()
    rows = assemble.rows(experiment, source, tokenizer, share=program.share)
    with run_folder.claim(workdir, experiment, overrides=overrides) as switched:
        first = collectives.is_main_process()
        if first or experiment.checkpoint.directory is not None:  # a folder of its own has what evaluation needs
            run_folder.save_tokenizer(tokenizer, workdir)
        saving = experiment.checkpoint
        checkpoints = Checkpoints(workdir, directory=saving.directory, keep=saving.keep, best=saving.best)
        # Closing the checkpoints waits for all processes, so one that has failed must not come to that.
        with (
            contextlib.closing(checkpoints),
            distributed.fail_fast(
                shared_errors=(Diverged, TooManyUnreadable),
                one_line_errors=(ConfigError, DataError, CheckpointNotSaved),
            ),
            handle_stop_signals() as stop,
        ):
            saved = checkpoints.steps
            done = saved[-1] if saved else 0
            if collectives.broadcast(done == experiment.steps and (workdir / "report.html").exists()):
                if first:
                    traced = "" if profile is None else "; nothing was left to profile"
                    print(f"already finished at step {done}; see {workdir / 'report.html'}{traced}", flush=True)
                return Outcome(finished=True, step=done, metrics={})
            with (
                Progress(experiment.steps, primary=first) as progress,
                contextlib.closing(goodput.TimeLog(workdir, clock, writes=first)) as ledger,
                clock.watchdog(tick=ledger.write),
            ):
                if isinstance(source, FilteredSource):
                    logger.info(source.describe())
                for line in mixture_summary(source, rows=experiment.steps * experiment.batch_size):
                    logger.info(line)
                run = Run(experiment, program, evaluation, checkpoints, progress, workdir, stop, profile, clock, ledger)
                return run.train(rows, switched=switched, left_out=left_out)
