"""Arrays of which each device has a copy: whether the devices share the work of saving one."""

from __future__ import annotations

import functools

import jax
import orbax.checkpoint as ocp

MIN_BYTES = 1 << 20
"""What a device must have to save, for a share to be worth the operation that cuts it out."""


@functools.cache
def save_small_arrays_whole() -> None:
    """Has one device save each small array.

    Orbax cuts every array into a slice for each device that has a copy. On eight devices that is eight operations an
    array, each shape of which is compiled at the first save. Several processes share the writing in this way, so that
    with them it stays.
    """
    if jax.process_count() == 1:
        handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_BYTES)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
