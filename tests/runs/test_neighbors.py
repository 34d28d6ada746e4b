"""The neighbors of a run: those in force at any step are on disk before its checkpoint, and come back as they were."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.clusters.config import ClusterConfig
from mmjax.data.clusters.table import make_table, no_neighbors
from mmjax.runs import neighbors
from mmjax.runs.batch_feed import BatchFeed
from mmjax.runs.timing import ActivityTimer

SIZE = 24


class Source(source.Source):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return {"id": index, "key": f"k{index}"}


def find(params):
    """Neighbors at a distance; of ``None`` nothing must be found."""
    assert params is not None
    rows = (np.arange(SIZE)[:, None] + np.arange(1, 6) * params) % SIZE
    return make_table([f"k{i}" for i in range(SIZE)], np.arange(SIZE), rows, examples=SIZE)


def opened(workdir, directory=None, **options):
    config = ClusterConfig(**{"size": 3, "refresh_every": 4, **options})
    initial = no_neighbors(config, Source())
    return neighbors.NeighborSnapshots(workdir, directory=directory, initial=initial, source=Source(), find=find)


def files(folder):
    return sorted(int(path.stem) for path in (folder / "neighbors").iterdir())


@pytest.mark.parametrize("directory", [False, True])
def test_a_resumed_run_has_the_neighbors_of_its_step_alone(tmp_path, directory):
    elsewhere = str(tmp_path / "elsewhere") if directory else None
    folder = tmp_path / ("elsewhere" if directory else ".")
    run = opened(tmp_path, elsewhere)
    assert not run.resume(0, None) and not run.current.neighbors.size
    for step in (4, 8):
        run.refresh(step, step + 1, saved=())
    again = opened(tmp_path, elsewhere)
    for step, distance in ((4, 5), (7, 5), (8, 9), (11, 9)):
        assert not again.resume(step, None)
        assert again.current.neighbors[0].tolist() == [distance * n % SIZE for n in range(1, 6)]
    assert again.current.config.id == run.current.config.id
    assert not again.resume(3, None) and not again.current.neighbors.size  # after a rewind to before the first refresh
    assert files(folder) == [4, 8]


def test_what_was_read_ahead_of_a_refresh_is_thrown_away():
    config, plan, closed = ClusterConfig(refresh_every=3, first_refresh=2, size=2), [None], []

    def stream(number, plan):  # of the plan that was in force when it was opened
        try:
            for batch in itertools.count(number):
                yield {"number": batch, "plan": plan, "image_ids": [0], "unreadable": []}
        finally:
            closed.append(number)

    feed = BatchFeed(
        lambda number: stream(number, plan[0]),
        rewinds=SimpleNamespace(next_rewind=lambda step: sys.maxsize, next_batch=lambda step: step),
        next_refresh=config.next_refresh,
        timer=ActivityTimer(),
        unreadable=SimpleNamespace(add_batch=lambda *_, **__: None),
    )
    with feed.open(0) as batches:
        for step in range(9):
            if config.refreshes_at(step):
                plan[0] = step
            batch = batches.next()
            assert batch["number"] == step and batch["plan"] == config.last_refresh(step)
    assert closed == [0, 2, 5, 8]


def test_a_start_with_a_refresh_does_not_trust_what_it_finds(tmp_path):
    run = opened(tmp_path, first_refresh=0)
    assert run.resume(0, 1) and run.current.neighbors[0, 0] == 1
    again = opened(tmp_path, first_refresh=0)
    assert again.resume(0, 2) and again.current.neighbors[0, 0] == 2
    assert not again.resume(3, None) and again.current.neighbors[0, 0] == 2


def test_tables_that_no_checkpoint_needs_are_deleted(tmp_path):
    run = opened(tmp_path)
    (tmp_path / "neighbors").mkdir()
    (tmp_path / "neighbors" / ".4.parquet.01234567.tmp").write_text("of a start that was killed")
    for step, saved, left in ((4, [], [4]), (8, [7], [4, 8]), (12, [6, 11], [4, 8, 12]), (16, [7, 15], [4, 12, 16]),
                              (20, [13, 17], [12, 16, 20]), (24, [23], [20, 24])):  # fmt: skip
        run.refresh(step, 1, saved=saved)
        assert files(tmp_path) == left


def test_a_lost_or_damaged_table_is_an_error_unless_it_can_be_made_again(tmp_path, messages):
    run = opened(tmp_path)
    run.refresh(4, 1, saved=())
    path = tmp_path / "neighbors" / "4.parquet"
    whole = path.read_bytes()
    assert opened(tmp_path).resume(5, None) is False
    for broken in (
        whole[:100],
        whole.replace(np.int32([1, 2, 3, 4, 5]).tobytes(), np.int32([2, 1, 3, 4, 5]).tobytes()),
    ):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"4\.parquet.*restore the file, or start in another folder"):
            opened(tmp_path).resume(5, None)
        assert opened(tmp_path).resume(4, 1) and path.read_bytes() == whole
        assert "4.parquet" in messages[-1] and messages[-1].endswith("because the weights of that step are here")
    path.unlink()
    with pytest.raises(ConfigError, match=r"4\.parquet"):
        opened(tmp_path).resume(5, None)
    run.restore()  # the run that has it in memory writes it again
    assert path.read_bytes() == whole
    path.unlink()
    assert opened(tmp_path).resume(4, 1) and path.read_bytes() == whole


def test_a_table_that_cannot_be_written_ends_the_run_with_a_way_out(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(neighbors, "write_atomically", full)
    with pytest.raises(CheckpointNotSaved, match=r"neighbors/4\.parquet could not be written.*make room"):
        opened(tmp_path).refresh(4, 1, saved=())
