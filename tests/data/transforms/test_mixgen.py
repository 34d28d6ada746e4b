import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmjax.core.config import ConfigError
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenFormat
from mmjax.data.transforms.mixgen import Transform, blend
from support.samples import configured

BOS, EOS, PAD = 1, 2, 0
L = 12
FORMAT = TokenFormat(bos_id=BOS, eos_id=EOS, pad_id=PAD, vocab_size=1000, context_length=L)
FORMATS = {
    "all differ": FORMAT,
    "no BOS": FORMAT._replace(bos_id=None),
    "pad is EOS": FORMAT._replace(pad_id=EOS),
    "all are one": FORMAT._replace(bos_id=EOS, pad_id=EOS),
}


def framed(body, fmt=FORMAT, length=L):
    """The tokenizer's layout, by lists."""
    head = [] if fmt.bos_id is None else [fmt.bos_id]
    row = head + list(body)[: length - len(head) - 1] + [fmt.eos_id]
    return row + [fmt.pad_id] * (length - len(row))


def body(row, fmt=FORMAT):
    row = row.tolist()[fmt.bos_id is not None :]
    return row[: row.index(fmt.eos_id)]


def random(seed=0):
    return lambda number: np.random.default_rng((seed, number))


def batch(n, *, captions=1, negatives=0, lengths=(2, 3, 4), fmt=FORMAT, length=L, seed=0, side=4, dropped=()):
    """Rows whose tokens tell their row, caption and place: 100 + ...; ``dropped`` (row, caption) are padding."""
    g = np.random.default_rng(seed)
    texts = captions + negatives
    tokens = np.zeros((n, texts, length), np.int32)
    for i in range(n):
        for c in range(texts):
            count = lengths[(i * texts + c) % len(lengths)]
            tokens[i, c] = framed(g.integers(3, 1000, count), fmt, length)
    text_ids = np.repeat(np.arange(n, dtype=np.int32)[:, None] + 500, texts, axis=1)
    weight = np.ones((n, texts), np.float32)
    weight[:, captions:] = 0
    for i, c in dropped:
        tokens[i, c], text_ids[i, c], weight[i, c] = framed([], fmt, length), -1, 0
    rows = BatchRows(
        numbers=np.arange(n),
        partner=np.full(n, -1),
        images={
            "image": g.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
            "depth": g.integers(0, 256, (n, side + 1, side, 3), dtype=np.uint8),
        },
        image_ids=np.arange(n, dtype=np.int32)[:, None] + 500,
        image_weight=np.ones((n, 1), np.float32),
        tokens=tokens,
        text_ids=text_ids[..., None],
        text_weight=weight[..., None],
        captions=captions,
    )
    for x in (rows.tokens, rows.text_ids, rows.text_weight, rows.image_ids, rows.image_weight, *rows.images.values()):
        x.flags.writeable = False
    return rows


def apply(transform, rows, *, share=None, group=1, seed=0, size=None):
    """As a process with ``share`` of the global batch ``rows`` does it: its rows, then partners from elsewhere."""
    n = len(rows.numbers) if size is None else size
    share = range(n) if share is None else share
    pairs = transform.partners(batch_size=n, group=group, host_rows=share)
    here = [*share, *sorted({j for j in pairs.values() if j not in share})]
    place = {row: k for k, row in enumerate(here)}
    mine = rows.replace(
        numbers=rows.numbers[here],
        partner=np.array([place[pairs[r]] if r in pairs else -1 for r in here]),
        images={k: v[here] for k, v in rows.images.items()},
        **{k: getattr(rows, k)[here] for k in ("image_ids", "image_weight", "tokens", "text_ids", "text_weight")},
    )
    out = transform(mine, random(seed))
    keep = slice(0, len(share))
    return out.replace(
        numbers=out.numbers[keep],
        partner=out.partner[keep],
        images={k: v[keep] for k, v in out.images.items()},
        **{k: getattr(out, k)[keep] for k in ("image_ids", "image_weight", "tokens", "text_ids", "text_weight")},
    ), pairs


