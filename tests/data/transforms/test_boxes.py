import itertools

import numpy as np
import pytest
from scipy import stats

from mmjax.data.transforms.common.boxes import derangement, random_box


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_derangement_is_as_likely(count):
    g = np.random.default_rng(0)
    known = [p for p in itertools.permutations(range(count)) if all(i != x for i, x in enumerate(p))]
    seen = [tuple(derangement(count, g).tolist()) for _ in range(2000)]
    assert set(seen) == set(known)
    if len(known) > 1:
        assert stats.chisquare([seen.count(p) for p in known]).pvalue > 0.001


def test_boxes_lie_inside_and_have_the_mean_area_of_the_law():
    g = np.random.default_rng(1)
    area = []
    for _ in range(20_000):
        box = random_box(64, 64, alpha=1.0, random=g)
        assert 0 <= box.top <= box.bottom <= 64 and 0 <= box.left <= box.right <= 64
        area.append((box.bottom - box.top) * (box.right - box.left) / 64**2)
    assert abs(np.mean(area) - 0.319) < 0.006
    assert np.min(area) == 0 and np.max(area) > 0.9


def test_uncut_boxes_keep_the_pictures_proportions_and_the_centre_is_uniform():
    g = np.random.default_rng(2)
    boxes = [random_box(400, 100, alpha=1.0, random=g) for _ in range(4000)]
    inner = [b for b in boxes if b.top > 0 and b.bottom < 400 and b.left > 0 and b.right < 100]
    assert len(inner) > 300
    for b in inner:
        assert abs((b.bottom - b.top) - 4 * (b.right - b.left)) <= 10
    small = [(b.left + b.right) / 2 for b in boxes if 4 <= b.right - b.left < 16]
    assert stats.kstest(small, stats.uniform(0, 100).cdf).pvalue > 0.001


def test_alpha_shapes_the_share():
    g = np.random.default_rng(3)
    spread = [
        np.std([b.bottom - b.top for b in (random_box(64, 64, alpha=a, random=g) for _ in range(1000))])
        for a in (0.2, 1.0, 20.0)
    ]
    assert spread[0] > spread[1] > spread[2]
