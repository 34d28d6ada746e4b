"""Plans: memory, FLOPs, kernels and communication of a training step compiled for TPUs or GPUs, with none attached."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from mmjax.parallel.sharding import batch_shardings
from mmjax.planning.abstract_data import batch_shapes, resolve_without_data
from mmjax.program import kernels as programs
from mmjax.program.chips import GIB, Chip
from mmjax.program.collectives import collectives, group_by_kind
from mmjax.program.flops import count_pallas_flops
from mmjax.program.hlo import Module
from mmjax.program.kernels import Kernel
from mmjax.program.source_lines import SourceLines
from mmjax.program.topology import OutOfMemory, Topology, compile_program
from mmjax.train.program import Program, with_shardings

logger = logging.getLogger(__name__)

Plan = dict[str, Any]

MIN_ROWS_PER_DEVICE, MAX_ROWS_PER_DEVICE = 8, 256
"""Bounds of the first guess of ``fit_batch``: with fewer rows almost all memory is independent of the batch size, and
memory far above a device's limit says little of memory below it, because XLA computes values again to save some."""

NUM_EXPLAINED = 20
"""Rows of ``make_plan(explain=True)``."""

LARGEST_MEMORY_FRACTION = 0.9
"""Of a GPU's memory; the rest is for CUDA, its libraries and communication."""

ROWS_MULTIPLE = 8
"""``fit_batch`` takes multiples of so many rows on each device, if as many fit: products of other sizes are slower."""

TARGET_FRACTION = 0.98
"""Fraction of a device's memory that guesses of ``next_guess`` aim at."""


def make_plan(experiment: Experiment, topology: Topology, *, explain: bool = False) -> Plan:
    """Compiles the training step and returns its figures, which ``plan_text.format_plan`` explains.

    If the step does not fit, the plan has its memory and suggestions only.

    Args:
      experiment: what to train; its data is not read.
      topology: from ``mmjax.program.topologies.make_topology``, of ``v5e:16x16`` or ``h100:8``.
      explain: whether to list the dearest kernels, each with the line of the source that it comes from.
    """
    mesh = make_mesh(experiment.mesh, devices=topology.devices)
    shards = num_shards(batch_sharding(mesh))
    experiment, notes = resolve_without_data(experiment, shards=shards)
    program = Program(experiment, devices=topology.devices)
    batch = batch_shapes(experiment)
    batch = with_shardings(batch, batch_shardings(batch, program.mesh))
    devices = program.mesh.size
    before = time.perf_counter()
    traced = program.trace(batch)
    lowered = traced.lower()
    abstract_state = program.abstract_state
    state, parameters, batch_bytes = map(_bytes_per_device, (abstract_state, abstract_state.params, batch))
    plan: Plan = {
        "topology": topology.name,
        "chips": devices // topology.chip.devices,
        "devices": devices,
        "mesh": dict(program.mesh.shape),
        "batch_size": experiment.batch_size,
        "batch_size_per_device": experiment.batch_size // shards,
        "precision": experiment.precision,
        "micro_batches": experiment.micro_batches,
        "remat": experiment.model.remat,
        "attention": {tower: str(choice) for tower, choice in program.attention.items()},
        "state_bytes": state,
        "parameter_bytes": parameters,
        "batch_bytes": batch_bytes,
        "hbm_bytes": topology.device.hbm,
        "usable_bytes": topology.usable_bytes,
        "published": _published(topology),
        "notes": notes,
    }
    try:
        compiled = compile_program(lowered, topology.compiler_options)
    except OutOfMemory as error:
        seconds = time.perf_counter() - before
        suggestions = suggest_changes(experiment, plan, needed=error.needed)
        return plan | {
            "fits": False, "needed_bytes": error.needed, "suggestions": suggestions, "compile_seconds": seconds
        }  # fmt: skip
    plan["compile_seconds"] = time.perf_counter() - before
    analysis: Any = compiled.memory_analysis()
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "output": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    plan["host_bytes"] = analysis.host_argument_size_in_bytes + analysis.host_temp_size_in_bytes
    plan |= {"memory": memory, "needed_bytes": sum(memory.values()) - 2 * memory["aliased"]}
    plan["fits"] = plan["needed_bytes"] <= topology.usable_bytes
    if not plan["fits"]:
        plan["suggestions"] = suggest_changes(experiment, plan, needed=plan["needed_bytes"])
    plan["model_flops"] = program.count_flops(batch_shapes(experiment)) / devices
    try:
        text = str(compiled.as_text())
        module = Module(text)
    except jax.errors.JaxRuntimeError as error:  # programs for the newest chips may have syntax that only libtpu parses
        notes.append(
            f"this jaxlib cannot read the compiled program, so FLOPs and traffic are unknown: {error}".splitlines()[0]
        )
        return plan
    pallas = count_pallas_flops(traced.jaxpr)
    kernels = programs.find_kernels(module, topology.device, SourceLines(text), pallas=pallas)
    reported = compiled.cost_analysis() or {}
    by_kind = programs.summarize_by_kind(kernels)
    plan |= {
        "flops": float(sum(row["flops"] for row in by_kind)),
        "bytes": float(sum(row["bytes"] for row in by_kind)),
        "reported": {"flops": reported.get("flops"), "bytes": reported.get("bytes accessed")},
        "kernels": by_kind,
        "float32_products": programs.rank_kernels(programs.float32_products(kernels)),
        "unknown_loops": module.unknown_loops,
        "collectives": _collectives(module, kernels, topology, program),
    }
    if explain:
        plan["dearest_kernels"] = programs.rank_kernels(kernels, count=NUM_EXPLAINED)
    return plan | {"roofline": roofline(plan, topology), "estimate": estimate(plan, topology.device)}


