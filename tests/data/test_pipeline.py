import os
import subprocess
import sys
import textwrap
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.core.groups import group_number
from mmjax.data import order, pipeline, source, token_cache
from mmjax.data.pipeline import Batches

LENGTH = 6
GOLDEN_IDS = [1015, 1018, 1019, 1008]
GOLDEN_TEXTS = [0, 2, 1, 3, 1, 3, 2, 2]


class Source(source.Source):
    """Examples whose pixels and texts tell their id; ids are not the places."""

    def __init__(self, size, *, group=1, captions=3, negatives=None, modalities=("image",)):
        self.size, self.group, self.captions, self.negatives, self.modalities = (
            size, group, captions, negatives, modalities,
        )  # fmt: skip

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert 0 <= index < self.size
        number = 1000 + index
        example = {"id": number, "label": 3}
        example |= {m: np.full((2, 3, k + 1), number % 251 + k, np.uint8) for k, m in enumerate(self.modalities)}
        example["captions"] = [f"{number} 1 {c}" for c in range(self.captions)]
        if self.negatives is not None:
            count = self.negatives[index % len(self.negatives)]
            example["negatives"] = [("swap", f"{number} 1 0", f"{number} 0 {n}") for n in range(count)]
        return example


def numbers(texts):
    """A tokenizer: the numbers in a text, so that rows can be read back: (id, is it true, which one)."""
    rows = [[*map(int, text.split())] or [-7] * 3 for text in texts]
    return np.array([row + [0] * (LENGTH - 3) for row in rows], np.int32)


def make(source, batch_size, *, seed=0, **options):
    return Batches(source, numbers, batch_size=batch_size, seed=seed, **options)


def ids(batch):
    return batch["image_ids"][:, 0].tolist()


