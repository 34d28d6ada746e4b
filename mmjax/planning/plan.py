"""From an experiment to its compiled step on a TPU slice that is not there, and what it will need and take."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from typing import Any

import jax

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from mmjax.parallel.sharding import batch_shardings
from mmjax.planning.abstract_data import batch_shapes, settled
from mmjax.program import costs
from mmjax.program import topology as slices
from mmjax.program.chips import GIB
from mmjax.program.hlo import Module
from mmjax.program.topology import Topology
from mmjax.train.flops import of_step
from mmjax.train.program import Program, with_shardings

logger = logging.getLogger(__name__)

Plan = dict[str, Any]

LEAST_TRIED = 8
"""Rows a device: of fewer, what does not grow with them is nearly all that a program needs."""

TARGET = 0.98
"""Of a device's memory, where a guess is to come out."""


def of(experiment: Experiment, topology: Topology) -> Plan:
    """All figures of one compilation (``text`` says what they are); where the step does not fit, those of its size."""
    mesh = make_mesh(experiment.mesh, devices=topology.devices)
    shards = num_shards(batch_sharding(mesh))
    experiment, notes = settled(experiment, shards=shards)
    program = Program(experiment, devices=topology.devices)
    batch = batch_shapes(experiment)
    batch = with_shardings(batch, batch_shardings(batch, program.mesh))
    devices = program.mesh.size
    before = time.perf_counter()
    lowered = program.lower(batch)
    state, rows = (_bytes_a_device(tree) for tree in (program.abstract_state, batch))
    plan: Plan = {
        "topology": topology.name,
        "chips": devices // topology.chip.devices,
        "devices": devices,
        "mesh": dict(program.mesh.shape),
        "batch_size": experiment.batch_size,
        "batch_size_a_device": experiment.batch_size // shards,
        "precision": experiment.precision,
        "micro_batches": experiment.micro_batches,
        "remat": experiment.model.remat,
        "state_bytes": state,
        "batch_bytes": rows,
        "hbm_bytes": topology.device.hbm,
        "usable_bytes": topology.device.usable,
        "notes": notes,
    }
    try:
        compiled = slices.compile_for_slice(lowered)
    except slices.TooLarge as error:
        seconds = time.perf_counter() - before
        advice = helps(experiment, plan, needed=error.needed)
        return plan | {"fits": False, "needed_bytes": error.needed, "helps": advice, "compile_seconds": seconds}
    plan["compile_seconds"] = time.perf_counter() - before
    memory: Any = compiled.memory_analysis()
    plan["memory"] = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    parts = plan["memory"]
    plan["needed_bytes"] = sum(parts.values()) - 2 * parts["aliased"]
    plan["fits"] = plan["needed_bytes"] <= topology.device.usable
    if not plan["fits"]:
        plan["helps"] = helps(experiment, plan, needed=plan["needed_bytes"])
    plan["model_flops"] = of_step(experiment, batch_shapes(experiment), devices=topology.devices) / devices
    try:
        module = Module(str(compiled.as_text()))
    except jax.errors.JaxRuntimeError as error:  # the newest chips' programs have forms that only libtpu itself knows
        notes.append(f"this jaxlib cannot read the compiled program, so its work is not known: {error}".splitlines()[0])
        return plan
    reported = compiled.cost_analysis() or {}
    plan |= {
        "flops": costs.flops(module),
        "bytes": costs.memory_bytes(module),
        "reported": {"flops": reported.get("flops"), "bytes": reported.get("bytes accessed")},
        "unknown_loops": module.unknown_loops,
        "collectives": _collectives(module, topology, program),
    }
    return plan | {"roofline": roofline(plan, topology)}


def roofline(plan: Plan, topology: Topology) -> dict[str, Any]:
    """The step time that the slowest of arithmetic, memory and links alone would take, and the MFU that follows."""
    chip = topology.device
    times = {
        "compute": plan["flops"] / chip.bf16,
        "memory": plan["bytes"] / chip.hbm_bandwidth,
        "collectives": sum(row["seconds"] for row in plan["collectives"]),
    }
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    return {
        "seconds": times,
        "bound": bound,
        "step_seconds": step,
        "mfu": plan["model_flops"] / (step * chip.bf16),
        "examples_per_second": plan["batch_size"] / step,
    }


def _collectives(module: Module, topology: Topology, program: Program) -> list[dict[str, Any]]:
    order = list(program.mesh.devices.flat)
    found = costs.collectives(module, devices=len(order))
    return [
        {
            "kind": kind,
            "axes": over,
            "executions": sum(one.times for one in same),
            "bytes": sum(one.times * one.bytes for one in same),
            "sent_bytes": sum(one.times * one.sent for one in same),
            "seconds": sum(topology.seconds(one, order) for one in same),
        }
        for kind, over, same in costs.by_kind(found, dict(program.mesh.shape))
    ]


