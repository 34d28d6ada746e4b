import numpy as np
import pytest
from scipy import stats

from mmjax.core.config import ConfigError
from mmjax.data.sample import BatchRows
from mmjax.data.token_format import TokenFormat
from mmjax.data.transforms.token_mask import Transform
from support.samples import configured

L = 20
FORMAT = TokenFormat(bos_id=1, eos_id=4, pad_id=0, vocab_size=30, context_length=L)
FORMATS = [FORMAT, FORMAT._replace(bos_id=None), FORMAT._replace(pad_id=4), FORMAT._replace(bos_id=4, pad_id=4)]


def rows(n=50, *, captions=2, negatives=1, fmt=FORMAT, longest=L, seed=0):
    g = np.random.default_rng(seed)
    room = L - 1 - (fmt.bos_id is not None)
    allowed = np.setdiff1d(np.arange(fmt.vocab_size), [i for i in fmt[:3] if i is not None])
    tokens = np.full((n, captions + negatives, L), fmt.pad_id, np.int32)
    text_ids = np.repeat(np.arange(n, dtype=np.int32)[:, None], captions + negatives, 1)
    for i in range(n):
        for c in range(captions + negatives):
            if c == captions - 1 and i % 5 == 0:
                text_ids[i, c] = -1
            count = min(int(g.integers(0, longest)), room)
            row = ([] if fmt.bos_id is None else [fmt.bos_id]) + g.choice(allowed, count).tolist() + [fmt.eos_id]
            tokens[i, c, : len(row)] = row
    tokens.flags.writeable = False
    return BatchRows(
        numbers=np.arange(n) + 7,
        partner=np.full(n, -1),
        images={},
        image_ids=np.arange(n, dtype=np.int32)[:, None],
        image_weight=np.ones((n, 1), np.float32),
        tokens=tokens,
        text_ids=text_ids[..., None],
        text_weight=(text_ids >= 0).astype(np.float32)[..., None],
        captions=captions,
    )


def random(number):
    return np.random.default_rng((3, number))


def body(row, fmt=FORMAT):
    row = row.tolist()[fmt.bos_id is not None :]
    return row[: row.index(fmt.eos_id)]


def pairs(before, after):
    """(before, after) of the captions that are no padding."""
    for i in range(len(before.numbers)):
        for c in range(before.captions):
            if before.text_ids[i, c, 0] >= 0:
                yield before.tokens[i, c], after.tokens[i, c]


@pytest.mark.parametrize("mode", ["mask", "random", "delete"])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_frame_stays_whole_and_negatives_and_padding_as_they_are(mode, fmt, probability):
    before = rows(fmt=fmt)
    after = Transform(token_format=fmt, mode=mode, probability=probability, mask_id=9 if mode == "mask" else None)(
        before, random
    )
    np.testing.assert_array_equal(after.tokens[:, 2], before.tokens[:, 2])
    np.testing.assert_array_equal(after.tokens[::5, 1], before.tokens[::5, 1])
    assert after.tokens.dtype == np.int32 and after.text_ids is before.text_ids
    changed = 0
    for old, new in pairs(before, after):
        head = [] if fmt.bos_id is None else [fmt.bos_id]
        one, two = body(old, fmt), body(new, fmt)
        expected = [*head, *two, fmt.eos_id]
        assert new.tolist() == expected + [fmt.pad_id] * (L - len(expected))
        assert not {fmt.eos_id, fmt.pad_id, fmt.bos_id} & set(two)
        changed += one != two
        if mode == "delete":
            rest = iter(one)
            assert all(token in rest for token in two) and bool(two) == bool(one)
            assert probability < 1 or len(two) <= 1
        else:
            assert len(one) == len(two)
    assert (changed == 0) == (probability == 0)


def test_tokens_are_masked_with_the_probability_at_every_place():
    before = rows(1500, longest=2 * L)
    after = Transform(token_format=FORMAT, mode="mask", mask_id=9)(before, random)
    full = [(old, new) for old, new in pairs(before, after) if len(body(old)) == L - 2]
    assert len(full) > 1000
    old, new = (np.stack(x)[:, 1:-1] for x in zip(*full, strict=True))
    masked = (new != old).sum(0) / (old != 9).sum(0)
    assert abs(masked - 0.15).max() < 0.04 and (new[new != old] == 9).all()


def test_random_ids_are_uniform_over_the_vocabulary_without_the_frame():
    after = Transform(token_format=FORMAT, mode="random", probability=1.0)(before := rows(600), random)
    found = np.bincount([token for _, new in pairs(before, after) for token in body(new)], minlength=30)
    assert found[[0, 1, 4]].sum() == 0
    assert stats.chisquare(np.delete(found, [0, 1, 4])).pvalue > 0.001


def test_the_token_that_deletion_spares_is_any():
    before = rows(900, captions=1, negatives=0)
    before = before.replace(tokens=np.tile(np.array([1, 5, 6, 7, 4] + [0] * 15, np.int32), (900, 1, 1)))
    after = Transform(token_format=FORMAT, mode="delete", probability=1.0)(before, random)
    spared = np.bincount([body(new)[0] for _, new in pairs(before, after)], minlength=8)[5:]
    assert stats.chisquare(spared).pvalue > 0.001


def test_a_rows_draws_depend_on_its_number_alone():
    whole = rows()
    transform = Transform(token_format=FORMAT, probability=0.5)
    after = transform(whole, random)
    assert transform.partners(batch_size=50, group=1, host_rows=range(50)) == {}
    for part in (slice(0, 20), slice(20, 50)):
        cut = whole.replace(
            numbers=whole.numbers[part],
            partner=whole.partner[part],
            tokens=whole.tokens[part],
            text_ids=whole.text_ids[part],
        )
        np.testing.assert_array_equal(transform(cut, random).tokens, after.tokens[part])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "mask"}, "mask_id=None"),
        ({"mode": "delete", "mask_id": 3}, "mask_id=3: mode='delete'"),
        ({"mode": "mask", "mask_id": 4}, "mask_id=4"),
        ({"mode": "mask", "mask_id": 30}, "mask_id=30"),
        ({"mode": "hide"}, "mode='hide'"),
        ({"probability": 1.1}, r"probability=1\.1"),
        ({"mode": "random", "token_format": FORMAT._replace(vocab_size=3)}, "all 3 ids are special"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        configured(Transform, **{"token_format": FORMAT} | options)
