"""A run: its folder is claimed, its files are opened, its state is made, restored or taken back, its step compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.data import pipeline
from mmjax.data.order import mixture_summary
from mmjax.data.sample import DataError
from mmjax.data.selection import FilteredSource
from mmjax.data.source import UnreadableEntry
from mmjax.parallel import collectives, distributed
from mmjax.parallel.host_memory import arena_advice
from mmjax.parallel.preemption import StopRequest, handle_stop_signals
from mmjax.runs import folder as run_folder
from mmjax.runs import goodput
from mmjax.runs.batch_feed import BatchFeed
from mmjax.runs.console import ADVICE, Progress
from mmjax.runs.metrics_file import MetricsWriter, NoMetrics
from mmjax.runs.neighbors import NeighborSnapshots
from mmjax.runs.rewinds import Rewinds
from mmjax.runs.timing import ActivityTimer
from mmjax.runs.trackers.common.base import open_trackers
from mmjax.runs.unreadable_examples import TooManyUnreadable, UnreadableExamples
from mmjax.train import data as train_data
from mmjax.train.evaluation import Evaluation
from mmjax.train.guard import Diverged, Guard, Spike, advise
from mmjax.train.metrics import Throughput, peak_of
from mmjax.train.profiler import Profiler
from mmjax.train.setup import Setup

logger = logging.getLogger(__name__)

_MORE_NEIGHBORS = 4  # times those that a cluster is drawn from: some are in the batch already


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimedFolder:
    """A run folder that this run alone may use, its checkpoints, and the request to stop."""

    workdir: Path
    claim: run_folder.Claim
    checkpoints: Checkpoints
    stop: StopRequest

    def finished_at(self, steps: int) -> bool:
        """Whether the run is finished; all processes agree."""
        saved = self.checkpoints.steps
        finished = bool(saved) and saved[-1] == steps and (self.workdir / "report.html").exists()
        return bool(collectives.broadcast(finished))


@contextlib.contextmanager
def claim_folder(setup: Setup, workdir: Path, *, overrides: Sequence[str]) -> Iterator[ClaimedFolder]:
    """Claims the run folder for an experiment; within the block an error of one process ends all."""
    experiment, saving = setup.experiment, setup.experiment.checkpoint
    with run_folder.claim(workdir, experiment, overrides=overrides, tokenizer=setup.tokenizer) as claim:
        checkpoints = Checkpoints(workdir, directory=saving.directory, keep=saving.keep, best=saving.best)
        # To close the checkpoints is to wait for all processes, so a process that failed must not get there.
        with (
            contextlib.closing(checkpoints),
            distributed.fail_fast(
                shared_errors=(Diverged, TooManyUnreadable),
                one_line_errors=(ConfigError, DataError, CheckpointNotSaved),
                before_exit=claim.release,
            ),
            handle_stop_signals() as stop,
        ):
            yield ClaimedFolder(workdir=workdir, claim=claim, checkpoints=checkpoints, stop=stop)


class Run:
    """All that is open while a run trains.

    ``begin`` makes ``tracker`` and ``guard``, at the start and again when the run goes back to a checkpoint; the first
    ``compile`` makes ``compiled`` and ``throughput``.
    """

    def __init__(
        self,
        setup: Setup,
        evaluation: Evaluation,
        folder: ClaimedFolder,
        *,
        batches: pipeline.Batches,
        progress: Progress,
        timer: ActivityTimer,
        time_log: goodput.TimeLog,
        unreadable: UnreadableExamples,
        profile: tuple[int, int] | None,
    ):
        experiment = setup.experiment
        self.setup = setup
        self.program = setup.program
        self.steps = experiment.steps
        self.evaluation = evaluation
        self.workdir, self.checkpoints, self.stop = folder.workdir, folder.checkpoints, folder.stop
        self.claim = folder.claim
        self.progress = progress
        self.timer = timer
        self.time_log = time_log
        self.unreadable = unreadable
        self.rewinds = Rewinds(self.workdir, directory=experiment.checkpoint.directory)
        self.neighbors = self._open_neighbors()
        self._batches, self._data = batches, experiment.data
        self.feed = BatchFeed(
            self._stream_batches,
            rewinds=self.rewinds,
            next_refresh=experiment.data.clusters.next_refresh
            if experiment.data.clusters
            else lambda step: sys.maxsize,
            timer=timer,
            unreadable=unreadable,
        )
        self.tracker: MetricsWriter | NoMetrics = NoMetrics()
        self.compiled: jax.stages.Compiled | None = None
        self._profile = profile
        self._profiler: Profiler | None = None

    def begin(self, step: int) -> None:
        """Opens what follows the steps, as it was after ``step``."""
        experiment, guard = self.setup.experiment, self.setup.experiment.guard
        self.tracker.close()
        if collectives.is_main_process():
            names, config = experiment.log.trackers, experiment.to_dict()
            trackers = open_trackers(names, self.workdir, resume_step=step, config=config)
            self.tracker = MetricsWriter(self.workdir, resume_step=step, trackers=trackers)
        self.time_log.start_segment(step)
        watched = guard.spike_factor is not None
        self.guard = Guard(
            guard,
            advice=advise(experiment.optimizer, precision=experiment.precision, augmented=bool(experiment.augment)),
            losses=self.checkpoints.read_losses(step) if watched else (),
            rewinds_left=max(guard.max_rewinds - len(self.rewinds.all), 0) if watched else 0,
        )

    def restore_folder(self, *, required: bool = False) -> None:
        """Writes the run folder's own files again if it was deleted; see ``Claim.restore``."""
        self.claim.restore(required=required)
        self.rewinds.restore()
        if self.neighbors is not None:
            self.neighbors.restore()

    def refresh_neighbors(self, step: int, state: TrainState, *, resumed: bool = False) -> None:
        """Makes the batches after ``step`` of the neighbors by the weights of that step, if it is time to.

        A run that goes on from ``step`` takes those that were in force there.
        """
        snapshots = self.neighbors
        if snapshots is None or not (resumed or snapshots.config.refreshes_at(step)):
            return
        start = time.perf_counter()
        activity = f"finding similar examples after step {step}"
        with self.timer.measure("neighbors", activity), jax.transfer_guard("allow"):
            is_new = not resumed or snapshots.resume(step, state.params)
            if not resumed:
                snapshots.refresh(step, state.params, saved=self.checkpoints.steps)
        if is_new:
            logger.info(
                f"batches after step {step} are of the neighbors by its weights "
                f"({time.perf_counter() - start:.1f} s, id {snapshots.current.config.id})"
            )

    def _open_neighbors(self) -> NeighborSnapshots | None:
        setup = self.setup
        if setup.clusters is None or setup.clusters.config.refresh_every is None:
            return None
        config = setup.clusters.config
        return NeighborSnapshots(
            self.workdir,
            directory=setup.experiment.checkpoint.directory,
            initial=setup.clusters,
            source=setup.source,
            find=lambda params: self.evaluation.neighbors(
                params, split="train", kind=config.kind, count=_MORE_NEIGHBORS * config.nearest
            ),
        )

    def _stream_batches(self, number: int) -> pipeline.Stream:
        """The batches from a number on, of the neighbors that are in force now."""
        batches = self._batches if self.neighbors is None else self._batches.with_clusters(self.neighbors.current)
        self._data = train_data.tune(self._data, batches)  # once: the tuned section asks for no tuning
        return train_data.stream_batches(self._data, batches, start_step=number)

    def first_state(self, changes: Sequence[str]) -> TrainState:
        """The initial state, or that of the newest checkpoint; ``changes`` of augmentations are logged."""
        logger.info("attention: " + ", ".join(f"{tower} {choice}" for tower, choice in self.program.attention.items()))
        if not self.checkpoints.steps:
            with self.timer.measure("compiling", "making the initial state"):
                state = self.program.initialize()
            size, trained = sum(leaf.size for leaf in jax.tree.leaves(state.params)), self.program.trained_parameters
            frozen = "" if trained == size else f", {trained:,} of them trained ({trained / size:.2%}),"
            logger.info(f"{size:,} parameters{frozen} on {self.program.mesh.size} x {jax.devices()[0].device_kind}")
            return state
        with self.timer.measure("restoring", f"reading the checkpoint of step {self.checkpoints.steps[-1]}"):
            state = self.checkpoints.restore_newest(self.program.abstract_state)
        step = int(jax.device_get(state.step))
        logger.info(f"going on from the checkpoint of step {step}")
        if changes:
            logger.info(f"augmentation changes after step {step}: {'; '.join(changes)}")
        return self._with_new_augmentations(state)

    def rewind(self, spike: Spike) -> TrainState:
        """The state before a spike; a start after a kill in here comes to the same one."""
        self.checkpoints.wait()
        step = collectives.broadcast(self.rewinds.choose_step(spike.step, saved=self.checkpoints.steps))
        # First: once the batches are others, later checkpoints belong to no run.
        self.checkpoints.delete_after(step)
        rewind = self.rewinds.add(spike_step=spike.step, restored_step=step)
        logger.info(
            f"{spike}: going back to step {step} and leaving out {rewind.skipped_batches:,} batches "
            f"({len(self.rewinds.all)} of guard.max_rewinds={self.setup.experiment.guard.max_rewinds})"
        )
        self.begin(step)
        with self.timer.measure("restoring", f"going back to step {step}"):
            if step == 0:
                return self.program.initialize()
            return self._with_new_augmentations(self.checkpoints.restore(self.program.abstract_state, step=step))

    def compile(self, arrays: dict[str, Any]) -> jax.stages.Compiled:
        """The training step for batches like ``arrays``; compiled once in a run."""
        if self.compiled is not None:
            return self.compiled
        logger.info("compiling the training step …")
        start = time.perf_counter()
        experiment = self.setup.experiment
        shape = self.program.batch_shape(arrays)
        with self.timer.measure("compiling", "compiling the training step"):
            traced = self.program.trace(shape)
            lowered = traced.lower()
            flops = self.program.count_flops_beside(shape, traced=traced)
            self.compiled = lowered.compile()
        seconds = time.perf_counter() - start
        form = self.program.objective.choose_impl(len(shape.image_source.ids), len(shape.tokens))
        logger.info(f"compiled in {seconds:.1f} s; the loss is {form}")
        memory: Any = self.compiled.memory_analysis()
        if self.program.on_cpu and (advice := arena_advice(memory.temp_size_in_bytes if memory else 0)):
            logger.info(advice)
        self.throughput = Throughput(
            self.timer,
            batch_size=experiment.batch_size,
            devices=self.program.mesh.size,
            flops=flops,
            peak=peak_of(experiment.precision),
        )
        self.throughput.record("compile_seconds", seconds)
        return self.compiled

    def profiler(self, begin: int) -> Profiler:
        """The profiler of the run, which traces its steps once even if the run goes back to before them."""
        if self._profiler is None:
            assert self.compiled is not None
            self._profiler = Profiler(self._profile, self.workdir, begin=begin, program=self.compiled, timer=self.timer)
        return self._profiler

    def _with_new_augmentations(self, state: TrainState) -> TrainState:
        new = [name for name in self.program.abstract_state.augment if name not in state.augment]
        if new:
            initial = self.program.initialize_augmentations()
            augment = {name: state.augment.get(name, initial[name]) for name in initial}
            state = dataclasses.replace(state, augment=augment)
            logger.info(f"parameters of {', '.join(new)} start from scratch")
        return state


