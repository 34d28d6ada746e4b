"""``--profile=steps:10-15``: a callback that traces some steps and summarizes where device time went."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax

from mmjax.core.state import TrainState
from mmjax.core.types import Metrics
from mmjax.parallel import collectives
from mmjax.program import trace, trace_text
from mmjax.program.op_kinds import instruction_kinds
from mmjax.runs import goodput
from mmjax.runs.timing import Activity, ActivityTimer
from mmjax.train.callbacks import Callback

logger = logging.getLogger(__name__)

FOLDER = "profile"
SUMMARY = "summary.txt"


class Profiler(Callback):
    """Traces some steps of a run and summarizes where device time went; changes nothing about the steps' results.

    Every process writes the trace of its own devices, and the main process summarizes its own. If the profiler fails,
    that is logged and the run goes on.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        workdir: str | Path,
        *,
        begin: int,
        program: jax.stages.Compiled,
        timer: ActivityTimer,
    ):
        """Args:
        steps: The first and the last step to trace; None for none.
        workdir: The run folder.
        begin: How many steps are already done.
        program: The compiled step, which says of what kind each operation is.
        timer: What the host's time goes into.
        """
        self._steps = steps
        self._begin = begin
        self._program = program
        self._timer = timer
        self._traced: list[int] = []
        self._tracing = False
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        self._result: Any = None
        self._before: dict[Activity, float] = {}
        self._host: dict[Activity, float] = {}
        if steps is None:
            return
        self._folder = Path(workdir) / FOLDER / f"steps-{steps[0]}-{steps[1]}"
        self._session = f"process-{jax.process_index()}"
        if begin >= steps[1]:
            logger.info(f"nothing to profile: the run goes on from step {begin}, beyond steps {_range(*steps)}")
            self._steps = None
        elif begin >= steps[0]:
            logger.info(f"profiling steps {_range(begin + 1, steps[1])} alone: the run goes on from step {begin}")

    def before_step(self, step: int, state: TrainState) -> None:
        """Starts the trace at its first step, when the devices are done with the step before."""
        if self._steps is not None and not self._tracing and self._steps[0] <= step <= self._steps[1]:
            jax.block_until_ready(state)
            self._start()
        if self._tracing:
            self._traced.append(step)
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()

    def after_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Ends the trace when its last step is done."""
        self._end_annotation()
        self._result = metrics
        if self._tracing and self._steps is not None and step == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Ends a trace that is still going on, because the run stops before the last of its steps."""
        self._end_annotation()
        if not self._tracing:
            return
        self._tracing = False
        spent = self._timer.totals()
        self._host = {name: spent[name] - before for name, before in self._before.items() if name != "steps"}
        with self._timer.measure("other"):
            self._end()

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _end(self) -> None:
        requested, self._steps = self._steps, None
        try:
            jax.block_until_ready(self._result)  # what is not done is not in the trace
            jax.profiler.stop_trace()
        except Exception as error:  # whatever a profiler finds fault with, the run can do without it
            logger.info(f"the profile of steps {_range(*self._traced)} could not be written: {error}")
            return
        if requested is not None and self._traced[-1] < requested[1]:
            logger.info(f"the run ends within the steps to profile: {_range(*self._traced)} of {_range(*requested)}")
        if collectives.is_main_process():
            self._sum_up()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # the interpreter's own calls would slow what is to be measured
        options.session_id = self._session
        session = self._folder / "plugins" / "profile" / self._session
        shutil.rmtree(session, ignore_errors=True)  # of an earlier start that did the same steps
        try:
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
            self._before = self._timer.totals()
        except Exception as error:  # as above
            logger.info(f"profiling is not possible here: {error}")
            self._steps = None

    def _sum_up(self) -> None:
        before = time.perf_counter()
        session = self._folder / "plugins" / "profile" / self._session
        try:
            (path,) = session.glob("*.xplane.pb")
            kinds, module = instruction_kinds(self._program)
            summary = trace.summarize(
                jax.profiler.ProfileData.from_file(str(path)), steps=len(self._traced), kinds=kinds, module=module
            )
            host = [
                f"{goodput.LABELS[name]} {goodput.format_seconds(spent)}"
                for name, spent in self._host.items()
                if spent >= 0.05
            ]
            text = trace_text.format_summary(summary, title=self._title(), path=path, host=host)
            (self._folder / SUMMARY).write_text(text, encoding="utf-8")
        except Exception as error:  # as above; the trace itself is there
            logger.info(f"the trace in {session} could not be summed up: {type(error).__name__}: {error}")
            return
        logger.info(
            f"{trace_text.format_line(summary)}\nprofile: {self._folder / SUMMARY} (read in "
            f"{time.perf_counter() - before:.1f} s); the trace beside it opens in TensorBoard and Perfetto"
        )

    def _title(self) -> str:
        device = jax.local_devices()[0].device_kind
        here = f"{jax.local_device_count()} of {jax.device_count()}" if jax.process_count() > 1 else jax.device_count()
        return f"steps {_range(*self._traced)} on {here} x {device}"


def _range(first: int, *others: int) -> str:
    return f"{first}-{others[-1]}" if others and others[-1] != first else f"{first}"
