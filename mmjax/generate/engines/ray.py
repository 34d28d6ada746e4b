"""Makes shards side by side in actors of Ray Data, on one machine or a cluster (extra ``ray``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.generate.job import Phase

_OBJECT_STORE = 100_000_000  # bytes; what actors give back are numbers


def run(phase: Phase, numbers: list[int], progress: Callable[[int], None]) -> None:
    """Makes the shards of those numbers; ``progress`` is called with numbers of examples that are done.

    The environment variable ``RAY_ADDRESS`` names a cluster, whose machines must share the output's folder; without it
    Ray runs in processes of this machine. There is an actor for each GPU, or for each CPU without any; it keeps
    its models for all of its shards.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--engine=ray: cannot be imported ({error}); pip install 'mmjax[ray]'") from None
    begins = not ray.is_initialized()
    if begins:
        _begin(ray)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        per_actor: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        actors = max(1, min(gpus or int(resources.get("CPU", 1)), len(numbers)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        shards = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        made = shards.map_batches(
            _Maker,
            fn_constructor_args=(phase,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            **per_actor,
        )
        for row in made.iter_rows():
            if row["error"]:
                raise ConfigError(str(row["error"]))
            progress(int(row["done"]))
    finally:
        if begins:
            ray.shutdown()


class _Maker:
    """An actor's side: makes one shard after the other with the same models."""

    def __init__(self, phase: Phase):
        self._phase = phase

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        done, errors = [], []
        for number in batch["number"].tolist():
            try:
                self._phase(number)
                errors.append("")
            except ConfigError as error:  # which Ray would wrap in pages of its own
                errors.append(str(error))
            done.append(len(self._phase.examples(number)))
        return {"done": done, "error": errors}


def _begin(ray: Any) -> None:
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    ray.init(**options)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
