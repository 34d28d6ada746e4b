"""Every test runs on 8 simulated CPU devices, with strict dtype promotion; warnings are errors."""

import fcntl
import functools
import gc
import importlib.metadata
import logging
import os
import shutil
import tempfile
import threading

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compilation, of programs that run for milliseconds: the optimizer stays off, and a program
# is one module, whose parts would each repeat the same work.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    # The fusion emitters take half of the compile time. Later versions cannot do without and end at the unknown flag.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# Each program that was traced stays on the heap, and Python walks all of it at every full collection: fewer of them.
# Young objects are collected as often as ever, so that what a test leaves behind speaks up there.
gc.set_threshold(*gc.get_threshold()[:2], 100)


# How long an example takes says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile("mmjax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("mmjax")


# No test cuts the power. What is written outlives a killed process without waiting for the disk.
os.fsync = lambda file: None


def pytest_configure(config):
    """Shares what takes long to compile among workers and the runs that tests start, for one run of pytest alone."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a worker has it from the process that started it
        config.compilation_cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mmjax-tests-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be absent
def pytest_xdist_make_scheduler(config, log):
    """Gives files with fixtures of their own to one worker each: two would make the same training run twice."""
    from xdist.scheduler import LoadScopeScheduling

    class SharedFixtures(LoadScopeScheduling):
        @functools.cache  # noqa: B019 - one scheduler lives as long as the tests
        def _has_fixtures(self, path):
            return 'scope="module"' in (config.rootpath / path).read_text()

        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if self._has_fixtures(path) else nodeid

    return SharedFixtures(config, log)


def pytest_unconfigure(config):
    """Deletes the cache."""
    if hasattr(config, "compilation_cache"):
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        shutil.rmtree(config.compilation_cache, ignore_errors=True)


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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a run of three steps with a moving average and all its checkpoints; workers share it to read it."""
    from mmjax.experiment import Experiment
    from mmjax.train.loop import train
    from support import tiny

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    workdir = root / "finished_run"
    with (root / "finished_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report.html").exists():
            saving = {"checkpoint__every_steps": 1, "checkpoint__keep": 3}
            sections = tiny.sections(model=tiny.VIT, steps=3, optimizer__ema_decay=0.5, eval__tasks=(), **saving)
            train(Experiment.from_dict(sections), workdir=workdir)
    return workdir
