"""Pixels show what the graph says: shapes against polygons, colors, order, borders, sizes."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.scenes.render import MODALITIES, PALETTE, render
from mmjax.data.scenes.world import COLORS, SHAPES, WORLDS, Scene, Thing, draw_pair
from mmjax.data.sources.scenes import Source
from support.scene_semantics import Silence


def quiet(scene, size=64, modalities=MODALITIES):
    return render(scene, image_size=size, noise=dict.fromkeys(modalities, Silence()))


def one(shape, *, color="red", texture=0, x=32.0, y=32.0, radius=15.0):
    thing = Thing(SHAPES.index(shape), COLORS.index(color), texture, 1, x, y, radius, 0.2, 1.0)
    return Scene((thing,), None, False, (0.0, 0.0, 0.0))


def corners(angles, radii):
    angles = np.deg2rad(angles)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], -1)


OUTLINES = {  # in units of the radius, y down
    "square": corners(np.arange(45, 360, 90), 0.82 * np.sqrt(2)),
    "triangle": np.array([(0, -0.95), (1, 0.75), (-1, 0.75)]),
    "cross": np.array(
        [
            (a * sx, b * sy)
            for sx, sy, flip in ((1, -1, 0), (1, 1, 1), (-1, 1, 0), (-1, -1, 1))
            for a, b in (((0.3, 0.95), (0.3, 0.3), (0.95, 0.3))[:: -1 if flip else 1])
        ]
    ),
    "star": corners(np.arange(0, 360, 36), np.tile([1, 0.42], 5)),
    "diamond": corners(np.arange(0, 360, 90), 1.0),
    "hexagon": corners(np.arange(30, 360, 60), 0.86 / np.cos(np.pi / 6)),
}


def inside(points, outline):
    """Even-odd rule: how many edges a ray to the right crosses."""
    x, y = points[..., 0, None], points[..., 1, None]
    (ax, ay), (bx, by) = outline.T, np.roll(outline, -1, 0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        at = ax + (y - ay) / (by - ay) * (bx - ax)
    return (((ay > y) != (by > y)) & (x < at)).sum(-1) % 2 == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_the_share_of_the_pixel_inside_the_outline(shape):
    size, fine = 64, 8
    image = quiet(one(shape), size)["image"].astype(float)
    coverage = (image[..., 0] - 40) / (220 - 40)
    grid = (np.arange(size * fine) + 0.5) / fine
    points = (np.stack(np.meshgrid(grid, grid), -1) - 32.0) / 15.0
    distance = np.hypot(points[..., 0], points[..., 1])
    if shape == "ring":
        truth = (distance < 0.97) & (distance > 0.53)
    elif shape == "circle":
        truth = distance < 0.95
    else:
        truth = inside(points, OUTLINES[shape])
    truth = truth.reshape(size, fine, size, fine).mean((1, 3))
    assert abs(coverage - truth).mean() < 0.003 and abs(coverage - truth).max() < 0.5
    assert abs(coverage.sum() / truth.sum() - 1) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", [0, 1, 2])
def test_sizes_agree(shape, texture):
    scene = one(shape, texture=texture, x=25.3, y=37.7)
    fine, coarse = (quiet(scene, s)["image"].astype(float) for s in (256, 32))
    assert abs(fine.reshape(32, 8, 32, 8, 3).mean((1, 3)) - coarse).mean() < 1.0


def test_textures_darken_half_the_object_or_less():
    plain, striped, dotted = (quiet(one("square", texture=t), 128)["image"][..., 0].astype(float) for t in range(3))
    body = plain > 200
    assert abs((plain / 220)[body].mean() - 1) < 0.01
    assert abs((striped / 220)[body].mean() - (1 - 0.45 / 2)) < 0.02
    assert abs((dotted / 220)[body].mean() - (1 - 0.45 * np.pi * 0.35**2)) < 0.02
    assert (striped == dotted)[body].mean() < 0.9


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_color_can_be_told_at_32_pixels(color, shape):
    """With noise, shade and texture: the object's mean pixel points to its own palette entry, whatever its size."""
    source = Source("zeroshot", world="full", image_size=32)
    label = COLORS.index(color) * len(SHAPES) + SHAPES.index(shape)
    for i in range(8 * label, 8 * label + 8):
        thing, scene = source.scene(i).things[0], source.scene(i)
        image = source[i]["image"].astype(float)
        background = np.median(image.reshape(-1, 3), 0)
        difference = abs(image - background).sum(-1)
        body = image[difference > 0.7 * difference.max()]
        rows, columns = np.nonzero(difference > 0.5 * difference.max())
        assert abs(rows.mean() + 0.5 - thing.y / 2) < 2.5 and abs(columns.mean() + 0.5 - thing.x / 2) < 2.5
        assert thing.shape == SHAPES.index(shape) and scene.light == (background.mean() > 128)
        mean = np.median(body, 0)
        # Brightness varies with shade and texture: compare directions.
        cosine = PALETTE @ mean / np.linalg.norm(PALETTE, axis=1)
        assert COLORS[int(np.argmax(cosine))] == color


