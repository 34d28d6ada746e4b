"""Where device time went, from a profiler's trace: by kind of operation, by operation, and by step."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmjax.program.op_kinds import KINDS, Kind, named

_DEVICE = re.compile(r"^/device:(?:GPU|TPU):\d+$")
_INSTRUCTION = re.compile(r"^%([\w.\-]+) = ")


class Op(NamedTuple):
    """One execution of an operation, in nanoseconds."""

    name: str
    kind: Kind
    start: float
    end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One operation's executions: seconds and count of a step on a device."""

    name: str
    kind: Kind
    seconds: float
    count: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What the traced steps did on this process's devices, means over these and over steps; seconds of one step.

    ``shares`` gives each moment to one kind, ``idle`` to none: with it they add up to 1. ``beside`` is the time of a
    kind whatever else ran.
    """

    steps: int
    devices: int
    step_seconds: tuple[float, ...]
    shares: dict[Kind, float]
    idle: float
    beside: dict[Kind, float]
    rows: tuple[Row, ...]


class NothingTraced(ValueError):
    """The trace holds no operation of a device."""


def summarise(
    profile: Any, *, steps: int, kinds: Mapping[str, Kind] | None = None, module: str | None = None
) -> Summary:
    """Of a ``jax.profiler.ProfileData`` that holds ``steps`` steps of the program ``module``.

    Operations of other programs, such as an evaluation in between, are of the kind ``elsewhere``.
    """
    devices = {name: ops for name, ops in operations(profile, kinds=kinds or {}, module=module).items() if ops}
    if not devices:
        raise NothingTraced("no operation of a device is in the trace")
    shares, beside = Counter[Kind](), Counter[Kind]()
    seconds, counts = defaultdict[tuple[str, Kind], float](float), Counter[tuple[str, Kind]]()
    total = 0.0
    lengths: tuple[float, ...] = ()
    for ops in devices.values():
        begins = _begins(ops, steps)
        first, last = begins[0], max((op.end for op in ops if op.kind != "elsewhere"), default=ops[-1].end)
        ends = [*begins[1:], last]
        lengths = lengths or tuple(1e-9 * (end - begin) for begin, end in zip(begins, ends, strict=True))
        within = [
            op._replace(start=max(op.start, first), end=min(op.end, last))
            for op in ops
            if op.end > first and op.start < last
        ]
        alone, together = _shared(within)
        shares.update(alone)
        beside.update(together)
        total += last - first
        for op in within:
            if op.kind != "control":  # it lasts as long as what it runs
                seconds[op.name, op.kind] += op.end - op.start
                counts[op.name, op.kind] += 1
    each = len(devices) * steps
    total = max(total, 1.0)
    rows = [
        Row(name=name, kind=kind, seconds=1e-9 * taken / each, count=counts[name, kind] / each)
        for (name, kind), taken in seconds.items()
    ]
    return Summary(
        steps=steps,
        devices=len(devices),
        step_seconds=lengths,
        shares={kind: shares[kind] / total for kind in KINDS},
        idle=max(0.0, 1 - sum(shares.values()) / total),
        beside={kind: 1e-9 * beside[kind] / each for kind in KINDS},
        rows=tuple(sorted(rows, key=lambda row: (-row.seconds, row.name))),
    )


def operations(profile: Any, *, kinds: Mapping[str, Kind], module: str | None) -> dict[str, list[Op]]:
    """The operations of each device in the order of their starts.

    A GPU has a line a stream. A TPU has one of operations, and one of the programs they belong to. The CPU's run in
    threads of the host's, and say which device they are of.
    """
    found: dict[str, list[Op]] = {}
    planes = list(profile.planes)
    for plane in planes:
        if _DEVICE.match(plane.name):
            found[plane.name.removeprefix("/device:")] = _of_plane(plane, kinds, module)
    if not found:
        for plane in planes:
            if plane.name == "/host:CPU":
                for line in plane.lines:
                    for event in line.events:
                        stats = dict(event.stats)
                        if "hlo_op" in stats:
                            device = f"CPU:{stats.get('device_ordinal', 0)}"
                            op = _op(event, stats, stats.get("hlo_module"), kinds, module)
                            found.setdefault(device, []).append(op)
    return {name: sorted(ops, key=lambda op: op.start) for name, ops in found.items()}


def _of_plane(plane: Any, kinds: Mapping[str, Kind], module: str | None) -> list[Op]:
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


def _op(event: Any, stats: Mapping[str, Any], own: str | None, kinds: Mapping[str, Kind], module: str | None) -> Op:
    written = _INSTRUCTION.match(event.name)
    name = str(stats.get("hlo_op") or (written[1] if written else event.name))
    kind = kinds.get(name)
    if own is not None and module is not None and own != module:
        name, kind = f"{own}: {name}", "elsewhere"
    elif kind is None:
        kind = named(str(stats.get("hlo_category", "")) or name, event.name)
    return Op(name, kind, event.start_ns, event.end_ns)


def _begins(ops: Sequence[Op], steps: int) -> list[float]:
    """When each step begins on a device: where the first of the operations that a step executes once does.

    Where the profiler has lost some, the steps are taken to be equally long.
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


def _shared(ops: Iterable[Op]) -> tuple[Counter[Kind], Counter[Kind]]:
    """Nanoseconds of each kind: those in which nothing of an earlier kind ran, and all."""
    changes = sorted(change for op in ops for change in ((op.start, 1, op.kind), (op.end, -1, op.kind)))
    running, alone, together = Counter[Kind](), Counter[Kind](), Counter[Kind]()
    before = 0.0
    for at, change, kind in changes:
        active = [k for k in KINDS if running[k] > 0]
        for k in active:
            together[k] += at - before  # type: ignore[assignment]
        if active:
            alone[active[0]] += at - before  # type: ignore[assignment]
        running[kind] += change
        before = at
    return alone, together
