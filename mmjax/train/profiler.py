"""``--profile=steps:10-15``: a trace of some steps, and a page about where device time went."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mmjax.parallel import collectives
from mmjax.program import trace, trace_text
from mmjax.program.op_kinds import instruction_kinds
from mmjax.runs import goodput
from mmjax.runs.timing import Activity, ActivityTimer

logger = logging.getLogger(__name__)

FOLDER = "profile"
SUMMARY = "summary.txt"


class Profiler:
    """Traces the steps ``first`` to ``last`` of a run, where it comes to them; changes nothing about their results.

    Every process writes the trace of its own devices; the first one sums up its own. What goes wrong is said, and the
    run goes on without.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        workdir: str | Path,
        *,
        begin: int,
        program: jax.stages.Compiled,
        clock: ActivityTimer,
    ):
        """``begin`` steps are already done; ``program`` is the step's, by which operations are told apart."""
        self._steps = steps
        self._begin = begin
        self._program = program
        self._clock = clock
        self._traced: list[int] = []
        self._tracing = False
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

    @contextlib.contextmanager
    def step(self, step: int, *, after: Any) -> Iterator[None]:
        """Around the dispatch of ``step``; ``after`` is what it waits for on the devices."""
        if self._steps is not None and not self._tracing and self._steps[0] <= step <= self._steps[1]:
            jax.block_until_ready(after)
            self._start()
        if not self._tracing:
            yield
            return
        self._traced.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def done(self, step: int, result: Any) -> bool:
        """After the dispatch of ``step``, which gives ``result``: the last one ends the trace when it is done."""
        self._result = result
        last = self._tracing and self._steps is not None and step == self._steps[1]
        if last:
            self.close()
        return last

    def close(self) -> None:
        """Ends a trace that is still going on, because the run stops before the last of its steps."""
        if not self._tracing:
            return
        self._tracing = False
        spent = self._clock.totals()
        self._host = {name: spent[name] - before for name, before in self._before.items() if name != "steps"}
        with self._clock.measure("other"):
            self._end()

    def _end(self) -> None:
        asked, self._steps = self._steps, None
        try:
            jax.block_until_ready(self._result)  # what is not done is not in the trace
            jax.profiler.stop_trace()
        except Exception as error:  # whatever a profiler finds fault with, the run can do without it
            logger.info(f"the profile of steps {_range(*self._traced)} could not be written: {error}")
            return
        if asked is not None and self._traced[-1] < asked[1]:
            logger.info(f"the run ends within the steps to profile: {_range(*self._traced)} of {_range(*asked)}")
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
            self._before = self._clock.totals()
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