def _published(topology: Topology) -> dict[str, Any]:
    """Returns the figures that times are computed from."""
    names = ("hbm_bandwidth", "bf16", "f32", "f32_full", "eight_bit")
    return {**{name: getattr(topology.device, name) for name in names}, "links": topology.links}


def roofline(plan: Plan, topology: Topology) -> dict[str, Any]:
    """Returns the roofline model: the step time bound by compute, memory or links, and the MFU at that bound."""
    times = {
        "compute": sum(row["compute_seconds"] for row in plan["kernels"]),
        "memory": plan["bytes"] / topology.device.hbm_bandwidth,
        "collectives": sum(row["seconds"] for row in plan["collectives"]),
    }
    bound = max(times, key=lambda name: times[name])
    return {"seconds": times, "bound": bound, **_speed(plan, topology.device, times[bound])}


def estimate(plan: Plan, chip: Chip) -> dict[str, Any]:
    """Returns the step time of kernels one after the other, each at its own bound, and what MFU that is.

    Collectives count as far as the compiler's schedule runs no kernel beside them.
    """
    kernels = sum(row["seconds"] for row in plan["kernels"])
    exposed = sum(row["exposed_seconds"] for row in plan["collectives"])
    return {"kernel_seconds": kernels, "exposed_seconds": exposed, **_speed(plan, chip, kernels + exposed)}


def _speed(plan: Plan, chip: Chip, seconds: float) -> dict[str, float]:
    return {
        "step_seconds": seconds,
        "mfu": plan["model_flops"] / (seconds * chip.bf16),
        "examples_per_second": plan["batch_size"] / seconds,
    }


def _collectives(
    module: Module, kernels: Sequence[Kernel], topology: Topology, program: Program
) -> list[dict[str, Any]]:
    order = list(program.mesh.devices.flat)
    overlaps = programs.find_overlaps(module, kernels)
    rows = []
    for kind, axes, same in group_by_kind(collectives(module, devices=len(order)), dict(program.mesh.shape)):
        seconds = [topology.seconds(one, order) for one in same]
        beside = [overlaps.get(one.name, programs.Overlap(0.0, False)) for one in same]
        rows.append(
            {
                "kind": kind,
                "axes": axes,
                "executions": sum(one.times for one in same),
                "bytes": sum(one.times * one.bytes for one in same),
                "sent_bytes": sum(one.times * one.sent for one in same),
                "overlapped_bytes": sum(
                    one.times * one.bytes for one, its in zip(same, beside, strict=True) if its.has_product
                ),
                "seconds": sum(seconds),
                "exposed_seconds": sum(
                    max(0.0, each - one.times * its.seconds)
                    for one, each, its in zip(same, seconds, beside, strict=True)
                ),
            }
        )
    return rows


def _bytes_per_device(tree: Any) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def suggest_changes(experiment: Experiment, plan: Plan, *, needed: float) -> list[str]:
    """Returns changes of the configuration that reduce memory, the cheapest first."""
    usable, state = plan["usable_bytes"], plan["state_bytes"]
    changes = []
    if experiment.precision == "float32":
        changes.append("precision=bfloat16: halves the activations of the towers")
    texts = plan["batch_size"] * (experiment.data.captions_per_image + experiment.data.negatives_per_image)
    shards = _shards(plan)
    matrix = 4 * plan["batch_size"] * texts / shards
    if experiment.objective.get("impl") == "dense" and matrix > 0.05 * usable:
        changes.append(f"objective.impl=ring: the loss alone needs {matrix / 2**30:.1f} GiB for a matrix of logits")
    if experiment.model.remat in ("none", "dots"):
        changes.append("model.remat=attention: keeps no hidden layers of the MLPs, for a ninth more FLOPs")
    if experiment.model.remat != "full":
        changes.append("model.remat=full: keeps only the inputs of the blocks, for a third more FLOPs")
    rows, micro_batches = plan["batch_size_per_device"], experiment.micro_batches
    if (
        more := next((k for k in range(2 * micro_batches, rows + 1, micro_batches) if rows % k == 0), None)
    ) is not None:
        cost = "" if micro_batches > 1 else ", for a third more FLOPs"
        changes.append(f"micro_batches={more}: the towers process {rows // more} of {rows} examples at a time{cost}")
    if plan["mesh"].get("data", 1) > 1 and experiment.mesh.optimizer != "zero" and state > 0.1 * usable:
        changes.append("mesh.optimizer=zero: splits moments and averages over mesh.data")
    if plan["mesh"].get("fsdp", 1) < shards and state > 0.1 * usable:
        changes.append(
            f"mesh.fsdp={_more_fsdp(plan)}: shards parameters and moments, now {state / 2**30:.1f} GiB per device"
        )
    if max(usable, needed) < LARGEST_MEMORY_FRACTION * plan["hbm_bytes"]:  # only a GPU's client leaves so much
        changes.append(f"XLA_CLIENT_MEM_FRACTION={LARGEST_MEMORY_FRACTION} in the environment: JAX takes more memory")
    if needed > state and usable > state:
        per_device = math.floor(rows / micro_batches * (usable - state) / (needed - state)) * micro_batches
        if per_device >= 1:
            changes.append(f"batch_size={per_device * shards}: about what fits, or use more devices")
    return changes


