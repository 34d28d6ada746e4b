"""Device time of a profiler trace: by kind of operation, by operation, and by step."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmjax.program.op_kinds import OP_KINDS, OpKind, kind_from_name

_DEVICE = re.compile(r"^/device:(?:GPU|TPU):\d+$")
_INSTRUCTION = re.compile(r"^%([\w.\-]+) = ")


class Op(NamedTuple):
    """One execution of an operation, in nanoseconds."""

    name: str
    kind: OpKind
    start: float
    end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpTime:
    """Seconds and executions of one operation, per step and device."""

    name: str
    kind: OpKind
    seconds: float
    count: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Device time of the traced steps: means over steps and over this process's devices.

    Args:
      steps: number of steps.
      devices: number of devices.
      step_seconds: seconds of each step.
      fractions: fraction of the time by kind; overlapping operations count for the kind that comes first.
      idle: fraction of the time without any operation; ``fractions`` and ``idle`` sum to 1.
      busy_seconds: seconds per step in which a kind runs, overlapped or not.
      ops: operations, the longest first.
    """

    steps: int
    devices: int
    step_seconds: tuple[float, ...]
    fractions: dict[OpKind, float]
    idle: float
    busy_seconds: dict[OpKind, float]
    ops: tuple[OpTime, ...]


class EmptyTrace(ValueError):
    """The trace has no device operations."""


def summarize(
    profile: Any, *, steps: int, kinds: Mapping[str, OpKind] | None = None, module: str | None = None
) -> Summary:
    """Returns the device time of a trace.

    Args:
      profile: a ``jax.profiler.ProfileData``.
      steps: number of training steps in the trace.
      kinds: kinds of instructions by name, from ``instruction_kinds``.
      module: name of the training program; operations of others, such as an evaluation, get the kind ``elsewhere``.
    """
    devices = {name: ops for name, ops in device_ops(profile, kinds=kinds or {}, module=module).items() if ops}
    if not devices:
        raise EmptyTrace("the trace has no device operations")
    exclusive, busy = Counter[OpKind](), Counter[OpKind]()
    seconds, counts = defaultdict[tuple[str, OpKind], float](float), Counter[tuple[str, OpKind]]()
    total = 0.0
    lengths: tuple[float, ...] = ()
    for ops in devices.values():
        starts = _step_starts(ops, steps)
        first, last = starts[0], max((op.end for op in ops if op.kind != "elsewhere"), default=ops[-1].end)
        ends = [*starts[1:], last]
        lengths = lengths or tuple(1e-9 * (end - start) for start, end in zip(starts, ends, strict=True))
        within = [
            op._replace(start=max(op.start, first), end=min(op.end, last))
            for op in ops
            if op.end > first and op.start < last
        ]
        device_exclusive, device_busy = _time_by_kind(within)
        exclusive.update(device_exclusive)
        busy.update(device_busy)
        total += last - first
        for op in within:
            if op.kind != "control":  # it contains the operations of its body
                seconds[op.name, op.kind] += op.end - op.start
                counts[op.name, op.kind] += 1
    count = len(devices) * steps
    total = max(total, 1.0)
    op_times = [
        OpTime(name=name, kind=kind, seconds=1e-9 * taken / count, count=counts[name, kind] / count)
        for (name, kind), taken in seconds.items()
    ]
    return Summary(
        steps=steps,
        devices=len(devices),
        step_seconds=lengths,
        fractions={kind: exclusive[kind] / total for kind in OP_KINDS},
        idle=max(0.0, 1 - sum(exclusive.values()) / total),
        busy_seconds={kind: 1e-9 * busy[kind] / count for kind in OP_KINDS},
        ops=tuple(sorted(op_times, key=lambda op: (-op.seconds, op.name))),
    )


