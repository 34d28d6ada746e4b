"""Every test runs on 8 simulated CPU devices, with strict dtype promotion; warnings are errors."""

import logging
import os
import threading

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, of programs that run for milliseconds: the optimiser stays off.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Messages(list):
    """What the package's loggers said, in order; another thread's message can be waited for."""

    def __init__(self):
        super().__init__()
        self.arrived = threading.Event()

    def take(self, record):
        self.append(record.getMessage())
        self.arrived.set()
        return True


@pytest.fixture
def messages():
    """The messages that loggers of mmjax handle while the test runs."""
    collected = Messages()
    package = logging.getLogger("mmjax")
    handler = logging.NullHandler()
    handler.handle = collected.take
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    yield collected
    package.removeHandler(handler)
    package.setLevel(level)
