"""What a device cannot do for a model is said before anything is compiled."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from mmjax.core.config import ConfigError
from mmjax.train.program import check_device
from support import tiny


def device(*kinds):
    memories = [SimpleNamespace(kind=kind) for kind in kinds]
    return SimpleNamespace(device_kind="Abacus", addressable_memories=lambda: memories)


def test_what_is_kept_in_the_hosts_memory_needs_such_a_memory():
    model = dataclasses.replace(tiny.experiment().model, remat="offload")
    check_device(model, device("device", "pinned_host"))
    check_device(model, jax.devices()[0])
    check_device(model, device())  # a GPU that is not attached
    check_device(dataclasses.replace(model, remat="dots"), device("device"))
    with pytest.raises(ConfigError, match=r"model\.remat='offload': Abacus has no memory 'pinned_host' .*use 'dots'"):
        check_device(model, device("device", "unpinned_host"))
