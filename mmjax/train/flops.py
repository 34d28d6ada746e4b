"""FLOPs that a computation needs, counted in its trace: whatever compiler, devices and repetitions make of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mmjax.core.types import Batch
from mmjax.experiment import Experiment
from mmjax.train.program import Program


def of_step(experiment: Experiment, batch: Batch, *, devices: Sequence[jax.Device] | None = None) -> float:
    """Of one training step over all ``devices``, with nothing computed twice; ``batch`` may be shapes alone."""
    program = Program(_plain(experiment), devices=devices)
    return products(jax.make_jaxpr(program.step)(program.abstract_state, batch))


def beside(experiment: Experiment, batch: Batch, *, traced: jax.stages.Traced) -> Callable[[], float | None]:
    """A function that gives ``of_step``, or None as long as it is not known; ``traced`` is the step as it is to run.

    Where the step computes nothing twice its own trace is counted, which takes no time to speak of. Another one would:
    it is made in a thread, while this one compiles.
    """
    if _plain(experiment) == experiment:
        flops = products(traced.jaxpr)
        return lambda: flops
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mmjax-flops")
    counted = pool.submit(of_step, experiment, batch)
    pool.shutdown(wait=False)
    return lambda: counted.result() if counted.done() else None


def _plain(experiment: Experiment) -> Experiment:
    """The same step with nothing computed twice."""
    model = dataclasses.replace(experiment.model, remat="none")
    return dataclasses.replace(experiment, model=model, micro_batches=1)


def products(jaxpr: Any) -> float:
    """FLOPs of all matrix products and convolutions, two a multiply-add, over all devices; loops by their length.

    Of branches the dearest counts, and a loop whose length is not known counts once.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            # A gradient by a strided input reads zeros between its rows.
            spread = math.prod(params["lhs_dilation"])
            total += 2 * equation.outvars[0].aval.size * kernel.size / features / spread
        elif name == "cond":
            total += max(products(branch) for branch in params["branches"])
        else:
            total += _times(name, params) * sum(products(inner) for inner in _inner(name, params))
    return total


def _inner(name: str, params: dict[str, Any]) -> list[Any]:
    if name == "while":
        return [params["body_jaxpr"]]
    return [value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def _times(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its inner shapes are one device's; along axes that split nothing there are copies
        split = {
            axis
            for spec in params["in_specs"]
            for part in spec
            for axis in (part if isinstance(part, tuple) else (part,))
        }
        return math.prod(params["mesh"].shape[axis] for axis in split - {None})
    return 1