def device_ops(profile: Any, *, kinds: Mapping[str, OpKind], module: str | None) -> dict[str, list[Op]]:
    """Returns the operations of each device, ordered by start.

    A GPU has one trace line per stream. A TPU has one line of operations and one of programs. CPU operations appear in
    host threads and carry a device number.
    """
    # jaxlib makes the type of an event's stats at their first use, and aborts if Python's warning about the type's name
    # is an error (Python 3.13, jax 0.12).
    warnings.filterwarnings("ignore", "builtin type event_stats has no __module__", DeprecationWarning)
    result: dict[str, list[Op]] = {}
    planes = list(profile.planes)
    for plane in planes:
        if _DEVICE.match(plane.name):
            result[plane.name.removeprefix("/device:")] = _plane_ops(plane, kinds, module)
    if not result:
        for plane in planes:
            if plane.name == "/host:CPU":
                for line in plane.lines:
                    for event in line.events:
                        stats = dict(event.stats)
                        if "hlo_op" in stats:
                            device = f"CPU:{stats.get('device_ordinal', 0)}"
                            op = _op(event, stats, stats.get("hlo_module"), kinds, module)
                            result.setdefault(device, []).append(op)
    return {name: sorted(ops, key=lambda op: op.start) for name, ops in result.items()}


def _plane_ops(plane: Any, kinds: Mapping[str, OpKind], module: str | None) -> list[Op]:
    lines = {line.name: line for line in plane.lines}
    streams = [line for name, line in lines.items() if name.startswith("Stream")]
    programs = []
    if not streams and "XLA Modules" in lines:
        programs = [(e.start_ns, e.end_ns, e.name.partition("(")[0]) for e in lines["XLA Modules"].events]
    ops = []
    for line in streams or [lines[name] for name in ("XLA Ops",) if name in lines]:
        for event in line.events:
            stats = dict(event.stats)
            own = stats.get("hlo_module")
            if own is None:
                own = next((name for start, end, name in programs if start <= event.start_ns < end), None)
            ops.append(_op(event, stats, own, kinds, module))
    return ops


def _op(event: Any, stats: Mapping[str, Any], own: str | None, kinds: Mapping[str, OpKind], module: str | None) -> Op:
    match = _INSTRUCTION.match(event.name)
    name = str(stats.get("hlo_op") or (match[1] if match else event.name))
    kind = kinds.get(name)
    if own is not None and module is not None and own != module:
        name, kind = f"{own}: {name}", "elsewhere"
    elif kind is None:
        kind = kind_from_name(str(stats.get("hlo_category", "")) or name, event.name)
    return Op(name, kind, event.start_ns, event.end_ns)


def _step_starts(ops: Sequence[Op], steps: int) -> list[float]:
    """Returns the start of each step on a device: that of the first operation that runs once per step.

    If the profiler has dropped events so that there is none, steps are assumed to be equally long.
    """
    own = [op for op in ops if op.kind != "elsewhere"] or list(ops)
    starts: dict[str, list[float]] = defaultdict(list)
    for op in own:
        starts[op.name].append(op.start)
    once = [times for times in starts.values() if len(times) == steps]
    if once:
        return min(once)
    first, last = own[0].start, max(op.end for op in own)
    return [first + i * (last - first) / steps for i in range(steps)]


def _time_by_kind(ops: Iterable[Op]) -> tuple[Counter[OpKind], Counter[OpKind]]:
    """Returns nanoseconds by kind: those in which no earlier kind runs, and all."""
    changes = sorted(change for op in ops for change in ((op.start, 1, op.kind), (op.end, -1, op.kind)))
    running, exclusive, busy = Counter[OpKind](), Counter[OpKind](), Counter[OpKind]()
    before = 0.0
    for time, change, kind in changes:
        active = [k for k in OP_KINDS if running[k] > 0]
        for k in active:
            busy[k] += time - before  # type: ignore[assignment]
        if active:
            exclusive[active[0]] += time - before  # type: ignore[assignment]
        running[kind] += change
        before = time
    return exclusive, busy