def _shards(plan: Plan) -> int:
    """Returns the number of devices that split the batch."""
    return math.prod(plan["mesh"].get(axis, 1) for axis in BATCH_AXES)


def _more_fsdp(plan: Plan) -> int:
    """Returns up to 8 times the current ``mesh.fsdp``."""
    now, shards = plan["mesh"].get("fsdp", 1), _shards(plan)
    return next((now * factor for factor in (8, 4, 2) if shards % (now * factor) == 0), shards)


def fit_batch(
    experiment: Experiment,
    topology: Topology,
    *,
    compilations: int = 6,
    explain: bool = False,
) -> Plan:
    """Searches for the largest global batch that fits, a multiple of 8 on each device, and returns its plan.

    Memory is almost linear in the batch size, and with no rows it is that of state and gradients. The search
    extrapolates through that and a compiled point, compiles the guess, and bisects when a guess leaves the bracket. A
    compilation of a large model takes minutes; each one is logged.

    Args:
      experiment: what to train; its batch size is the first guess, within limits.
      topology: the devices.
      compilations: maximum number of compilations.
      explain: as in ``make_plan``.

    Returns:
      The plan, with all batch sizes under ``tried``.
    """
    shards = num_shards(batch_sharding(make_mesh(experiment.mesh, devices=topology.devices)))
    multiple = shards * experiment.micro_batches
    tried: dict[int, Plan] = {}
    each: int | None = min(max(experiment.batch_size // multiple, MIN_ROWS_PER_DEVICE), MAX_ROWS_PER_DEVICE)
    while each is not None and (each := _round_rows(each)) not in tried and len(tried) < compilations:
        tried[each] = plan = make_plan(
            dataclasses.replace(experiment, batch_size=each * multiple), topology, explain=explain
        )
        logger.info(
            f"batch_size={each * multiple}: needs {plan['needed_bytes'] / GIB:.2f} GiB of "
            f"{topology.usable_bytes / GIB:.2f}; compiled in {plan['compile_seconds']:.0f} s"
        )
        each = next_guess(
            {size: (plan["fits"], plan["needed_bytes"]) for size, plan in tried.items()},
            fixed=plan["state_bytes"] + plan["parameter_bytes"],  # of which the latter are gradients
            usable=topology.usable_bytes,
        )
    fitting = [size for size, plan in tried.items() if plan["fits"]]
    if not fitting:
        raise ConfigError(
            f"--fit=batch: not even batch_size={min(tried) * multiple} fits on {topology.name}; shard the state over "
            "more devices with mesh.fsdp, or use larger chips"
        )
    history = [
        {"batch_size": size * multiple, "fits": plan["fits"], "needed_bytes": plan["needed_bytes"]}
        for size, plan in sorted(tried.items())
    ]
    return tried[max(fitting)] | {"tried": history}


def _round_rows(each: int) -> int:
    return each - each % ROWS_MULTIPLE if each > ROWS_MULTIPLE else each


def next_guess(tried: dict[int, tuple[bool, float]], *, fixed: float, usable: float) -> int | None:
    """Returns the multiple of the smallest batch to try next, or None if the search has converged.

    The search stops within 5 % of the largest batch. Guesses aim slightly below the limit, because a program that just
    does not fit yields no plan.

    Args:
      tried: for each tried multiple, whether it fits and the bytes it needs.
      fixed: bytes that are needed at any batch size.
      usable: bytes that are available.
    """
    points = sorted({0: fixed, **{size: needed for size, (_, needed) in tried.items()}}.items())
    low = max((size for size, (fits, _) in tried.items() if fits), default=0)
    high = min((size for size, (fits, _) in tried.items() if not fits), default=None)
    tolerance = max(1, low // 20)
    if (high is not None and high - low <= tolerance) or (low and tried[low][1] >= 0.95 * usable):
        return None
    nearest = sorted(sorted(points, key=lambda point: abs(point[1] - usable))[:2])
    (left, below), (right, above) = nearest
    target = TARGET_FRACTION * usable
    slope = (above - below) / (right - left)
    guess = math.floor(left + (target - below) / slope) if slope > 0 else 2 * right
    if high is None:
        return guess if guess > low + tolerance else None
    if 0 < low <= guess <= low + tolerance:  # the linear model predicts that ``low`` is the largest
        return None
    if not low < guess < high:
        guess = (low + high) // 2
    return guess
