"""Gradient caching: functions of rows run on one micro-batch at a time, and once more in the backward pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.config import ConfigError
from mmjax.core.row_sharding import num_shards

_Model = TypeVar("_Model", bound=nnx.Module)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """How many micro-batches a batch is split into, and how the devices share it.

    Args:
        number: 1 runs functions on the whole batch.
        row_sharding: of the batch; None: one device.
        param_shardings: of the parameters of the model; None: every device has all of them.
        gradient_dtype: in which devices send each other their sums; None: that of the parameters.
    """

    number: int = 1
    row_sharding: NamedSharding | None = None
    param_shardings: Any = None
    gradient_dtype: Any = None

    def map(self, f: Callable[[_Model, Any], _Result], model: _Model, rows: Any, *, count: int) -> _Result:
        """``f(model, rows)``, computed one micro-batch at a time, for a function that treats every row alone.

        The backward pass keeps ``rows`` and the result, runs ``f`` once more on each micro-batch, and sums gradients::

            ∂L/∂θ = Σ_p (∂f(x_p)/∂θ)ᵀ ∂L/∂f(x_p)

        With a loss over all rows after it this is GradCache (Gao et al. 2021, arXiv:2101.06983; for CLIP, Pham et al.
        2021, arXiv:2111.10050): exact, at the cost of one more forward pass of ``f``.

        Micro-batch p takes rows p, p + number, … of a device's part of each batch, so that no row moves between
        devices. Each device sums the gradients of its own rows in the type of the parameters; the devices add up their
        sums once, after the last micro-batch. Parameters that are split over the devices which share the rows are
        gathered before the first.

        Args:
            f: the function.
            model: what has the parameters of ``f``; gradients are taken of these and of ``rows`` alone.
            rows: a tree of arrays, each of one or several batches of ``count`` rows, one after another.
            count: the rows of one batch, divisible by ``number`` on each device.

        Returns:
            A tree of arrays with their rows in the order of ``rows``.
        """
        if self.number == 1:
            return f(model, rows)
        shards = num_shards(self.row_sharding)
        size, rest = divmod(count, self.number * shards)
        if rest:
            raise ValueError(f"{count} rows on {shards} devices do not divide into {self.number} micro-batches")
        graph, state = nnx.split(model)

        def split(x: jax.Array) -> jax.Array:
            x = x.reshape(-1, size, self.number, *x.shape[1:])
            return jnp.moveaxis(x, 2, 0).reshape(self.number, -1, *x.shape[3:])

        def join(x: jax.Array) -> jax.Array:
            x = x.reshape(self.number, -1, size, *x.shape[2:])
            return jnp.moveaxis(x, 0, 2).reshape(-1, *x.shape[3:])

        def run(params: Any, rows: Any) -> _Result:
            def f_once(rows: Any) -> _Result:
                return f(nnx.merge(graph, nnx.State(params)), rows)

            # Within a loop the compiler cannot merge the two forward passes, so its barrier against that is not needed.
            result = jax.lax.map(jax.checkpoint(f_once, prevent_cse=False), jax.tree.map(split, rows))
            return jax.tree.map(join, result)

        params = nnx.to_pure_dict(state)
        return run(params, rows) if shards == 1 else self._run_on_devices(run, params, rows, count=count)

    def _run_on_devices(self, run: Callable[[Any, Any], _Result], params: Any, rows: Any, *, count: int) -> _Result:
        """``run``, called on each device with its own rows and all parameters."""
        assert self.row_sharding is not None
        mesh, [row_axes] = self.row_sharding.mesh, self.row_sharding.spec

        whole = NamedSharding(mesh, PartitionSpec())
        shardings = jax.tree.map(lambda _: whole, params) if self.param_shardings is None else self.param_shardings

        def copy_axes(sharding: NamedSharding) -> list[tuple[str, ...]]:
            """Mesh axes along which a parameter is copied: those together that do not split it, then each other."""
            splits = [(axis,) for axis in row_axes if axis in sharding.spec]
            return [tuple(axis for axis in row_axes if (axis,) not in splits), *splits]

        def copy(x: jax.Array, sharding: NamedSharding) -> jax.Array:
            """One copy for each device that has rows of its own; each group of ``copy_axes`` adds an axis in front.

            Its gradient is the sum over these axes, one after the other: first over the devices that each keep a part.
            """
            spec: tuple[Any, ...] = tuple(sharding.spec)
            for axes in copy_axes(sharding):
                spec = (axes, *(None if split in axes else split for split in spec))
                number = math.prod(mesh.shape[axis] for axis in axes)
                x = _repeat(x, number, self.gradient_dtype or x.dtype)
                x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
            return x

        def on_device(params: Any, rows: Any) -> Any:
            own = jax.tree.map(lambda x, sharding: x.reshape(x.shape[len(copy_axes(sharding)) :]), params, shardings)
            result = run(own, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))
            return jax.tree.map(lambda x: x.reshape(-1, count // num_shards(self.row_sharding), *x.shape[1:]), result)

        copy_specs = jax.tree.map(lambda sharding: PartitionSpec(*reversed(copy_axes(sharding))), shardings)
        on_devices = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(copy_specs, PartitionSpec(None, row_axes)),
            out_specs=PartitionSpec(None, row_axes),
            axis_names={axis for axis in mesh.axis_names if axis in row_axes or mesh.shape[axis] == 1},
            check_vma=False,  # a device's copy is its own, so nothing is to be summed within
        )

        @jax.checkpoint  # copies of parameters are not kept for the backward pass
        def run_copies(params: Any, rows: Any) -> Any:
            return on_devices(jax.tree.map(copy, params, shardings), rows)

        result = run_copies(params, jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), rows))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _repeat(x: jax.Array, number: int, gradient_dtype: Any) -> jax.Array:
    """``number`` copies along a new first axis, whose gradients are added up in ``gradient_dtype``."""
    return jnp.broadcast_to(x, (number, *x.shape))


def _repeat_forward(x: jax.Array, number: int, gradient_dtype: Any) -> tuple[jax.Array, None]:
    return _repeat(x, number, gradient_dtype), None


def _repeat_backward(number: int, gradient_dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Not jnp.sum, which adds up halves in float32.
    sent = gradient.astype(gradient_dtype)
    return (jax.lax.reduce(sent, jnp.zeros((), sent.dtype), jax.lax.add, (0,)).astype(gradient.dtype),)


_repeat.defvjp(_repeat_forward, _repeat_backward)

WHOLE_BATCH = MicroBatches()


def check_micro_batches(micro_batches: int, *, batch_size: int, rows: int) -> None:
    """Raises ConfigError unless the ``rows`` of a batch on one device divide into equal micro-batches."""
    if rows % micro_batches:
        below = rows // micro_batches * micro_batches
        nearest = [size * batch_size // rows for size in (below, below + micro_batches) if size]
        raise ConfigError(
            f"micro_batches={micro_batches}: does not divide the {rows} examples of batch_size={batch_size} on each "
            f"device; the nearest batch sizes that it divides: {', '.join(map(str, nearest))}"
        )
