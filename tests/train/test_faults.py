"""Disks that are full, checkpoints that are damaged, deleted or a stranger's: what is said, and what goes on."""

import contextlib
import errno
import gc
import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.checkpoints import checksums, location
from mmjax.checkpoints import reader as reading
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved, DamagedCheckpoint
from mmjax.commands import inspect
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.train import loop
from support import disks, tiny

# Behind a save or read that fails, threads of tensorstore still call back, and coroutines of orbax are left behind.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def left_behind():
    """Collected here, not in the middle of another test."""
    yield
    gc.collect()


def state(step):
    """A small state whose every array is another at every step."""
    base = jnp.arange(2000, dtype=jnp.float32) + step
    params = {"tower": {"kernel": jnp.sin(base), "bias": base[:7]}, "scale": base[0]}
    return TrainState(
        step=jnp.int32(step), params=params, opt_state=(jax.tree.map(jnp.cos, params), jnp.int32(step)), ema_params=None
    )


def shapes():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(jax.device_get(x), jax.device_get(y)) for x, y in pairs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with checkpoints of steps 4 and 8, the earlier one the best; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine")
    with contextlib.closing(Checkpoints(folder, keep=2, best="m")) as checkpoints:
        for step, score in ((4, 2.0), (8, 1.0)):
            checkpoints.save(state(step), step=step, metrics={"m": score})
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "run")


@contextlib.contextmanager
def opened(folder, **options):
    with contextlib.closing(Checkpoints(folder, **{"keep": 2} | options)) as checkpoints:
        yield checkpoints


# What is wrong with a checkpoint


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder):
    """The file with the arrays' content."""
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "a flipped bit": lambda f: flip(largest(f / "params")),
    "a flipped bit in the moments": lambda f: flip(largest(f / "training")),
    "half a file": lambda f: halve(largest(f / "params")),
    "an empty file": lambda f: largest(f / "params").write_bytes(b""),
    "a missing file": lambda f: largest(f / "training").unlink(),
    "no manifest": lambda f: (f / "params" / "manifest.ocdbt").unlink(),
    "half the metadata": lambda f: halve(f / "params" / "_METADATA"),
    "no item": lambda f: shutil.rmtree(f / "training"),
    "no checksums": lambda f: shutil.rmtree(f / "manifest"),
    "torn checksums": lambda f: halve(f / "manifest" / "metadata"),
    "other checksums": lambda f: (f / "manifest" / "metadata").write_text('{"checksums": {}, "metrics": null}'),
    "nothing at all": lambda f: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_moved_aside_and_the_one_before_it_restored(folder, kind, messages):
    DAMAGE[kind](folder / "checkpoints" / "8")
    before = sorted(p.relative_to(folder / "checkpoints" / "8") for p in (folder / "checkpoints" / "8").rglob("*"))
    with opened(folder) as checkpoints:
        assert equal(checkpoints.restore_newest(shapes()), state(4))
        assert checkpoints.steps == [4] and names(folder / "checkpoints") == ["4"]
    (line,) = messages
    assert "step 8 is damaged" in line and "\n" not in line and "()" not in line
    place = folder / "checkpoints.damaged" / "8"
    assert str(place) in line and sorted(p.relative_to(place) for p in place.rglob("*")) == before
    # The same step is saved again, and spoilt again: nothing is overwritten.
    with opened(folder) as checkpoints:
        checkpoints.save(state(8), step=8)
    DAMAGE[kind](folder / "checkpoints" / "8")
    with opened(folder) as checkpoints:
        checkpoints.restore_newest(shapes())
    assert names(folder / "checkpoints.damaged") == ["8", "8.2"]


@pytest.mark.parametrize(
    "kind", [kind for kind in DAMAGE if "moments" not in kind and kind not in ("a missing file", "no item")]
)
def test_readers_say_it_and_leave_everything_as_it_is(folder, kind, monkeypatch):
    monkeypatch.setattr(location, "_DELETION_SECONDS", 0.0)
    DAMAGE[kind](folder / "checkpoints" / "8")
    before = sorted(folder.rglob("*"))
    with opened(folder, read_only=True) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"step=8: this checkpoint is damaged \(.+\)"):
            checkpoints.restore_params(shapes().params)
        assert equal(checkpoints.restore_params(shapes().params, step=4), state(4).params)
    with pytest.raises(DamagedCheckpoint, match="step=8"):
        inspect.summarize(folder)
    assert inspect.summarize(folder, step=4)["step"] == 4
    assert sorted(folder.rglob("*")) == before


