"""FLOPs of a computation, counted in its trace, before any compiler has seen it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

PallasFlops = dict[tuple[str, tuple[int, ...]], float]
"""FLOPs of one call of a Pallas kernel, by its name and the shape of its first result."""


def count_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products and convolutions over all devices, two for each multiply-add.

    A loop counts as often as it runs, or once if that is not known; of branches the most expensive one counts.
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
            dilation = math.prod(params["lhs_dilation"])
            total += 2 * equation.outvars[0].aval.size * kernel.size / features / dilation
        elif name == "cond":
            total += max(count_flops(branch) for branch in params["branches"])
        else:
            total += _times(name, params) * sum(count_flops(inner) for inner in _inner(name, params))
    return total


def count_pallas_flops(jaxpr: Any) -> PallasFlops:
    """Returns what the Pallas kernels of a computation cost, which a compiled program does not show."""
    return {
        (str(equation.params["name"]), equation.outvars[0].aval.shape): (
            _times("pallas_call", equation.params) * count_flops(equation.params["jaxpr"])
        )
        for equation in _equations(jaxpr)
        if equation.primitive.name == "pallas_call"
    }


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _equations(inner)


def _inner(name: str, params: dict[str, Any]) -> list[Any]:
    if name == "while":
        return [params["body_jaxpr"]]
    return [value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def _times(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its inner shapes are one device's; along axes that split nothing there are copies
        split = {
            axis
            for spec in params["in_specs"]
            for entry in spec
            for axis in (entry if isinstance(entry, tuple) else (entry,))
        }
        return math.prod(params["mesh"].shape[axis] for axis in split - {None})
    return 1