def reference_pixels(a, b, share):
    return np.floor(share * a.astype(np.float64) + (1 - share) * b.astype(np.float64) + 0.5)


class TestWhichRows:
    @pytest.mark.parametrize("count", [0, 1, 4, 8])
    def test_local_is_row_k_with_row_k_plus_m(self, count):
        pairs = Transform(token_format=FORMAT, num=count, scope="local").partners(
            batch_size=48, group=1, host_rows=range(16, 32)
        )
        assert pairs == {16 + k: 16 + k + count for k in range(count)}

    def test_more_than_there_are_is_an_error_that_names_the_most(self):
        for scope in ("local", "global"):
            with pytest.raises(ConfigError, match=r"num=17: of 16 .* at most 16"):
                Transform(token_format=FORMAT, num=17, scope=scope).partners(
                    batch_size=16, group=1, host_rows=range(16)
                )
        with pytest.raises(ConfigError, match="num=1: of 2 rows in groups of 2 at most 0"):
            Transform(token_format=FORMAT, num=1).partners(batch_size=2, group=2, host_rows=range(2))

    @pytest.mark.parametrize("scope", ["local", "global"])
    def test_all_of_a_batch_is_mixed_with_the_next_of_unmixed_rows(self, scope):
        """The paper's M = B; the released code reads rows that it has mixed already."""
        rows = batch(16)
        out, pairs = apply(Transform(token_format=FORMAT, fraction=1.0, scope=scope), rows)
        assert pairs == {k: (k + 1) % 16 for k in range(16)}
        for i, j in pairs.items():
            expected = reference_pixels(rows.images["image"][i], rows.images["image"][j], 0.5)
            np.testing.assert_array_equal(out.images["image"][i], expected)
            assert body(out.tokens[i, 0]) == (body(rows.tokens[i, 0]) + body(rows.tokens[j, 0]))[: L - 2]

    def test_the_official_default_is_a_quarter_rounded_half_up(self):
        for size, count in [(1, 0), (2, 1), (4, 1), (6, 2), (10, 3), (64, 16), (65, 16)]:
            assert (
                len(Transform(token_format=FORMAT).partners(batch_size=size, group=1, host_rows=range(size))) == count
            )

    @settings(max_examples=200)
    @given(groups=st.integers(1, 40), group=st.integers(1, 4), fraction=st.floats(0, 1), data=st.data())
    def test_global_pairs_are_in_neighboring_groups_disjoint_up_to_half_and_the_same_for_every_split(
        self, groups, group, fraction, data
    ):
        size = groups * group
        slots = group * (groups // 2)
        count = math.floor(fraction * size + 0.5)
        transform = Transform(token_format=FORMAT, fraction=fraction)
        if groups == 1 and count:
            with pytest.raises(ConfigError):
                transform.partners(batch_size=size, group=group, host_rows=range(size))
            return
        pairs = transform.partners(batch_size=size, group=group, host_rows=range(size))
        assert len(pairs) == len({*pairs.values()}) == count
        for row, other in pairs.items():
            assert 0 <= row < size and other == (row + group) % size
            assert count > slots or row // group % 2 == 0
        cut = data.draw(st.integers(0, size))
        parts = [transform.partners(batch_size=size, group=group, host_rows=r) for r in (range(cut), range(cut, size))]
        assert {**parts[0], **parts[1]} == pairs and not {*parts[0]} & {*parts[1]}

    def test_global_slots_are_spread_evenly(self):
        rows = sorted(Transform(token_format=FORMAT, num=10).partners(batch_size=100, group=1, host_rows=range(100)))
        assert rows == [10 * k for k in range(10)]


class TestPicturesAndTexts:
    @pytest.mark.parametrize("scope", ["global", "local"])
    @pytest.mark.parametrize("count", [0, 4, 8])
    def test_it_is_the_formula_and_leaves_all_else_alone(self, scope, count):
        rows = batch(16)
        before = pickle.dumps(rows)
        out, pairs = apply(Transform(token_format=FORMAT, num=count, scope=scope), rows)
        assert pickle.dumps(rows) == before and len(pairs) == count
        for i in range(16):
            j = pairs.get(i)
            for name, x in rows.images.items():
                expected = x[i] if j is None else reference_pixels(x[i], x[j], 0.5)
                np.testing.assert_array_equal(out.images[name][i], expected)
                assert out.images[name].dtype == np.uint8
            expected = rows.tokens[i, 0] if j is None else framed(body(rows.tokens[i, 0]) + body(rows.tokens[j, 0]))
            np.testing.assert_array_equal(out.tokens[i, 0], expected)

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.999, 1.0])
    def test_pixels_are_rounded_half_up_for_all_values(self, share):
        grid = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), -1).astype(np.uint8)
        pixels = np.stack([grid[..., :1], grid[..., 1:]])
        mixed = blend(pixels, np.array([0]), np.array([1]), np.array([share], np.float32))[0].astype(float)
        exact = share * pixels[0].astype(float) + (1 - share) * pixels[1]
        assert abs(mixed - exact).max() <= 0.5 + 1e-4
        if share in (0.0, 0.25, 0.5, 1.0):  # exact in binary
            np.testing.assert_array_equal(mixed, np.floor(exact + 0.5))

    def test_share_one_keeps_the_picture_and_zero_gives_the_partners(self):
        rows = batch(4)
        for share, at in ((1.0, 0), (0.0, 1)):
            out, pairs = apply(Transform(token_format=FORMAT, num=1, mix=share), rows)
            assert pairs == {0: 1}
            np.testing.assert_array_equal(out.images["image"][0], rows.images["image"][at])

    def test_normalising_commutes_with_mixing_up_to_the_rounding(self):
        rows = batch(8, side=16)
        out, pairs = apply(Transform(token_format=FORMAT, num=4), rows)
        normalize = lambda x: (x.astype(np.float64) / 255 - 0.48) / 0.27  # noqa: E731
        for i, j in pairs.items():
            mixed = 0.5 * normalize(rows.images["image"][i]) + 0.5 * normalize(rows.images["image"][j])
            assert abs(normalize(out.images["image"][i]) - mixed).max() <= 0.5 / 255 / 0.27 + 1e-12

    def test_every_row_can_be_mixed_from_unmodified_rows(self):
        """A cycle over all rows: in place, one after another, most rows would hold more than two texts."""
        rows = batch(16, length=40, fmt=FORMAT)
        cycle = np.roll(np.arange(16), -3)
        out = Transform(token_format=FORMAT)(rows.replace(partner=cycle), random())
        for i, j in enumerate(cycle):
            np.testing.assert_array_equal(
                out.images["image"][i], reference_pixels(rows.images["image"][i], rows.images["image"][j], 0.5)
            )
            assert body(out.tokens[i, 0]) == body(rows.tokens[i, 0]) + body(rows.tokens[j, 0])

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("first", range(0, 12, 3))
    @pytest.mark.parametrize("second", range(0, 12, 2))
    def test_one_frame_around_both_bodies_at_every_overflow(self, name, first, second):
        fmt = FORMATS[name]
        rows = batch(2, lengths=(first, second), fmt=fmt)
        [one, two] = (body(rows.tokens[k, 0], fmt) for k in range(2))
        out, _ = apply(Transform(token_format=fmt, num=1), rows)
        np.testing.assert_array_equal(out.tokens[0, 0], framed(one + two, fmt))
        ends = out.tokens[0, 0].tolist()[fmt.bos_id is not None :]
        assert ends.count(EOS) == 1 or fmt.pad_id == EOS
        assert EOS in ends and body(out.tokens[0, 0], fmt) == (one + two)[: L - 1 - (fmt.bos_id is not None)]

    def test_ids_joined_are_the_tokens_of_the_joined_caption(self):
        from mmjax.data import tokenizer as tokenizers

        captions = ["a red circle above a blue star", "two dogs, one cat", "The Sea!", "a small green square"]
        for kind in ("word", "bpe"):
            tokenizer = tokenizers.load(kind, context_length=16, captions=captions, vocab_size=300)
            fmt = TokenFormat(
                tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size, tokenizer.context_length
            )
            rows = batch(4, length=16).replace(tokens=tokenizer(captions)[:, None])
            out, pairs = apply(Transform(token_format=fmt, num=2), rows)
            for i, j in pairs.items():
                np.testing.assert_array_equal(out.tokens[i], tokenizer([f"{captions[i]} {captions[j]}"]))