def test_where_none_can_be_read_nothing_is_moved(folder):
    for step in ("4", "8"):
        halve(largest(folder / "checkpoints" / step / "params"))
    with (
        opened(folder) as checkpoints,
        pytest.raises(ConfigError, match=r"none of its.*step 8: .*; step 4: ") as caught,
    ):
        checkpoints.restore_newest(shapes())
    assert "\n" not in str(caught.value)
    assert names(folder / "checkpoints") == ["4", "8"] and not (folder / "checkpoints.damaged").exists()


def test_a_score_that_cannot_be_read_is_said_and_the_others_decide(folder, messages):
    halve(folder / "checkpoints" / "4" / "manifest" / "metadata")
    with opened(folder, best="m", read_only=True) as checkpoints:
        assert checkpoints.resolve("best") == 8
    assert len(messages) == 1 and "step 4" in messages[0]


def test_checksums_are_the_same_on_devices_and_on_the_host_and_see_every_single_bit():
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 5, 7)).astype(np.float32),
        np.array(9, np.int32),
        rng.normal(size=(8, 16)).astype(jnp.bfloat16),
        np.array([True, False, True]),
        np.arange(10, dtype=np.uint8),
        np.zeros((0, 3), np.float32),
    ]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = [
        jax.device_put(a, jax.NamedSharding(mesh, jax.P("d") if a.shape[:1] == (8,) else jax.P())) for a in arrays
    ]
    expected = checksums.array_checksums(arrays)
    assert checksums.tree_checksums({"a": spread, "nothing": {}}) == {"a": expected}
    # By the definition, in Python's own integers.
    assert expected[1] == 9 and expected[4] == sum((2 * i + 1) * i for i in range(10))
    bits = arrays[0].view(np.uint32).reshape(-1).tolist()
    assert expected[0] == sum((2 * i + 1) * b for i, b in enumerate(bits)) % 2**32
    for position in (0, 51, 104):
        for bit in range(32):
            changed = arrays[0].copy()
            changed.view(np.uint32).reshape(-1)[position] ^= np.uint32(1 << bit)
            assert checksums.array_checksums([changed]) != [expected[0]], (position, bit)
    assert checksums.array_checksums([arrays[0][::-1]]) != [expected[0]]


# A disk that takes no checkpoint


@contextlib.contextmanager
def unwritable(folder):
    """``checkpoints`` can be neither read nor written, whoever asks: something else is in its place."""
    there = folder / "checkpoints"
    there.rename(folder / "elsewhere")
    there.write_text("")
    yield
    there.unlink()
    (folder / "elsewhere").rename(there)


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_next_one_is(folder, messages):
    with opened(folder) as checkpoints:
        with unwritable(folder):
            checkpoints.save(state(12), step=12)
            checkpoints.wait()
            (line,) = messages
            assert "step 12 could not be written" in line and "\n" not in line
            checkpoints.save(state(16), step=16)
            with pytest.raises(CheckpointNotSaved, match=r"step 16 could not be written .*same command again"):
                checkpoints.finish(state(16), step=16)
        checkpoints.save(state(20), step=20)
        checkpoints.finish(state(20), step=20)
        assert checkpoints.steps == [8, 20] and len(messages) == 3
        assert equal(checkpoints.restore(shapes()), state(20))
    assert names(folder / "checkpoints") == ["20", "8"]


def test_a_full_disk_costs_no_older_checkpoint_and_leaves_nothing_half_written(pristine, tmp_path, messages):
    with disks.mounted(tmp_path / "disk", size="400k") as disk:
        shutil.copytree(pristine, disk, dirs_exist_ok=True)
        messages.clear()
        with opened(disk) as checkpoints:
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
            for step in (12, 16):
                checkpoints.save(state(step), step=step)
                checkpoints.wait()
                assert checkpoints.steps == [4, 8]
                assert [n for n in names(disk / "checkpoints") if not n.isdigit()] == []
                assert "No space left on device" in messages[-1] and "last one is of step 8" in messages[-1]
            assert equal(checkpoints.restore(shapes()), state(8))
            filler.unlink()
            checkpoints.save(state(20), step=20)
            checkpoints.finish(state(20), step=20)
            assert checkpoints.steps == [8, 20] and len(messages) == 2
        assert inspect.summarize(disk)["step"] == 20


def test_what_fails_while_training_goes_on_is_noticed_without_another_save(folder, monkeypatch, messages):
    with opened(folder) as checkpoints:
        monkeypatch.setattr(os, "rename", _no_space)  # the last thing that a save does
        monkeypatch.setattr(os, "replace", _no_space)
        checkpoints.save(state(12), step=12)
        for _ in range(2000):
            checkpoints.check()
            if messages:
                break
            threading.Event().wait(0.005)
        monkeypatch.undo()
        assert len(messages) == 1 and "step 12" in messages[0] and "No space left" in messages[0]
        assert checkpoints.steps == [4, 8]