@contextlib.contextmanager
def open_run(
    setup: Setup,
    evaluation: Evaluation,
    folder: ClaimedFolder,
    *,
    batches: pipeline.Batches,
    timer: ActivityTimer,
    left_out: Sequence[UnreadableEntry],
    profile: tuple[int, int] | None,
) -> Iterator[Run]:
    """Opens the progress line, the logs and the batches of a run.

    Args:
      setup: the resolved experiment.
      evaluation: its evaluators.
      folder: the claimed run folder.
      batches: its training batches.
      timer: accounts the time of this process since it began.
      left_out: examples that the source has left out, to be listed.
      profile: the first and the last step to trace.
    """
    experiment, main = setup.experiment, collectives.is_main_process()
    with (
        Progress(experiment.steps, primary=main) as progress,
        contextlib.closing(goodput.TimeLog(folder.workdir, timer, writes=main)) as time_log,
        timer.watchdog(tick=time_log.write),
    ):
        if isinstance(setup.source, FilteredSource):
            logger.info(setup.source.describe())
        for line in mixture_summary(setup.source, rows=experiment.steps * experiment.batch_size):
            logger.info(line)
        for line in setup.advice():
            logger.info(f"{ADVICE}{line}")
        unreadable = UnreadableExamples(
            folder.workdir,
            limit=experiment.data.max_unreadable,
            process=jax.process_index(),
            processes=jax.process_count(),
            row_blocks=setup.program.row_block.count,
        )
        if main:
            unreadable.list(0, left_out)
        run = Run(
            setup,
            evaluation,
            folder,
            batches=batches,
            progress=progress,
            timer=timer,
            time_log=time_log,
            unreadable=unreadable,
            profile=profile,
        )
        try:
            yield run
        finally:
            run.tracker.close()