@pytest.mark.parametrize("relation", ["front", "behind"])
def test_the_nearer_thing_hides_the_other(relation):
    world, checked = WORLDS["standard"], 0
    rng = np.random.default_rng(0)
    while checked < 50:
        scene = draw_pair(world, rng.random(21).tolist(), "any")
        if scene.relation != (4 if relation == "front" else 5):
            continue
        a, b = (dataclasses.replace(t, shape=0, texture=0, shade=1.0) for t in scene.things)
        near, far = (a, b) if relation == "front" else (b, a)
        images = quiet(dataclasses.replace(scene, things=(a, b)))
        # A point of the overlap: on the line of centres, in the middle of both.
        distance = np.hypot(a.x - b.x, a.y - b.y)
        at = (near.radius + distance - far.radius) / 2 / distance
        x, y = near.x + at * (far.x - near.x), near.y + at * (far.y - near.y)
        np.testing.assert_allclose(images["image"][int(y), int(x)], PALETTE[near.color], atol=1)
        np.testing.assert_allclose(images["depth"][int(y), int(x)], 255 * (1 - near.z), atol=1)
        # And enough of the far one remains to be seen.
        alone = (quiet(dataclasses.replace(scene, things=(far,)))["depth"][..., 0] == round(255 * (1 - far.z))).sum()
        assert (images["depth"][..., 0] == round(255 * (1 - far.z))).sum() > 0.3 * alone
        checked += 1


def test_nothing_touches_the_border_and_modalities_share_their_edges():
    source = Source("train", world="full")
    for i in range(200):
        images = quiet(source.scene(i), 64)
        image = images["image"].astype(int)
        body = abs(image - image[0, 0]).sum(-1) > 30
        assert not (body[0].any() or body[-1].any() or body[:, 0].any() or body[:, -1].any())
        if len(source.scene(i).things) == 1:
            depth = images["depth"][..., 0].astype(int)
            near = depth - depth[:, :1] > 20
            # The same outline up to soft edge pixels.
            assert (near != body).mean() < 0.05
        for m in ("depth", "thermal"):
            assert (images[m] == images[m][..., :1]).all()


def test_temperature_is_a_function_of_color_and_shape():
    for c, color in enumerate(COLORS):
        for s, shape in enumerate(SHAPES):
            thermal = quiet(one(shape, color=color, radius=16.0), 256)["thermal"][..., 0].astype(float)
            centre = thermal[128, 128 + (int(0.75 * 64) if shape == "ring" else 0)]
            assert abs(centre - 255 * ((8 * c + s) * 37 % 11) / 10) < 2
            assert abs(thermal[5, 5] - 0.25 * 255) < 1


def test_noise_has_the_stated_spread():
    source = Source("train", image_size=64, modalities=MODALITIES)
    for modality, sigma in (("image", 4), ("depth", 3), ("thermal", 6)):
        spreads = []
        for i in range(40):
            clean = quiet(source.scene(i))[modality].astype(float)
            usable = (clean > 25) & (clean < 230)  # away from clipping
            spreads.append((source[i][modality].astype(float) - clean)[usable].std())
        assert abs(np.mean(spreads) / sigma - 1) < 0.06