def _bytes_a_device(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def helps(experiment: Experiment, plan: Plan, *, needed: float) -> list[str]:
    """What would make a plan that does not fit smaller, the cheapest first."""
    usable, state = plan["usable_bytes"], plan["state_bytes"]
    found = []
    if experiment.precision == "float32":
        found.append("precision=bfloat16: halves what is kept of the towers")
    texts = plan["batch_size"] * (experiment.data.captions_per_image + experiment.data.negatives_per_image)
    shards = _shards(plan)
    matrix = 4 * plan["batch_size"] * texts / shards
    if experiment.objective.get("impl") == "dense" and matrix > 0.05 * usable:
        found.append(f"objective.impl=ring: the loss alone holds {matrix / 2**30:.1f} GiB for a matrix of logits")
    if experiment.model.remat != "full":
        found.append("model.remat=full: keeps the blocks' inputs alone, for a third more arithmetic")
    rows, parts = plan["batch_size_a_device"], experiment.micro_batches
    if (more := next((k for k in range(2 * parts, rows + 1, parts) if rows % k == 0), None)) is not None:
        once = "" if parts > 1 else ", for a third more arithmetic"
        found.append(f"micro_batches={more}: the towers hold {rows // more} examples of {rows} at a time{once}")
    if plan["mesh"].get("fsdp", 1) < shards and state > 0.1 * usable:
        found.append(f"mesh.fsdp={_more(plan)}: splits parameters and moments, {state / 2**30:.1f} GiB a device now")
    if needed > state and usable > state:
        each = math.floor(rows / parts * (usable - state) / (needed - state)) * parts
        if each >= 1:
            found.append(f"batch_size={each * shards}: about what fits, or more devices")
    return found


def _shards(plan: Plan) -> int:
    """Over how many devices the batch is split."""
    return math.prod(plan["mesh"].get(axis, 1) for axis in BATCH_AXES)


def _more(plan: Plan) -> int:
    """A few times more shards than there are."""
    now, shards = plan["mesh"].get("fsdp", 1), _shards(plan)
    return next((now * factor for factor in (8, 4, 2) if shards % (now * factor) == 0), shards)


def fit_batch(
    experiment: Experiment,
    topology: Topology,
    *,
    compilations: int = 6,
) -> Plan:
    """The plan of the largest global batch that fits, as near as so many compilations come; ``tried`` is all of them.

    Memory grows almost as a line in the batch: through two of its points the next guess is drawn, and every guess is
    compiled. A guess that goes wrong narrows the bracket, which is at least cut in half. A compilation takes minutes
    for a large model: ``note`` hears of each.
    """
    shards = num_shards(batch_sharding(make_mesh(experiment.mesh, devices=topology.devices)))
    least = shards * experiment.micro_batches
    tried: dict[int, Plan] = {}
    each = max(experiment.batch_size // least, LEAST_TRIED)
    while len(tried) < compilations:
        tried[each] = plan = of(dataclasses.replace(experiment, batch_size=each * least), topology)
        logger.info(
            f"batch_size={each * least}: needs {plan['needed_bytes'] / GIB:.2f} GiB of "
            f"{topology.device.usable / GIB:.2f}; compiled in {plan['compile_seconds']:.0f} s"
        )
        guess = next_guess(
            {size: (plan["fits"], plan["needed_bytes"]) for size, plan in tried.items()},
            fixed=tried[each]["state_bytes"],
            usable=topology.device.usable,
        )
        if guess is None:
            break
        each = guess
    fitting = [size for size, plan in tried.items() if plan["fits"]]
    if not fitting:
        raise ConfigError(
            f"--fit=batch: not even batch_size={min(tried) * least} fits on {topology.name}; split the state over "
            "more devices with mesh.fsdp, or take larger chips"
        )
    history = [
        {"batch_size": size * least, "fits": plan["fits"], "needed_bytes": plan["needed_bytes"]}
        for size, plan in sorted(tried.items())
    ]
    return tried[max(fitting)] | {"tried": history}


def next_guess(tried: dict[int, tuple[bool, float]], *, fixed: float, usable: float) -> int | None:
    """The batch a device to try next, from what others needed; None where no better one is left to find.

    ``fixed`` bytes are needed by any. A twentieth more batch is not worth a compilation; and the line is followed to
    a little less than what is there, because a program that just does not fit says nothing of one that does.
    """
    points = sorted({0: fixed, **{size: needed for size, (_, needed) in tried.items()}}.items())
    low = max((size for size, (fits, _) in tried.items() if fits), default=0)
    high = min((size for size, (fits, _) in tried.items() if not fits), default=None)
    worth = max(1, low // 20)
    if (high is not None and high - low <= worth) or (low and tried[low][1] >= 0.95 * usable):
        return None
    near = sorted(sorted(points, key=lambda point: abs(point[1] - usable))[:2])
    (left, below), (right, above) = near
    target = TARGET * usable
    slope = (above - below) / (right - left)
    guess = math.floor(left + (target - below) / slope) if slope > 0 else 2 * right
    if high is None:
        return guess if guess > low + worth else None
    if 0 < low <= guess <= low + worth:  # the line says that this one is it
        return None
    if not low < guess < high:
        guess = (low + high) // 2
    return guess