class TestRowsOfSeveralTexts:
    def test_missing_captions_and_hard_negatives(self):
        rows = batch(4, captions=3, negatives=2, lengths=(2,), dropped=[(0, 2), (1, 1), (1, 2), (0, 4)])
        out, pairs = apply(Transform(token_format=FORMAT, num=1), rows)
        assert pairs == {0: 1}
        own, other = rows.tokens[0], rows.tokens[1]
        np.testing.assert_array_equal(out.tokens[0, 0], framed(body(own[0]) + body(other[0])))
        np.testing.assert_array_equal(out.tokens[0, 1], framed(body(own[1]) + body(other[0])))
        for c in (2, 3, 4):
            np.testing.assert_array_equal(out.tokens[0, c], framed([]))
        np.testing.assert_array_equal(out.text_ids[0], [[500, 501], [500, 501], [-1, -1], [-1, -1], [-1, -1]])
        np.testing.assert_array_equal(out.text_weight[0], [[0.5, 0.5]] * 2 + [[0, 0]] * 3)
        np.testing.assert_array_equal(out.tokens[1:], rows.tokens[1:])
        np.testing.assert_array_equal(out.text_ids[1:, :, :1], rows.text_ids[1:])
        np.testing.assert_array_equal(out.text_ids[1:, :, 1], -1)
        np.testing.assert_array_equal(out.text_weight[1:, :, :1], rows.text_weight[1:])
        np.testing.assert_array_equal(out.text_weight[1:, :, 1], 0)

    def test_sources_of_pictures(self):
        out, _ = apply(Transform(token_format=FORMAT, num=1, mix=0.25), batch(4))
        np.testing.assert_array_equal(out.image_ids, [[500, 501], [501, -1], [502, -1], [503, -1]])
        np.testing.assert_array_equal(out.image_weight, [[0.25, 0.75], [1, 0], [1, 0], [1, 0]])
        assert out.image_ids.dtype == out.text_ids.dtype == np.int32
        assert out.image_weight.dtype == out.text_weight.dtype == np.float32

    def test_rows_that_are_mixed_already_are_refused(self):
        out, _ = apply(Transform(token_format=FORMAT), batch(8))
        with pytest.raises(ConfigError, match="another transform mixed"):
            apply(Transform(token_format=FORMAT), out)


