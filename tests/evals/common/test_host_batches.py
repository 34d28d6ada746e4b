"""Who reads what in several processes, and that all of them end with what one would have."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mmjax.data.sample import Unreadable
from mmjax.evals.common.host_batches import DIGEST, HostBatch, describe, gather_examples
from support import processes
from support.towers import Source, Towers, data_sharding, retrieval_source

BROKEN = (0, 5, 6, 7, 21)


class Device(NamedTuple):
    """All that is asked of one."""

    number: int
    process_index: int


class Damaged(Source):
    """Examples of which some cannot be read; keeps which ones were asked for."""

    def __init__(self, examples, broken=BROKEN):
        super().__init__(examples)
        self.broken = broken
        self.asked = []

    def __getitem__(self, row):
        self.asked.append(row)
        if row in self.broken:
            raise Unreadable("truncated image", f"row {row}", key=f"key {row}")
        return super().__getitem__(row) | {"image": list.__getitem__(self, row)["image"], "kinds": ("a", np.int64(3))}


def layout(*owners):
    """A sharding of as many rows over devices of the processes ``owners``, each with the rows beside it."""
    places = {Device(i, owner): (slice(*rows),) for i, (owner, rows) in enumerate(owners)}
    return SimpleNamespace(devices_indices_map=lambda shape: places)


@pytest.mark.parametrize(
    ("sharding", "held", "owned"),
    [
        (layout((0, (0, 4)), (1, (4, 8))), {0: range(4), 1: range(4, 8)}, None),
        (layout((1, (0, 2)), (0, (2, 4)), (1, (4, 6)), (0, (6, 8))), {0: [2, 3, 6, 7], 1: [0, 1, 4, 5]}, None),
        # Two processes hold the same rows (an axis that does not split batches), in part or as a whole.
        (layout((0, (0, 8)), (1, (0, 8))), {0: range(8), 1: range(8)}, {0: range(8), 1: []}),
        (layout((1, (0, 4)), (0, (0, 4)), (1, (4, 8))), {0: range(4), 1: range(8)}, {0: range(4), 1: range(4, 8)}),
        (layout((0, (None, None))), {0: range(8)}, None),
    ],
)
def test_each_row_is_owned_by_one_process_that_holds_it(monkeypatch, sharding, held, owned):
    for process in held:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batch = HostBatch(8, sharding)
        assert batch.rows.tolist() == list(held[process])
        assert batch.rows[batch.owned].tolist() == list((owned or held)[process])


def test_one_process_holds_and_transfers_all():
    rows = np.arange(16).reshape(8, 2)
    for sharding in (None, data_sharding()):
        batch = HostBatch(8, sharding)
        assert batch.rows.tolist() == list(range(8)) and batch.owned.all()
        with jax.transfer_guard("disallow"):
            placed = batch.to_device(rows)
        np.testing.assert_array_equal(jax.device_get(placed), rows)
        assert sharding is None or placed.sharding == sharding


def test_gathered_examples_are_plain_and_in_order():
    picture = np.zeros((2, 2, 3), np.uint8)
    examples = [
        (3, {"id": np.int64(7), "image": picture, "raw": b"x", "box": np.arange(2), "pairs": [("a", "b")]}),
        (1, Unreadable("missing file", "x.jpg", key="k")),
        (0, {"id": 1, "nested": {"depth": picture, "score": np.float32(0.5)}}),
    ]
    found = gather_examples([(index, describe(example)) for index, example in examples])
    assert found.indices.tolist() == [0, 3]
    digests = [item.pop(DIGEST) for item in found.items]
    assert digests[0] != digests[1] == describe({"image": picture.copy()})[DIGEST]
    assert found.items == [{"id": 1, "nested": {"score": 0.5}}, {"id": 7, "box": [0, 1], "pairs": [["a", "b"]]}]
    (unreadable,) = found.unreadable
    sequence = np.ones((3, 2), np.float32)
    told = [describe({"id": 1, "frames": x}, ("frames",)) for x in (sequence, sequence.copy(), 2 * sequence)]
    assert told[0] == told[1] != told[2] and set(told[0]) == {"id", DIGEST}
    assert (unreadable.reason, unreadable.detail, unreadable.key) == ("missing file", "x.jpg", "k")


def embedded(count, *, copies=False, batch_size=8, devices=2, threads=0):
    """With ``copies`` no two devices share a batch: each has all of it."""
    towers, source = Towers(), Damaged(retrieval_source(count))
    sharding = data_sharding(devices)
    if copies:
        sharding = jax.NamedSharding(sharding.mesh, jax.P("data"))  # of one device; they differ along the other axis
    whole = jax.NamedSharding(sharding.mesh, jax.P())
    params = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, whole, x.__getitem__), towers.params)
    bound = towers.embedder(batch_size=batch_size, row_sharding=sharding, num_threads=threads).bind(params)
    images, items, rows, unreadable = bound.read(source)
    texts = bound.texts([caption for item in items for caption in item["captions"]])
    found = [items, rows.tolist(), [[str(what), what.reason, what.key] for what in unreadable]]
    digest = hashlib.sha256(images.tobytes() + texts.tobytes() + json.dumps(found).encode()).hexdigest()
    return digest, sorted(set(source.asked)), found


def test_whatever_cannot_be_read_is_left_out_and_the_rest_stays_in_its_place():
    _, _, (items, rows, skipped) = embedded(23)
    wanted = [row for row in range(23) if row not in BROKEN]
    assert rows == wanted and [item["id"] for item in items] == wanted and items[0]["kinds"] == ["a", 3]
    assert [key for *_, key in skipped] == [f"key {row}" for row in BROKEN]


PROGRAM = """
sys.path.insert(0, FOLDER)
with distributed.join():
    from evals.common import test_host_batches as tests
    for count, copies in ((23, False), (3, False), (11, True)):
        digest, asked, found = tests.embedded(count, copies=copies, threads=2)
        print(count, "digest", digest, "asked", asked)
"""


def test_two_processes_read_a_half_each_and_both_end_with_what_one_has():
    folder = str(Path(__file__).resolve().parents[2])
    running = processes.start(PROGRAM.replace("FOLDER", repr(folder)), 2)
    said = processes.outputs(running)
    assert [process.returncode for process in running] == [0, 0], said
    for count, copies in ((23, False), (3, False), (11, True)):
        digest, everything, _ = embedded(count, copies=copies)
        assert everything == list(range(count))
        lines = [next(line for line in text.splitlines() if line.startswith(f"{count} ")) for text in said]
        assert all(f"digest {digest}" in line for line in lines), said
        asked = [json.loads(line.partition("asked ")[2]) for line in lines]
        if copies:
            assert asked == [everything, everything]
            continue
        halves = [[row for row in range(count) if row % 8 // 4 == process] for process in (0, 1)]
        assert asked[0] == halves[0]
        # Of three examples all lie in the first one's half; the other one needs a picture of the right size.
        assert asked[1] == (halves[1] if count == 23 else [0, 1])
