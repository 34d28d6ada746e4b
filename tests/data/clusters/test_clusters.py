"""Batches of similar examples, from a table of neighbors."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmjax.core.config import ConfigError
from mmjax.data import source
from mmjax.data.clusters.config import ClusterConfig
from mmjax.data.clusters.order import ClusteredOrder
from mmjax.data.clusters.table import Clusters, make_table, read_clusters
from mmjax.data.pipeline import Batches
from mmjax.runs.folder import claim
from mmjax.train.setup import setup
from support import tiny

SIZE, CENTERS = 400, 8


def embedded(seed=0):
    """Unit rows around a few centers; the last ten are the first ten."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(CENTERS, 6))[np.arange(SIZE) % CENTERS] + 0.1 * random.normal(size=(SIZE, 6))
    z[-10:] = z[:10]
    return z / np.linalg.norm(z, axis=1, keepdims=True)


Z = embedded()
NEAREST = np.argsort(-(Z @ Z.T) + 9 * np.eye(SIZE), axis=1, kind="stable")[:, :-1].astype(np.int32)


def order(batch_size=64, seed=0, neighbors=NEAREST[:, :80], **options):
    config = ClusterConfig(path="", **{"size": 8, **options})
    return ClusteredOrder(Clusters(config=config, neighbors=neighbors), batch_size=batch_size, seed=seed)


def batch(made, step, size=64):
    return made.places(step * size, (step + 1) * size)


@pytest.mark.parametrize("options", [{}, {"among": 20}, {"fraction": 0.5}, {"fraction": 0}, {"size": 2, "among": 3}])
def test_a_batch_is_clusters_of_the_nearest_and_random_rows_and_none_comes_twice(options):
    made = order(**options)
    config = ClusterConfig(path="", **{"size": 8, **options})
    clustered = int(config.fraction * 64)
    for step in range(10):
        rows = batch(made, step)
        assert len(set(rows)) == len(rows) == 64
        used = set()
        for start in range(0, clustered, config.size):
            pivot, *others = rows[start : start + config.size]
            free = [row for row in NEAREST[pivot].tolist() if row not in used and row != pivot][: config.nearest]
            assert set(others) <= set(free) and (config.among or others == free)
            used |= {pivot, *others}


def test_a_batch_depends_on_seed_and_step_alone_and_epochs_differ():
    made, again = order(), order()
    later = batch(again, 7)
    assert [batch(made, step) for step in range(8)][7] == later
    assert batch(again, 7) == later and batch(made, 3) != later and batch(order(seed=1), 7) != later
    assert made.places(60, 70) == batch(made, 0)[60:] + batch(made, 1)[:6]


def test_similarity_grows_with_the_fraction_and_clusters_of_separate_groups_are_pure():
    def similarity(fraction):
        rows = [Z[batch(order(fraction=fraction), step)] for step in range(8)]
        return np.mean([(z @ z.T)[~np.eye(64, dtype=bool)].mean() for z in rows])

    def clusters(made):
        return np.array([batch(made, step) for step in range(8)]).reshape(-1, 8)

    assert similarity(0) < similarity(0.5) < similarity(1)
    rows = clusters(order())
    centers = np.where(rows < SIZE - 10, rows, rows - SIZE + 10) % CENTERS
    assert (centers == centers[:, :1]).all()


def test_the_warm_up_doubles_and_reaches_all():
    config = ClusterConfig(path="", first_fraction=1 / 512, double_every=10)
    fractions = [config.fraction_at(step) for step in range(0, 200, 10)]
    assert fractions[:3] == [1 / 512, 1 / 256, 1 / 128] and fractions[8:] == [0.5, *[1.0] * 11]
    assert config.fraction_at(10**9) == 1 and ClusterConfig(path="").fraction_at(0) == 1


def test_refreshes_come_at_defined_steps():
    never, later, from_start = ClusterConfig(path=""), ClusterConfig(refresh_every=4), ClusterConfig(
        refresh_every=4, first_refresh=0)  # fmt: skip
    assert never.next_refresh(10**9) == sys.maxsize and never.last_refresh(10**9) is None
    assert [later.last_refresh(step) for step in range(10)] == [None] * 4 + [4] * 4 + [8] * 2
    assert [from_start.last_refresh(step) for step in range(5)] == [0, 0, 0, 0, 4]
    for config in (later, from_start, ClusterConfig(refresh_every=3, first_refresh=7)):
        steps = [step for step in range(40) if config.refreshes_at(step)]
        for step in range(30):
            assert config.next_refresh(step) == next(other for other in steps if other > step)


def test_before_the_first_refresh_batches_are_random_and_then_of_the_new_neighbors():
    tokens = lambda texts: np.array([[int(text)] for text in texts], np.int32)  # noqa: E731
    config = ClusterConfig(refresh_every=5, size=8)
    batches = Batches(Source(), tokens, batch_size=64, seed=0, clusters=read_clusters(config, Source()))
    stream = batches.stream(threads=2, prefetch=4)
    before = [next(stream)["tokens"][:, 0].tolist() for _ in range(2)]
    stream.close()
    assert all(len(set(rows)) == 64 for rows in before)
    found = Clusters(config=config, neighbors=NEAREST[:, :24])
    assert batches.with_clusters(found)[3]["tokens"][:, 0].tolist() == batch(order(neighbors=NEAREST[:, :24]), 3)
    assert batches[1]["tokens"][:, 0].tolist() == before[1]


def test_a_small_table_of_neighbors_gives_smaller_clusters_and_rows_without_any_are_drawn_at_random():
    few = NEAREST[:, :7].copy()
    few[100:] = -1
    few[few >= 100] = -1
    made = order(neighbors=few)
    for step in range(5):
        assert len(set(batch(made, step))) == 64
    whole = order(batch_size=SIZE, neighbors=NEAREST[:, :7])
    assert sorted(batch(whole, 0, SIZE)) == list(range(SIZE))