def assert_equal(a, b):
    assert a.keys() == b.keys() and a["images"].keys() == b["images"].keys()
    for x, y in zip([*flat(a)], [*flat(b)], strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def flat(batch):
    return [*batch["images"].values(), *(batch[k] for k in batch if k not in ("images", "unreadable"))]


def joined(batches):
    """What a sharded array made of the processes' rows holds."""
    out = {k: np.concatenate([b[k] for b in batches]) for k in batches[0] if k not in ("images", "unreadable")}
    out["unreadable"] = [entry for b in batches for entry in b["unreadable"]]
    names = batches[0]["images"]
    return out | {"images": {m: np.concatenate([b["images"][m] for b in batches]) for m in names}}


class TestShape:
    def test_the_rows_are_as_documented(self):
        source = Source(10, negatives=[2], modalities=("image", "depth"))
        batch = make(source, 4, captions_per_image=2, negatives_per_image=1)[0]
        assert batch["images"]["image"].shape == (4, 2, 3, 1) and batch["images"]["depth"].shape == (4, 2, 3, 2)
        assert all(x.dtype == np.uint8 for x in batch["images"].values())
        assert batch["tokens"].shape == (12, LENGTH) and batch["tokens"].dtype == np.int32
        for name, rows, dtype in [("image_ids", 4, np.int32), ("image_weight", 4, np.float32),
                                  ("text_ids", 12, np.int32), ("text_weight", 12, np.float32)]:  # fmt: skip
            assert batch[name].shape == (rows, 1) and batch[name].dtype == dtype
        assert set(batch) == {"images", "tokens", "image_ids", "image_weight", "text_ids", "text_weight", "unreadable"}
        assert batch["unreadable"] == []

    def test_pixels_texts_and_ids_of_a_row_belong_together(self):
        batches = make(Source(300, negatives=[2]), 50, captions_per_image=2, negatives_per_image=2)
        for step in range(8):
            batch = batches[step]
            np.testing.assert_array_equal(batch["images"]["image"][:, 0, 0, 0], batch["image_ids"][:, 0] % 251)
            owners = batch["tokens"][:, 0].reshape(50, 4)
            np.testing.assert_array_equal(owners, np.repeat(batch["image_ids"], 4, axis=1))
            np.testing.assert_array_equal(batch["text_ids"].reshape(50, 4), owners)
            truth = batch["tokens"][:, 1].reshape(50, 4)
            np.testing.assert_array_equal(truth, [[1, 1, 0, 0]] * 50)
            np.testing.assert_array_equal(batch["text_weight"].reshape(50, 4), truth)
            np.testing.assert_array_equal(batch["image_weight"], 1)

    def test_a_text_an_image_lacks_is_a_padding_row_with_the_tokens_of_nothing(self):
        source = Source(8, captions=2, negatives=[0, 1])
        batch = make(source, 8, captions_per_image=3, negatives_per_image=1)[0]
        rows = batch["text_ids"].reshape(8, 4)
        np.testing.assert_array_equal(rows[:, :2], np.repeat(batch["image_ids"], 2, axis=1))
        np.testing.assert_array_equal(rows[:, 2], -1)
        has_negative = (batch["image_ids"][:, 0] % 2) == 1
        np.testing.assert_array_equal(rows[:, 3] >= 0, has_negative)
        padding = batch["text_ids"][:, 0] < 0
        assert padding.sum() == 12
        np.testing.assert_array_equal(batch["tokens"][padding], np.repeat(numbers([""]), 12, axis=0))
        np.testing.assert_array_equal(batch["text_weight"][padding], 0)


@pytest.fixture(params=["table", "constant memory"])
def way_of_shuffling(request, monkeypatch):
    if request.param == "constant memory":
        monkeypatch.setattr(order, "_LARGEST_TABLE", 0)


@pytest.mark.usefixtures("way_of_shuffling")
class TestEpochs:
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(
        groups=st.integers(1, 40), group=st.integers(1, 3), units=st.integers(1, 30), seed=st.integers(0, 2**70),
        order=st.sampled_from(["shuffled", "stored"]),
    )  # fmt: skip
    def test_every_epoch_holds_every_example_once(self, groups, group, units, seed, order):
        size, batch_size = groups * group, units * group
        batches = make(Source(size, group=group), batch_size, seed=seed, order=order)
        seen = []
        while len(seen) < 3 * size:
            seen += ids(batches[len(seen) // batch_size])
        for epoch in range(3):
            assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(1000, 1000 + size))
        members = np.array(seen[: len(seen) // group * group]).reshape(-1, group)
        np.testing.assert_array_equal(members, members[:, :1] + np.arange(group))
        np.testing.assert_array_equal((members[:, 0] - 1000) % group, 0)

    def test_epochs_and_seeds_differ_and_neighbouring_seeds_share_no_epoch(self):
        def order(seed, epoch):
            return tuple(ids(make(Source(64), 64, seed=seed)[epoch]))

        orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
        assert len(orders) == 16

    def test_places_are_shuffled_far(self):
        places = np.array(ids(make(Source(1000), 1000)[0])) - 1000
        assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.12
        assert np.mean(np.abs(np.diff(places)) == 1) < 0.02

    def test_stored_order(self):
        batches = make(Source(5), 3, order="stored", captions="first")
        assert [ids(batches[s]) for s in range(3)] == [[1000, 1001, 1002], [1003, 1004, 1000], [1001, 1002, 1003]]

    def test_a_batch_may_exceed_the_source_and_repeats_ids(self):
        got = ids(make(Source(3), 8)[0])
        assert sorted(got[:3]) == sorted(got[3:6]) == [1000, 1001, 1002] and len(got) == 8


class TestCaptions:
    def test_the_choice_is_uniform_and_independent_of_the_image(self):
        batches = make(Source(50, captions=5), 50)
        tokens = np.concatenate([batches[s]["tokens"] for s in range(100)])
        counts = np.bincount(tokens[:, 2], minlength=5)
        expected = len(tokens) / 5
        # 23.5 is the 0.9999 quantile of chi-square with 4 degrees of freedom.
        assert ((counts - expected) ** 2 / expected).sum() < 23.5
        assert all(len(set(tokens[tokens[:, 0] == i, 2])) == 5 for i in range(1000, 1050))

    def test_all_pairs_of_two_captions_are_equally_likely(self):
        tokens = make(Source(3000, captions=3), 3000, captions_per_image=2)[0]["tokens"][:, 2].reshape(-1, 2)
        pairs, counts = np.unique(tokens, axis=0, return_counts=True)
        assert len(pairs) == 6 and (pairs[:, 0] != pairs[:, 1]).all()
        assert ((counts - 500) ** 2 / 500).sum() < 25.8  # 0.9999 quantile, 5 degrees of freedom

    def test_negatives_are_drawn_without_repetition(self):
        rows = make(Source(300, negatives=[3]), 300, negatives_per_image=2)[0]["tokens"].reshape(300, 3, LENGTH)
        false = rows[:, 1:, 2]
        assert (false[:, 0] != false[:, 1]).all() and set(false.ravel()) == {0, 1, 2}

    def test_first(self):
        tokens = make(Source(9), 9, captions="first", captions_per_image=2)[4]["tokens"]
        np.testing.assert_array_equal(tokens[:, 2].reshape(9, 2), [[0, 1]] * 9)

    def test_the_same_example_gets_other_captions_in_other_epochs(self):
        batches = make(Source(20, captions=4), 20)
        choices = [dict(zip(ids(b), b["tokens"][:, 2].tolist(), strict=True)) for b in (batches[0], batches[1])]
        assert choices[0] != choices[1]


class TestInvariance:
    @settings(max_examples=25)
    @given(
        groups=st.integers(1, 30), group=st.integers(1, 3), units=st.integers(1, 4), step=st.integers(0, 10**9),
        captions=st.integers(1, 4), negatives=st.integers(0, 2),
    )  # fmt: skip
    def test_the_processes_rows_joined_are_the_batch(self, groups, group, units, step, captions, negatives):
        source = Source(groups * group, group=group, negatives=[0, 1, 5])
        options = {"captions_per_image": captions, "negatives_per_image": negatives}
        whole = make(source, 4 * group * units, **options)[step]
        for count in (2, 4):
            shares = [
                make(source, 4 * group * units, process_index=p, process_count=count, **options)[step]
                for p in range(count)
            ]
            assert_equal(joined(shares), whole)

    def test_a_stream_starts_anywhere(self):
        batches = make(Source(13), 5)
        for start in (0, 1, 7, 10**12):
            with closing(batches.stream(start_step=start)) as stream:
                for step in range(start, start + 4):
                    assert_equal(next(stream), batches[step])

    def test_starting_late_reads_nothing_of_what_came_before(self):
        source = Source(10_000)
        batches = make(source, 4)
        reads = []
        source.__class__ = type(
            "Counting", (Source,), {"__getitem__": lambda s, i: reads.append(i) or Source.__getitem__(s, i)}
        )
        with closing(batches.stream(start_step=2000, threads=0)) as stream:
            next(stream)
        assert len(reads) == 4

    @pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 1), (4, 3)])
    def test_threads_change_nothing(self, threads, prefetch):
        batches = make(Source(13, negatives=[2]), 4, negatives_per_image=1)
        with closing(batches.stream(threads=threads, prefetch=prefetch)) as stream:
            for step in range(9):
                assert_equal(next(stream), batches[step])

    def test_worker_processes_change_nothing_and_start_no_backend(self, tmp_path):
        # A platform that does not exist: whoever starts a jax backend fails.
        (tmp_path / "program.py").write_text(WORKERS)
        environment = os.environ | {"JAX_PLATFORMS": "none"}
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "program.py"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["equal"] * 5

    def test_the_batch_of_a_seed_never_changes(self):
        batch = make(Source(20, negatives=[4]), 4, seed=3, negatives_per_image=1)[7]
        assert ids(batch) == GOLDEN_IDS
        assert batch["tokens"][:, 2].tolist() == GOLDEN_TEXTS

    def test_importing_the_data_package_does_not_import_jax(self):
        code = (
            "import sys, mmjax.data.pipeline, mmjax.data.tokenizer; print({'jax', 'transformers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


WORKERS = textwrap.dedent(
    """
    import contextlib
    import numpy as np
    from mmjax.data import source, tokenizer
    from mmjax.data.pipeline import Batches

    class Source(source.Source):
        def __len__(self):
            return 11
        def __getitem__(self, i):
            return {"id": i, "image": np.full((8, 8, 3), i, np.uint8), "captions": [f"{w} {i} <eos>" for w in "abc"]}

    if __name__ == "__main__":
        numbers = Source()
        captions = [caption for example in numbers for caption in example["captions"]]
        words = tokenizer.load("word", context_length=9, captions=captions)
        batches = Batches(numbers, words, batch_size=4, seed=1)
        with contextlib.closing(batches.stream(start_step=3, workers=2)) as stream:
            for step in range(3, 8):
                got, expected = next(stream), batches[step]
                np.testing.assert_array_equal(got["images"].pop("image"), expected["images"].pop("image"))
                for name in expected.keys() - {"images", "unreadable"}:
                    np.testing.assert_array_equal(got[name], expected[name])
                print("equal")
    """
)


class TestTokens:
    def test_each_text_is_tokenized_once(self):
        asked = []

        def counting(texts):
            asked.extend(texts)
            return numbers(texts)

        batches = Batches(Source(20), counting, batch_size=10, seed=0)
        for step in range(60):
            batches[step]
        assert len(asked) == len(set(asked)) == 60

    def test_beyond_what_is_remembered_texts_are_still_right(self, monkeypatch):
        monkeypatch.setattr(token_cache, "_CACHED_TEXTS", 3)
        few, all_ = make(Source(20), 7), make(Source(20), 7)
        few[0]
        monkeypatch.undo()
        monkeypatch.setattr(token_cache, "_CACHED_TEXTS", 3)
        for step in range(5):
            np.testing.assert_array_equal(few[step]["tokens"][:, 0], few[step]["image_ids"][:, 0])
            assert_equal(few[step], all_[step])
        assert len(few._tokenize._known) <= 3 + 7

    def test_a_caller_may_write_into_its_batch(self):
        batches = make(Source(20), 7)
        before = batches[0]
        spoilt = batches[0]
        for array in flat(spoilt):
            array[...] = 0
        assert_equal(batches[0], before)


class TestErrors:
    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            (Source(0), {}, "source is empty"),
            (Source(7, group=2), {}, "7 examples in groups of 2"),
            (Source(8), {"process_count": 3}, r"batch_size=4: must be divisible by 3 process\(es\).*use 3"),
            (Source(9, group=3), {}, "batch_size=4: .*groups of 3; use 3"),
            (Source(8), {"batch_size": 0}, "batch_size=0: must be at least 1"),
            (Source(8), {"seed": -1}, "seed=-1"),
            (Source(8), {"captions_per_image": 0}, "captions_per_image=0"),
            (Source(8), {"negatives_per_image": -1}, "negatives_per_image=-1"),
            (Source(8), {"negatives_per_image": 1}, "negatives_per_image=1: the source supplies no negatives"),
            (Source(8), {"process_index": 2, "process_count": 2}, "process_index=2"),
            (Source(8), {"captions": "randm"}, "captions='randm'.*did you mean 'random'"),
            (Source(8), {"order": "sorted"}, "order='sorted'"),
            (Source(8, modalities=()), {}, "no images"),
        ],
    )
    def test_of_configuration(self, source, options, message):
        with pytest.raises(ConfigError, match=message) as caught:
            make(source, **({"batch_size": 4} | options))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"start_step": -1}, {"workers": -1}, {"threads": -1}, {"prefetch": 0}])
    def test_of_streams(self, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make(Source(8), 4).stream(**options)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ({"image": np.zeros((2, 4, 1), np.uint8)}, "'image' is uint8[2, 4, 1]"),
            ({"image": np.zeros((2, 3, 1), np.float32)}, "is float32[2, 3, 1]"),
            ({"image": None}, "missing"),
            ({"id": -1}, "id -1"),
            ({"id": 2**31}, "id 2147483648"),
        ],
    )
    @pytest.mark.parametrize("threads", [0, 1])
    def test_of_a_damaged_example_are_counted(self, damage, message, threads):
        class Damaged(Source):
            def __getitem__(self, index):
                return super().__getitem__(index) | (damage if index == 5 else {})

        with closing(make(Damaged(8), 8).stream(threads=threads)) as stream:
            batch = next(stream)
        assert 1005 not in batch["image_ids"]
        assert {reason for _, reason, _ in batch["unreadable"]} == {"bad row"}
        assert all(message in detail for _, _, detail in batch["unreadable"])