def _no_space(*paths, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Deleted while it is read


def test_a_checkpoint_deleted_under_a_reader_is_followed_or_named(folder, messages):
    with opened(folder, read_only=True) as reader:
        with opened(folder, keep=1) as training:  # goes on and keeps the newest alone
            training.save(state(12), step=12)
        assert equal(reader.restore_params(shapes().params, step="last"), state(12).params)
        (line,) = messages
        assert "step 8 was deleted while it was read" in line and "12" in line
    with opened(folder, read_only=True) as reader:
        shutil.rmtree(folder / "checkpoints" / "12")
        with pytest.raises(ConfigError, match=r"--step=12: was deleted while it was read; there are none"):
            reader.restore_params(shapes().params, step=12)
        with pytest.raises(ConfigError, match="holds no finished checkpoint"):
            reader.restore_params(shapes().params, step="last")


def test_deleted_half_way_it_is_not_called_damaged(folder, monkeypatch, messages):
    with opened(folder, best="m") as training:
        training.save(state(12), step=12, metrics={"m": 9.0})
    shutil.rmtree(folder / "checkpoints" / "12" / "params")  # the rest follows while the reader looks
    timer = threading.Timer(0.3, lambda: shutil.rmtree(folder / "checkpoints" / "12"))
    with opened(folder, read_only=True, best="m") as reader:
        timer.start()
        assert equal(reader.restore_params(shapes().params, step="best"), state(8).params)
    timer.join()
    assert "step 12 was deleted" in messages[0]


# Strangers


def test_claims_of_more_than_the_machine_holds_are_an_error_before_anything_is_read(folder):
    for path in (folder / "checkpoints" / "8" / "params").rglob("process_0"):
        if path.is_file():
            path.unlink()  # the shapes that the arrays themselves claim are what counts then
    huge = {"w": jax.ShapeDtypeStruct((1 << 40, 1 << 10), jnp.float32, sharding=None)}
    with pytest.raises(ConfigError, match=r"4,194,304 GiB.*memory"):
        reading.check_memory(huge)
    with opened(folder, read_only=True) as checkpoints, pytest.raises(ConfigError, match="memory"):
        checkpoints.restore_params(huge)


@pytest.mark.slow  # two trainings each
def test_a_run_whose_last_checkpoint_is_damaged_does_the_lost_steps_again_with_the_same_bits(tmp_path, capsys):
    experiment = tiny.experiment(steps=6, eval__every_steps=6)
    loop.train(experiment, workdir=tmp_path)
    want = inspect.summarize(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    flip(largest(tmp_path / "checkpoints" / "6" / "params"))
    (tmp_path / "report.html").unlink()  # else it is finished
    capsys.readouterr()
    assert loop.train(experiment, workdir=tmp_path).finished
    said = capsys.readouterr().out
    assert "step 6 is damaged" in said and "going on from the checkpoint of step 3" in said
    assert inspect.summarize(tmp_path)["sha256"] == want["sha256"]
    again = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == [line["step"] for line in lines]
    assert [line.get("train/loss") for line in again] == [line.get("train/loss") for line in lines]


@pytest.mark.slow
def test_a_run_that_cannot_save_its_last_step_says_so_and_ends_as_failed(tmp_path, monkeypatch, capsys):
    experiment = tiny.experiment(steps=4, eval__tasks=(), eval__final_tasks=(), checkpoint__every_steps=3)

    def full(folder):
        if (folder / "3").exists():
            _no_space()

    monkeypatch.setattr(location, "check_writable", full)
    with pytest.raises(
        CheckpointNotSaved, match=r"step 4 could not be written \(No space left on device\); the last one is of"
    ):
        loop.train(experiment, workdir=tmp_path)
    assert "training goes on and tries again" in capsys.readouterr().out
    monkeypatch.undo()
    assert loop.train(experiment, workdir=tmp_path).finished
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        4,
    ]


def test_a_save_that_the_clock_spoils_at_the_end_is_done_again(folder, monkeypatch, messages):
    with opened(folder, best="m", keep=1) as checkpoints:
        monkeypatch.setattr(
            location, "check_writable", lambda folder: (_ for _ in ()).throw(TimeoutError("waited a year"))
        )
        checkpoints.save(state(12), step=12, metrics={"m": 5.0})
        monkeypatch.undo()
        checkpoints.finish(state(12), step=12)
        assert checkpoints.steps == [12] and checkpoints.resolve("best") == 12
    assert len(messages) == 1 and "waited a year" in messages[0]
    with opened(folder, read_only=True, best="m") as checkpoints:
        assert checkpoints.resolve("best") == 12