def many(variant, *, n=4000, lengths=(2, 3, 4), length=L, captions=1, **options):
    rows = batch(n, side=1, lengths=lengths, length=length, captions=captions)
    out, pairs = apply(Transform(token_format=FORMAT, variant=variant, fraction=0.5, **options), rows)
    return rows, out, np.array([*pairs]), np.array([*pairs.values()])


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(token in rest for token in part)


class TestVariants:
    @pytest.mark.parametrize("variant", ["a", "d", "e"])
    def test_shares_follow_the_beta_law(self, variant):
        _, out, i, _ = many(variant)
        share = out.image_weight[i, 0].astype(float)
        # By points of the law: as float32, a tenth of the shares are 1.
        for point in (1e-9, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
            assert abs(np.mean(share < point) - stats.beta(0.1, 0.1).cdf(point)) < 0.035
        assert abs(np.mean((share < 0.1) | (share > 0.9)) - 0.82) < 0.03
        _, out, i, _ = many(variant, alpha=5.0)
        assert stats.kstest(out.image_weight[i, 0].astype(float), stats.beta(5, 5).cdf).pvalue > 0.01

    def test_a_mixes_pixels_by_the_share_it_says(self):
        rows, out, i, j = many("a")
        share = out.image_weight[i, 0][:, None, None, None].astype(float)
        exact = share * rows.images["image"][i] + (1 - share) * rows.images["image"][j]
        assert abs(out.images["image"][i] - exact).max() <= 0.5 + 1e-3
        np.testing.assert_array_equal(out.text_weight[i, 0], 0.5)

    def test_b_takes_one_text_whole_and_says_which(self):
        rows, out, i, j = many("b", captions=2)
        own = (out.tokens[i] == rows.tokens[i]).all(axis=(1, 2))
        other = (out.tokens[i] == rows.tokens[j]).all(axis=(1, 2))
        assert (own != other).all() and abs(own.mean() - 0.5) < 0.04
        np.testing.assert_array_equal(out.text_weight[i], np.stack([own, other], -1)[:, None].repeat(2, 1))
        np.testing.assert_array_equal(out.text_ids[i, 0], np.stack([i, j], -1) + 500)
        np.testing.assert_array_equal(out.image_weight[i], 0.5)

    def test_c_takes_one_picture_and_says_which(self):
        rows, out, i, j = many("c")
        own = out.image_weight[i, 0] == 1
        np.testing.assert_array_equal(out.image_weight[i, 1], ~own)
        source = np.where(own, i, j)
        for name in rows.images:
            np.testing.assert_array_equal(out.images[name][i], rows.images[name][source])
        assert abs(own.mean() - 0.5) < 0.04
        assert all(len(body(out.tokens[k, 0])) == min(a, L - 2) for k, a in zip(i, lengths_of(rows, i, j), strict=True))
        np.testing.assert_array_equal(out.text_weight[i], 0.5)

    def test_d_keeps_the_shares_of_both_texts_in_their_order(self):
        rows, out, i, j = many("d", lengths=(1, 3, 10, 0, 20, 5), length=40, n=1200)
        for a, b in zip(i, j, strict=True):
            first, second = body(rows.tokens[a, 0]), body(rows.tokens[b, 0])
            got, share = body(out.tokens[a, 0]), float(out.image_weight[a, 0])
            ends = [math.floor(share * len(first) + 0.5), math.floor((1 - share) * len(second) + 0.5)]
            if sum(ends) == 0 and first + second:
                ends = [bool(first), bool(second)]
            assert len(got) == sum(ends)
            assert is_subsequence(got[: ends[0]], first) and is_subsequence(got[ends[0] :], second)
            np.testing.assert_allclose(out.text_weight[a, 0], [share, 1 - share], atol=1e-6)

    def test_e_keeps_half_of_all_tokens_each_as_likely(self):
        rows, out, i, j = many("e", lengths=(10, 20), length=40)
        kept = np.zeros(30)
        for a, b in zip(i, j, strict=True):
            both, got = body(rows.tokens[a, 0]) + body(rows.tokens[b, 0]), body(out.tokens[a, 0])
            assert len(got) == 15 and is_subsequence(got, both)
            if len(set(both)) == 30:
                kept += np.isin(both, got)
                first, second = (np.isin(x, got).mean() for x in (both[:10], both[10:]))
                np.testing.assert_allclose(out.text_weight[a, 0, 0], first / (first + second), rtol=1e-5)
        assert kept.sum() > 5000
        assert abs(kept / kept.sum() * 15 - 0.5).max() < 0.06

    @pytest.mark.parametrize(("lengths", "length"), [((1, 1), 1), ((1, 0), 1), ((2, 1), 2), ((0, 0), 0)])
    def test_e_rounds_half_up(self, lengths, length):
        _, out, i, _ = many("e", lengths=lengths, n=8)
        assert {len(body(out.tokens[k, 0])) for k in i} == {length}
        assert np.isfinite(out.text_weight).all() and np.allclose(out.text_weight[i].sum(-1), 1)

    def test_the_mean_lengths_are_those_of_the_definitions(self):
        expected = {"default": 30, "a": 30, "c": 30, "b": 15, "d": 15, "e": 15}
        for variant, mean in expected.items():
            _, out, i, _ = many(variant, lengths=(10, 20), length=40)
            got = np.mean([len(body(out.tokens[k, 0])) for k in i])
            assert abs(got - mean) < (0.01 if variant in ("default", "a", "c", "e") else 0.6), variant


def lengths_of(rows, i, j):
    return [len(body(rows.tokens[a, 0])) + len(body(rows.tokens[b, 0])) for a, b in zip(i, j, strict=True)]


class TestDeterminism:
    @pytest.mark.parametrize("variant", ["default", "a", "b", "c", "d", "e"])
    @pytest.mark.parametrize(("group", "num"), [(1, 7), (2, 7), (3, 7), (1, 24), (3, 20)])
    def test_processes_joined_make_the_batch_of_one(self, variant, group, num):
        rows = batch(24, captions=2, negatives=1, dropped=[(3, 1), (8, 2)])
        transform = Transform(token_format=FORMAT, variant=variant, num=num)
        whole, _ = apply(transform, rows, group=group)
        for processes in (2, 4, 8):
            size = 24 // processes
            parts = [
                apply(transform, rows, share=range(k * size, (k + 1) * size), group=group, size=24)[0]
                for k in range(processes)
            ]
            for name in ("tokens", "text_ids", "text_weight", "image_ids", "image_weight"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, name))
            for name in rows.images:
                np.testing.assert_array_equal(np.concatenate([p.images[name] for p in parts]), whole.images[name])

    def test_another_seed_draws_otherwise_and_a_rows_draws_do_not_depend_on_m(self):
        rows = batch(32)
        shares = {
            (seed, num): apply(Transform(token_format=FORMAT, variant="a", num=num), rows, seed=seed)[0].image_weight[
                0, 0
            ]
            for seed in (0, 1)
            for num in (4, 16)
        }
        assert shares[0, 4] == shares[0, 16] != shares[1, 4] == shares[1, 16]

    def test_it_can_be_pickled(self):
        rows = batch(8)
        transform = Transform(token_format=FORMAT, variant="d", fraction=0.5)
        one, two = (apply(t, rows)[0] for t in (transform, pickle.loads(pickle.dumps(transform))))
        np.testing.assert_array_equal(one.tokens, two.tokens)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num": 1, "fraction": 0.25}, "num=1: fraction=0.25"),
        ({"num": -1}, "num=-1"),
        ({"fraction": 1.1}, "fraction=1.1"),
        ({"variant": "f"}, "variant='f'"),
        ({"scope": "process"}, "scope='process'"),
        ({"mix": 0.5, "variant": "a"}, "mix=0.5: variant='a'"),
        ({"mix": 0.5, "variant": "c"}, "mix=0.5: variant='c'"),
        ({"mix": 0.5, "variant": "e"}, "mix=0.5: variant='e'"),
        ({"mix": 1.5}, "mix=1.5"),
        ({"alpha": 0.1}, "alpha=0.1: variant='default'"),
        ({"alpha": 0.0, "variant": "a"}, "alpha=0.0"),
        ({"alpha": float("nan"), "variant": "a"}, "alpha=nan"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        configured(Transform, token_format=FORMAT, **options)
