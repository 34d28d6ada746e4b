"""Time what the device itself can do: matrix products of each type, and its memory.

Prints FLOP/s of large products and bytes/s of a pass over memory, beside the published figures: the bounds of a
training step's time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.commands.common import options
from mmjax.core.config import Ge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--size", type=int, metavar="N", help="rows of the matrices (default: 8192; on a CPU 1024)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="products of each type (default: 20)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the figures of the first device."""
    options.check_ranges(args, size=Ge(1), repeats=Ge(1))
    import jax

    size = args.size or (1024 if jax.default_backend() == "cpu" else 8192)
    options.print_result(measure(size, args.repeats), format_text, as_json=args.json)
    return 0


def measure(size: int, repeats: int) -> dict[str, Any]:
    """The first device's name, published figures, and measured FLOP/s and bytes/s.

    Args:
        size: Rows and columns of the matrices; memory is passed over in an array of as many float32.
        repeats: How often each is done in one program.
    """
    import jax
    import jax.numpy as jnp

    from mmjax.program.chips import find_chip

    device = jax.devices()[0]
    chip = find_chip(device.device_kind)

    def time_loop(body: Callable[[jax.Array], jax.Array], start: jax.Array) -> float:
        """Seconds of one ``body`` in a loop of ``repeats``, the best of three."""
        # The compiler does not know how often, so that it cannot join several into one.
        loop = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: body(y), x), donate_argnums=0)
        x = jax.block_until_ready(loop(start, repeats))  # compiles
        seconds = []
        for _ in range(3):
            before = time.perf_counter()
            x = jax.block_until_ready(loop(x, repeats))
            seconds.append(time.perf_counter() - before)
        return min(seconds) / repeats

    flops = {}
    for dtype in ("bfloat16", "float32"):
        # Random numbers, not zeros, of which a GPU multiplies more in a second; scaled, so that they stay as large.
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
        flops[dtype] = 2 * size**3 / time_loop(lambda x, matrix=matrix: x @ matrix, matrix + 0)  # type: ignore[misc]
    seconds = time_loop(lambda x: x + 1, jnp.zeros((size, size), jnp.float32))
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "cores": options.available_cores(),
        "chip": None if chip is None else chip.name,
        "flops_per_second": flops,
        "bytes_per_second": 2 * 4 * size**2 / seconds,
        "published": None
        if chip is None
        else {"bfloat16": chip.bf16, "float32": chip.f32, "bytes_per_second": chip.hbm_bandwidth},
    }


def format_text(summary: Mapping[str, Any]) -> str:
    """The figures as a table."""
    published = summary["published"] or {}
    measured = {**summary["flops_per_second"], "bytes_per_second": summary["bytes_per_second"]}
    units = {"bfloat16": "TFLOP/s", "float32": "TFLOP/s", "bytes_per_second": "TB/s of memory"}
    cells = [("", "measured", "published")]
    for name, value in measured.items():
        label = units[name] if name == "bytes_per_second" else f"{units[name]}, {name}"
        cells.append((label, f"{value / 1e12:.2f}", f"{published[name] / 1e12:.2f}" if published else "-"))
    return f"{summary['devices']} x {summary['device']}, jax {summary['jax']}\n{options.align(cells)}"