def test_a_stream_hands_over_every_option():
    source = Source(24, group=2, negatives=[3])
    options = {
        "captions": "first", "captions_per_image": 2, "negatives_per_image": 1, "order": "stored",
        "process_index": 1, "process_count": 2,
    }  # fmt: skip
    expected = make(source, 4, seed=5, **options)[6]
    made = pipeline.Batches(source, numbers, batch_size=4, seed=5, **options)
    stream = made.stream(start_step=6, threads=2, prefetch=1)
    with closing(stream):
        assert_equal(next(iter(stream)), expected)


class TestGroups:
    class Source(Source):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example | {"gender": ["f", "m", None][index % 3], "age": np.int64(index % 2)}

    def batch(self, **options):
        source = self.Source(12, captions=2, negatives=[2, 1])
        return make(source, 12, order="stored", negatives_per_image=2, **options)[0]

    def test_rows_have_the_number_of_their_examples_combination_of_values(self):
        batch = self.batch(groups=("gender", "age"), text_groups="example")
        number = lambda i: -1 if i % 3 == 2 else group_number("fm"[i % 3], str(i % 2))  # noqa: E731
        wanted = [number(i) for i in range(12)]
        assert batch["image_group"].dtype == np.int32 and batch["image_group"].tolist() == wanted
        assert batch["text_group"].reshape(12, 3).tolist() == [[w] * 3 for w in wanted]
        halves = [
            make(
                self.Source(12, captions=2), 12, order="stored", groups=("gender",), text_groups="example",
                process_index=p, process_count=2,
            )[0]["image_group"]
            for p in range(2)
        ]  # fmt: skip
        whole = make(self.Source(12, captions=2), 12, order="stored", groups=("gender",), text_groups="example")[0]
        np.testing.assert_array_equal(np.concatenate(halves), whole["image_group"])

    def test_kinds_are_those_of_hard_negatives_alone(self):
        batch = self.batch(text_groups="kind")
        swap = group_number("swap")
        wanted = [[-1, swap, swap], [-1, swap, -1]] * 6
        assert batch["text_group"].reshape(12, 3).tolist() == wanted

    def test_batches_have_none_unless_asked_and_a_missing_field_is_named(self):
        assert "image_group" not in self.batch()
        with pytest.raises(ConfigError, match=r"groups=\('sex',\).*no field 'sex'; they have age, captions, gender"):
            self.batch(groups=("sex",), text_groups="example")
