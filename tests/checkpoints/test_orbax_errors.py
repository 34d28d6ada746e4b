"""What depends on the messages of Orbax, TensorStore and asyncio, tried with errors that these raise themselves."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import re
import sys
import warnings
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from mmjax.checkpoints import orbax_errors
from mmjax.checkpoints.manager import Checkpoints


def test_explanations_are_short_and_name_the_cause():
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("while saving\nmany things") from error
    except RuntimeError as error:
        assert orbax_errors.explain(error) == "No space left on device"
    assert len(orbax_errors.explain(ValueError("y" * 999))) <= orbax_errors.MAX_LENGTH
    assert re.fullmatch(r"KeyError: 'a'", orbax_errors.explain(KeyError("a")))
    assert orbax_errors.explain(FileNotFoundError(2, "gone", "/x/metadata")) == "metadata is missing"


@pytest.fixture
def saved(tmp_path):
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        checkpointer.save(tmp_path / "params", {"w": jnp.arange(40_000.0)})
    return tmp_path / "params"


@pytest.mark.parametrize(
    ("name", "content", "explanation"),
    [
        ("manifest.ocdbt", b"no manifest", r"[a-z ]+ in (params|ocdbt.process_0)/manifest\.ocdbt"),
        ("_METADATA", b"{", r".*(Expecting|JSON).*"),
    ],
)
def test_a_damaged_file_is_named(saved, name, content, explanation):
    for path in saved.rglob(name):
        path.write_bytes(content)
    with pytest.raises(Exception) as error, contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        checkpointer.restore(saved, {"w": jnp.zeros(40_000)})
    assert re.fullmatch(explanation, orbax_errors.explain(error.value)), str(error.value)


def test_tensorstore_quotes_the_number_of_a_failed_system_call(tmp_path):
    (tmp_path / "file").write_text("")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{tmp_path}/file/array/"}}
    with pytest.raises(Exception) as error:
        ts.open(spec, create=True, dtype=np.float32, shape=[4]).result()[:] = np.ones(4, np.float32)
    assert "os_error_code='20'" in str(error.value)
    assert orbax_errors.explain(error.value) == os.strerror(errno.ENOTDIR)


def test_tracebacks_of_failed_saves_stay_out_of_the_log_and_the_first_error_is_kept(caplog):
    orbax_errors.filter_orbax_logs()
    orbax_errors.take_logged_error()
    logger = logging.getLogger("absl")
    try:
        ocp.StandardCheckpointHandler().restore("/nonexistent")
    except Exception as error:
        logger.exception("a thread of a save has failed")
        first = error
    try:
        raise ValueError("not from Orbax")
    except ValueError:
        logger.exception("something else")
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["something else"]
    assert orbax_errors.take_logged_error() is first and orbax_errors.take_logged_error() is None


def test_opening_to_read_warns_of_nothing(tmp_path, caplog):
    """Orbax warns of what ``read_only`` means, to whoever loads or exports a run."""
    (tmp_path / "checkpoints").mkdir()
    logging.getLogger("absl").removeFilter(orbax_errors._FILTER)
    with caplog.at_level(logging.WARNING, logger="absl"):
        ocp.CheckpointManager(tmp_path / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True)).close()
        assert any("read_only" in record.getMessage() for record in caplog.records)  # else this tests nothing
        caplog.clear()
        Checkpoints(tmp_path, read_only=True).close()
    assert not caplog.records


@pytest.fixture
def without_garbage(monkeypatch):
    """What failed restores of earlier tests have left is collected before, and not heard."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "unraisablehook", lambda entry: None)
        warnings.simplefilter("ignore")
        gc.collect()


def test_asyncio_still_words_an_unretrieved_exception_like_this(without_garbage, caplog):
    async def forget():
        async def fail():
            raise OSError("lost")

        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    unfiltered = logging.getLogger("asyncio").filters[:]
    logging.getLogger("asyncio").filters.clear()
    try:
        asyncio.run(forget())
        gc.collect()
        assert any(orbax_errors._UNRETRIEVED in record.getMessage() for record in caplog.records)
        caplog.clear()
        orbax_errors.filter_orbax_logs()
        asyncio.run(forget())
        gc.collect()
        assert not caplog.records
    finally:
        logging.getLogger("asyncio").filters[:] = unfiltered


def test_a_write_of_tensorstore_that_ends_after_its_event_loop_is_not_printed(monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def end_late():
        promise, future = ts.Promise.new()

        async def wait():
            await future

        loop = asyncio.new_event_loop()
        task = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        promise.set_result(1)
        task._log_destroy_pending = False
        task.get_coro().close()

    end_late()
    assert [str(entry.exc_value) for entry in unraisable] == [orbax_errors._LOOP_CLOSED]
    unraisable.clear()
    orbax_errors.filter_orbax_logs()
    orbax_errors.filter_orbax_logs()
    end_late()
    assert not unraisable
    sys.unraisablehook(SimpleNamespace(exc_value=AttributeError("_ssock"), object=asyncio.BaseEventLoop.__del__))
    assert not unraisable
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("another"), object=None))
    assert len(unraisable) == 1
