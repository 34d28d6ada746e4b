"""How rows of a batch lie over devices: all that models, objectives and evaluators know about a mesh."""

from __future__ import annotations

import functools
import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec


def num_shards(row_sharding: NamedSharding | None) -> int:
    """The number of shards that rows are split into; further devices hold copies of these. None is one device."""
    if row_sharding is None or not row_sharding.spec or row_sharding.spec[0] is None:
        return 1
    axes = row_sharding.spec[0] if isinstance(row_sharding.spec[0], tuple) else (row_sharding.spec[0],)
    return math.prod(row_sharding.mesh.shape[axis] for axis in axes)


def platform_of(row_sharding: NamedSharding | None) -> str | None:
    """``cpu``, ``gpu`` or ``tpu``: what the program is compiled for, which may not be here; None if that is unknown."""
    return None if row_sharding is None else row_sharding.mesh.devices.flat[0].platform


def from_here(row_sharding: NamedSharding | None) -> NamedSharding | None:
    """``row_sharding`` as the code being traced sees it.

    Within ``jax.shard_map`` over the axes that split the rows, arrays hold a device's own rows. What is left to say is
    that no other axis splits them; None if there is no other.
    """
    here = jax.sharding.get_abstract_mesh()
    if row_sharding is None or not here.manual_axes:
        return row_sharding
    if all(here.shape[axis] == 1 for axis in here.axis_names if axis not in here.manual_axes):
        return None
    return NamedSharding(here, PartitionSpec())


def constrain_rows(x: jax.Array, row_sharding: NamedSharding | None) -> jax.Array:
    """``x`` [N, …], with its rows and those of its gradient split over the devices, and no other axis.

    Without the constraint the compiler splits activations like parameters, by width, and holds all rows on every
    device. There is no constraint if the rows do not divide evenly, or if there is only one device.
    """
    row_sharding = from_here(row_sharding)
    if row_sharding is None or row_sharding.mesh.size == 1 or x.shape[0] % num_shards(row_sharding):
        return x
    return jax.lax.with_sharding_constraint(x, row_sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def pin_layout(x: jax.Array, row_sharding: NamedSharding | None) -> jax.Array:
    """``x`` [B,N,D] and its gradient with D innermost in memory, each device its own rows.

    On GPUs the compiler otherwise takes B, and norms become slow. The constraint is not partitioned: without
    ``shard_map`` every device would gather all rows for it.
    """
    if platform_of(row_sharding) != "gpu":
        return x
    pin = functools.partial(with_layout_constraint, layouts=Layout((0, 1, 2)))
    local = from_here(row_sharding)
    if local is None or local.mesh.size == 1:
        return pin(x)
    if x.shape[0] % num_shards(local):
        return x
    free = set(local.mesh.axis_names) - set(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.shard_map(
        pin, mesh=local.mesh, in_specs=local.spec, out_specs=local.spec, axis_names=free, check_vma=False
    )(x)


def _pin_forward(x: jax.Array, row_sharding: NamedSharding | None) -> tuple[jax.Array, None]:
    return pin_layout(x, row_sharding), None


def _pin_backward(row_sharding: NamedSharding | None, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (pin_layout(gradient, row_sharding),)


pin_layout.defvjp(_pin_forward, _pin_backward)