class Source(source.Source):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        index = self.check_index(index)
        return {"id": index, "key": f"k{index}", "captions": [str(index)], "image": np.zeros((2, 2, 3), np.uint8)}


class Part(Source):
    """Every second example, with a column of keys."""

    def __len__(self):
        return SIZE // 2

    def __getitem__(self, index):
        return {**super().__getitem__(index), "key": f"k{2 * index}"}

    def column(self, name):
        return np.array([f"k{2 * i}" for i in range(SIZE // 2)]) if name == "key" else super().column(name)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("neighbors") / "n.parquet"
    made = make_table([f"k{i}" for i in range(SIZE)], np.arange(SIZE), NEAREST[:, :24], examples=SIZE)
    pq.write_table(made, path)
    return str(path)


def test_one_two_and_four_processes_have_the_same_batches(table):
    def made(index, count):
        clusters = read_clusters(ClusterConfig(path=table, size=8, among=12, fraction=0.75), Source())
        tokens = lambda texts: np.array([[int(text)] for text in texts], np.int32)  # noqa: E731
        return Batches(
            Source(), tokens, batch_size=32, seed=3, clusters=clusters, process_index=index, process_count=count
        )

    for step in (0, 5):
        whole = made(0, 1)[step]["tokens"]
        for count in (2, 4):
            parts = [made(index, count)[step]["tokens"] for index in range(count)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rows_are_matched_by_their_keys_if_the_source_is_another_part_of_the_data(table):
    clusters = read_clusters(ClusterConfig(path=table), Part())
    for row in (0, 7):
        wanted = [n // 2 if n % 2 == 0 else -1 for n in NEAREST[2 * row, :24].tolist()]
        assert clusters.neighbors[row].tolist() == wanted


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"size": 26}, r"has 24 neighbors of an example.*--count=100"),
        ({}, {"id": "other"}, r"its id is [0-9a-f]{16}, not data\.clusters\.id='other'"),
        ({"key": pa.array(["x"] * SIZE)}, {}, r"names example 0 'x', here it is 'k0'; embed this data"),
        ({"index": pa.array(np.arange(SIZE) + 1)}, {}, "is damaged"),
        ({"neighbors": None}, {}, "is no table of neighbors"),
        ({"neighbors": NEAREST[:, 23::-1]}, {}, "is damaged"),
    ],
)
def test_another_table_is_refused(table, tmp_path, change, options, message):
    made, path = pq.read_table(table), tmp_path / "changed.parquet"
    for name, column in change.items():
        made = made.drop_columns([name])
        if isinstance(column, np.ndarray) and column.ndim == 2:
            column = pa.FixedSizeListArray.from_arrays(pa.array(column.ravel(), pa.int32()), column.shape[1])
        made = made if column is None else made.append_column(name, column)
    if "key" in change:  # of other data, and not damaged
        made = made.replace_schema_metadata({"examples": str(SIZE)})
    pq.write_table(made, path)
    with pytest.raises(ConfigError, match=message):
        read_clusters(ClusterConfig(path=str(path), **options), Source())


def test_settings_that_cannot_be(table):
    clusters = read_clusters(ClusterConfig(path=table), Source())
    with pytest.raises(ConfigError, match=r"batch_size=8: data\.clusters needs from size=16"):
        ClusteredOrder(clusters, batch_size=8, seed=0)
    with pytest.raises(ConfigError, match=r"data\.clusters\.among=3: a cluster of size=16 takes 15"):
        ClusterConfig(path="", among=3)
    with pytest.raises(ConfigError, match=r"data\.clusters: has no neighbors; name a table.*or set refresh_every"):
        ClusterConfig()
    with pytest.raises(ConfigError, match=r"data\.clusters\.first_refresh=0: nothing is embedded again"):
        ClusterConfig(path="", first_refresh=0)
    with pytest.raises(ConfigError, match=r"among=400 needs more than the 400 examples"):
        read_clusters(ClusterConfig(refresh_every=5, among=400), Source())
    with pytest.raises(ConfigError, match=r"order='stored'"):
        Batches(Source(), lambda texts: np.zeros((len(texts), 1), np.int32), batch_size=16, seed=0, order="stored",
                clusters=clusters)  # fmt: skip


def test_a_run_keeps_the_id_of_its_table(tmp_path):
    experiment = tiny.experiment()
    source = setup(experiment).source
    keys = [str(source[i].get("key", source[i]["id"])) for i in range(48)]
    path, configs, experiments = tmp_path / "table.parquet", [], []
    for distance in (1, 2):
        neighbors = (np.arange(48)[:, None] + [distance, distance + 8, distance + 16]) % 48
        pq.write_table(make_table(keys, np.arange(48), neighbors, examples=48), path)
        resolved = setup(tiny.experiment(data__clusters={"path": str(path), "size": 2}))
        configs.append(resolved.experiment.to_dict()["data"]["clusters"])
        pairs = np.array(resolved.make_batches()[0]["image_ids"]).reshape(-1, 2)
        assert pairs.shape == (8, 2) and len(np.unique(pairs)) == 16
        experiments.append(resolved.experiment)
    assert configs[0].pop("id") != configs[1].pop("id") and configs[0] == configs[1]
    with claim(tmp_path / "run", experiments[0], overrides=()):
        pass
    with (
        pytest.raises(ConfigError, match=r"another experiment \(data\.clusters\.id: '\w+' there, '\w+' now\)"),
        claim(tmp_path / "run", experiments[1], overrides=()),
    ):
        pass
