"""A run that thirty accidents happen to ends with the bits and the metrics of one that nothing happened to."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support import command

STEPS = 320
EVERY = 8  # steps from checkpoint to checkpoint
PATIENCE = 240  # seconds for whatever a run is waited for

TIMED = re.compile(r"second|wait|mfu|goodput|hbm|time")

CLOCK = """
import sys, time
true, true_ns, calls = time.time, time.time_ns, [0]
def jumped():
    calls[0] += 1
    return {jump} * (0 if calls[0] < 100 else 1 if calls[0] < 300 else 0.5)
time.time = lambda: true() + jumped()
time.time_ns = lambda: true_ns() + int(jumped() * 1e9)
from mmjax.cli import main
sys.exit(main())
"""


class Run:
    """A training run that is started, hurt, and started again."""

    def __init__(self, config, workdir, log, cache):
        self.arguments = (
            "train", f"--config={config}", f"--workdir={workdir}", f"--config.steps={STEPS}",
            f"--config.checkpoint.every_steps={EVERY}", "--config.eval.every_steps=80",
            "--config.optimizer.ema_decay=0.9", "--config.checkpoint.keep=2",
        )  # fmt: skip
        self.workdir, self.log = workdir, log
        self.environment = command.environment(JAX_COMPILATION_CACHE_DIR=str(cache))
        self.process = None

    def start(self, *launcher):
        self.log.write_text("")
        with self.log.open("a") as file:
            launcher = launcher or ("-m", "mmjax")
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *self.arguments], env=self.environment, stdout=file, stderr=file
            )

    def said(self):
        return self.log.read_text(errors="replace")

    def step(self):
        """The last step that the metrics tell of."""
        with contextlib.suppress(OSError):
            found = re.findall(
                r'^\{"step": (\d+),.*\}$', (self.workdir / "metrics.jsonl").read_text("utf-8", "replace"), re.M
            )
            return int(found[-1]) if found else 0
        return 0

    def until(self, condition):
        """Waits until something is so, or the run has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)

    def some_steps(self, rng):
        """Lets it begin and make some steps more."""
        self.until(lambda: "compiled in" in self.said() or "already finished" in self.said())
        aim = self.step() + rng.randrange(1, 2 * EVERY)
        self.until(lambda: self.step() >= aim)

    def end(self, *statuses, number=None):
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=PATIENCE)
        assert status in statuses, (status, self.said())

    def kill(self):
        self.end(0, -signal.SIGKILL, number=signal.SIGKILL)

    def checkpoints(self):
        there = self.workdir / "checkpoints"
        return sorted((path for path in there.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


# Accidents: each takes the run as it was left, and leaves it stopped.


def terminated(run, rng):
    run.start()
    run.some_steps(rng)
    run.end(0, number=signal.SIGTERM)


def killed(run, rng):
    run.start()
    run.some_steps(rng)
    time.sleep(rng.uniform(0, 0.05))
    run.kill()


def killed_while_saving(run, rng):
    run.start()
    run.some_steps(rng)
    run.until(lambda: any(run.workdir.glob("checkpoints/*tmp*")))
    time.sleep(rng.uniform(0, 0.02))
    run.kill()


def full_and_freed(run, rng):
    run.start()
    run.some_steps(rng)
    with filled(run.workdir):
        run.until(lambda: "could not be written" in run.said())
    run.some_steps(rng)
    run.kill()


def full_and_stopped(run, rng):
    run.start()
    run.some_steps(rng)
    with filled(run.workdir):
        run.end(0, 1, number=signal.SIGTERM)  # 0 where all was on the disk already
        if run.process.returncode:
            assert re.search(r"^mmjax train: .* could not be written .*No space left", run.said(), re.M), run.said()


def out_of_reach(run, rng):
    """The folder of the checkpoints goes away and comes back, as that of a file server does."""
    run.start()
    run.some_steps(rng)
    there, away = run.workdir / "checkpoints", run.workdir / "away"
    there.rename(away)
    there.write_text("")
    run.until(lambda: "could not be written" in run.said())
    there.unlink()
    away.rename(there)
    run.some_steps(rng)
    run.kill()


def read_only(run, rng):
    if subprocess.call(["mount", "-o", "remount,ro", run.workdir.parent], stderr=subprocess.DEVNULL):
        pytest.skip("a disk can be made read-only by root alone, and not in every container")
    try:
        run.start()
        run.end(2)
        assert "cannot be written to" in run.said().splitlines()[-1] and "Traceback" not in run.said(), run.said()
    finally:
        subprocess.check_call(["mount", "-o", "remount,rw", run.workdir.parent])


def damaged(run, rng):
    whole = run.checkpoints()
    if len(whole) < 2:
        return killed(run, rng)
    files = sorted(path for path in whole[-1].rglob("*") if path.is_file() and path.stat().st_size)
    kind = rng.choice(["emptied", "halved", "flipped", "removed"])
    data = [path for path in files if path.parent.name == "d"]
    content = max(data, key=lambda path: path.stat().st_size) if kind == "flipped" else None
    for path in [content] if content else rng.sample(files, 3):
        data = bytearray(path.read_bytes())
        if kind == "removed":
            path.unlink()
            continue
        data[len(data) // 2] ^= 1 << rng.randrange(8)
        path.write_bytes({"emptied": b"", "halved": data[: len(data) // 2], "flipped": data}[kind])
    killed(run, rng)
    return None


def torn(run, rng):
    name = rng.choice(["metrics.jsonl", "starts.jsonl", "config.json"])
    path = run.workdir / name
    if name == "config.json":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        with path.open("ab") as file:
            file.write(b'{"step": 7, "train/lo\x00\x00\xff')
    killed(run, rng)


def clock_jumps(run, rng):
    jump = rng.choice([-86400.0, 365 * 86400.0, -10 * 365 * 86400.0])
    run.start("-c", CLOCK.format(jump=jump))
    run.some_steps(rng)
    run.end(0, -signal.SIGKILL, number=rng.choice([signal.SIGTERM, signal.SIGKILL]))


def deleted_while_read(run, rng):
    """It is held back, or it would be done before the reader has begun."""
    run.start()
    run.some_steps(rng)
    reader = subprocess.Popen(
        [sys.executable, "-m", "mmjax", "eval", f"--workdir={run.workdir}", "--tasks=retrieval"],
        env=run.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(6):
        if reader.poll() is None and run.process.poll() is None:
            aim = run.step() + EVERY
            run.process.send_signal(signal.SIGCONT)
            run.until(lambda aim=aim: run.step() >= aim)
            run.process.send_signal(signal.SIGSTOP)
            time.sleep(1.0)
    output, trouble = reader.communicate(timeout=PATIENCE)
    assert reader.returncode == 0 and "rsum" in output, trouble
    run.kill()


@contextlib.contextmanager
def filled(workdir):
    filler = workdir.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    try:
        yield
    finally:
        filler.unlink()


NEED_MOUNT = (full_and_freed, full_and_stopped, read_only)
ACCIDENTS = (
    terminated, killed, killed_while_saving, *NEED_MOUNT, out_of_reach, damaged, torn, clock_jumps, deleted_while_read
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return command.config_file(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def undisturbed(config, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(config, folder / "run", folder / "log", cache)
    run.start()
    run.end(0)
    return run


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], stderr=subprocess.DEVNULL
    )
    yield folder, mounted
    if mounted:
        subprocess.check_call(["umount", "-l", folder])


def happen(count, seed, run, mounted):
    rng = random.Random(seed)
    kinds = [kind for kind in ACCIDENTS if mounted or kind not in NEED_MOUNT]
    first, *others = kinds * -(-count // len(kinds))  # the first saves something that can then be spoilt
    order = [first, *rng.sample(others, count - 1)]
    happened = []
    try:
        for kind in order:
            before = time.monotonic()
            kind(run, rng)
            happened.append(kind.__name__)
            print(
                f"{len(happened)}: {kind.__name__}, at step {run.step()}, {time.monotonic() - before:.1f} s", flush=True
            )
    finally:
        if run.process is not None and run.process.poll() is None:
            run.process.kill()
            run.process.wait()
    return happened


def untimed(run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not TIMED.search(key)} for line in lines]


def same_end(run, undisturbed):
    run.start()
    run.end(0)
    run.start()
    run.end(0)
    assert "already finished" in run.said()
    facts = [
        json.loads(
            subprocess.check_output(
                [sys.executable, "-m", "mmjax", "inspect", f"--workdir={r.workdir}", "--json"], env=r.environment
            )
        )
        for r in (run, undisturbed)
    ]
    assert facts[0]["sha256"] == facts[1]["sha256"] and facts[0]["step"] == facts[1]["step"] == STEPS
    assert untimed(run) == untimed(undisturbed)


@pytest.mark.slow  # some forty starts
@pytest.mark.parametrize(("count", "seed"), [(6, 3), (30, 20)])
def test_accidents_change_nothing(config, cache, undisturbed, disk, tmp_path, count, seed):
    folder, mounted = disk
    run = Run(config, folder / "run", tmp_path / "log", cache)
    happened = happen(count, seed, run, mounted)
    assert len(happened) == count and run.step() < STEPS, "the last accidents met a run that was over"
    same_end(run, undisturbed)
    shutil.rmtree(run.workdir)
