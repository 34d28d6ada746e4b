"""Several processes and one damaged checkpoint, or one disk that is full: they agree, or all end."""

import time

from support import processes

SETUP = """
import pathlib
import numpy as np
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import DamagedCheckpoint, CheckpointNotSaved
from mmjax.core.state import TrainState

folder = pathlib.Path(FOLDER)

def state(step):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("d"), jax.P()))
    parts = {"w": split, "b": whole}
    make = jax.jit(lambda: {"w": jnp.arange(40_000.0) * step, "b": jnp.float32(step)}, out_shardings=parts)
    number = jax.jit(lambda: jnp.int32(step), out_shardings=whole)()
    return TrainState(step=number, params=make(), opt_state=(), ema_params=None)

def shapes():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
"""


def program(folder, text):
    return SETUP.replace("FOLDER", repr(str(folder))) + text


def test_all_go_on_from_the_same_checkpoint_also_where_one_alone_cannot_read_the_newest(tmp_path):
    running = processes.start(
        program(
            tmp_path,
            """
with distributed.join():
    checkpoints = Checkpoints(folder, keep=3)
    for step in (4, 8, 12):
        checkpoints.save(state(step), step=step)
    checkpoints.finish(state(12), step=12)
    # Of step 12 a bit has flipped, which all see; step 8 is unreadable for the second process alone.
    if me == 0:
        path = max((folder / "checkpoints" / "12" / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    collectives.barrier("damaged")
    from mmjax.checkpoints import reader
    read_manifest = reader.CheckpointReader.read_manifest
    def unreadable(self):
        if me == 1 and self.step == 8: raise DamagedCheckpoint(8, "as this test wants it")
        return read_manifest(self)
    reader.CheckpointReader.read_manifest = unreadable
    restored = checkpoints.restore_newest(shapes())
    own = np.asarray(restored.params["w"].addressable_shards[0].data)
    print("restored", int(restored.step), bool((own == np.arange(40_000.0)[20_000 * me :][:20_000] * 4).all()))
    checkpoints.save(state(16), step=16)
    checkpoints.close()
    print("steps", checkpoints.steps)
""",
        ),
        2,
    )
    said = processes.outputs(running)
    assert [process.returncode for process in running] == [0, 0], said
    for text in said:
        assert "restored 4 True" in text and "steps [4, 16]" in text, said
        assert "step 12 is damaged" in text and "step 8 is damaged" in text
    assert "another process cannot read it" in said[0] and "as this test wants it" in said[1]
    assert sorted(path.name for path in (tmp_path / "checkpoints.damaged").iterdir()) == ["12", "8"]


def test_where_one_cannot_write_all_end(tmp_path):
    running = processes.start(
        program(
            tmp_path,
            """
import resource
with distributed.join():
    with distributed.fail_fast(one_line_errors=(ConfigError, CheckpointNotSaved)):
        checkpoints = Checkpoints(folder, keep=3)
        checkpoints.save(state(4), step=4)
        checkpoints.finish(state(4), step=4)
        if me == 1: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        checkpoints.save(state(8), step=8)
        for step in range(100_000):
            total(1.0)
            checkpoints.check()
            time.sleep(0.01)
""",
        ),
        2,
    )
    started = time.monotonic()
    said = processes.outputs(running, timeout=150)
    assert time.monotonic() - started < 120
    assert running[1].returncode == 1 and running[0].returncode != 0
    assert "step 8 could not be written (File too large)" in said[1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["4"]
