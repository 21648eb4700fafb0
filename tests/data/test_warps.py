"""Warps, quarter turns and pads of a sample: pixels as torchvision's, labels by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from visionkit.data import transforms as T
from visionkit.data.masks import Bitmap, Polygons, extent, moved, paint, scaling
from visionkit.data.sample import Sample
from visionkit.data.transforms.geometry import about_center, homography, turn
from visionkit.errors import ArgumentError
from visionkit.types import IGNORE

BILINEAR = F.InterpolationMode.BILINEAR


def polygon(*points):
    return Polygons(np.array(points, float), np.array([len(points)]))


def sample_of(*outlines, size=(100, 120), boxes=None):
    """Gray noise that changes slowly, and an object for each outline."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (3, 12, 14), np.uint8))
    count = len(outlines if boxes is None else boxes)
    return Sample(
        F.resize(coarse, list(size)),
        image_id=0,
        orig_size=size,
        boxes=np.array(boxes or [extent(o.corners()) for o in outlines], np.float32).reshape(-1, 4),
        labels=np.arange(count),
        iscrowd=np.zeros(count, bool),
        area=np.full(count, 7, np.float32),
        attributes=np.arange(count, dtype=np.float32)[:, None],
        segmentations=list(outlines) or None,
        semantic=torch.arange(size[0])[:, None].repeat(1, size[1]).byte(),
    )


def near(found, expected, valid):
    """Whether the images differ by at most 1 where valid (h, w) is true and so is its border."""
    outside = torch.nn.functional.max_pool2d(1 - valid[None].float(), 5, 1, 2)
    inner = outside[0] == 0
    assert inner.float().mean() > 0.3
    return (found.int() - expected.int()).abs()[:, inner].max() <= 1


SQUARE = ((40, 30), (80, 30), (80, 70), (40, 70))


@pytest.mark.parametrize("angle", [0.0, 12.5, -40.0, 90.0])
def test_pixels_of_affine_maps_are_torchvisions(angle):
    sample = sample_of()
    matrix = about_center(0.87 * turn(math.radians(angle)), sample.size, np.array([5.0, -7.0]))
    # torchvision turns clockwise for positive angles
    expected = F.affine(
        sample.image, -angle, [5.0, -7.0], 0.87, [0.0, 0.0], interpolation=BILINEAR, fill=[114]
    )
    valid = F.affine(
        torch.ones_like(sample.image[:1]), -angle, [5, -7], 0.87, [0, 0], interpolation=BILINEAR
    )
    found = sample.warp(matrix, sample.size)
    assert near(found.image, expected, valid[0] > 0)
    nearest = F.affine(sample.semantic[None], -angle, [5.0, -7.0], 0.87, [0.0, 0.0], fill=[IGNORE])
    differ = (found.semantic != nearest[0]).float().mean()
    assert differ < 0.01
    assert ((found.semantic == IGNORE) == (valid[0] == 0)).float().mean() > 0.98


def test_pixels_of_perspective_maps_are_torchvisions():
    sample = sample_of()
    old = [[0, 0], [120, 0], [120, 100], [0, 100]]
    new = [[10, 5], [112, 20], [100, 90], [3, 98]]
    found = sample.warp(homography(np.array(old, float), np.array(new, float)), sample.size)
    expected = F.perspective(sample.image, old, new, interpolation=BILINEAR, fill=[114])
    valid = F.perspective(torch.ones_like(sample.image[:1]), old, new, interpolation=BILINEAR)
    assert near(found.image, expected, valid[0] > 0)


def test_homography_moves_the_four_points():
    old = np.array([[0, 0], [10, 0], [10, 20], [0, 20]], float)
    new = np.array([[1, 2], [9, 1], [8, 15], [2, 18]], float)
    np.testing.assert_allclose(moved(old, homography(old, new)), new, atol=1e-9)
    np.testing.assert_allclose(homography(old, old + 3), scaling((1, 1), (3, 3)), atol=1e-12)


def test_boxes_in_a_turn_by_hand():
    """With an outline those of the turned square; without, those of the turned box: the same here.
    The box of a diamond is 41 % larger without its outline."""
    diamond = polygon((60, 30), (80, 50), (60, 70), (40, 50))
    matrix = about_center(turn(math.pi / 4), (100, 120), np.zeros(2))
    new = sample_of(polygon(*SQUARE), diamond).warp(matrix, (100, 120))
    reach = 20 * math.sqrt(2)
    np.testing.assert_allclose(new.boxes[0], [60 - reach, 50 - reach, 60 + reach, 50 + reach], 1e-6)
    side = reach / 2
    np.testing.assert_allclose(new.boxes[1], [60 - side, 50 - side, 60 + side, 50 + side], 1e-6)
    loose = sample_of(boxes=[[40, 30, 80, 70]]).warp(matrix, (100, 120))
    np.testing.assert_allclose(loose.boxes[0], new.boxes[0], 1e-6)
    assert new.target()["area"].tolist() == [7, 7]
    assert new.target()["attributes"].tolist() == [[0], [1]]


def test_bitmaps_turn_as_polygons_do():
    mask = paint([polygon(*SQUARE)], (100, 120))[0]
    for outlines in ([Bitmap.of(mask)], [Bitmap.of(mask).map(scaling((1, 1), (0, 0)))]):
        matrix = about_center(turn(0.3), (100, 120), np.array([4.0, 2.0]))
        one = sample_of(*outlines).warp(matrix, (100, 120)).target()
        other = sample_of(polygon(*SQUARE)).warp(matrix, (100, 120)).target()
        assert (one["boxes"] - other["boxes"]).abs().max() <= 1
        union, both = one["masks"] | other["masks"], one["masks"] & other["masks"]
        assert both.sum() / union.sum() > 0.97


def test_what_a_crop_cut_off_does_not_come_back():
    full = polygon((0, 0), (120, 0), (120, 100), (0, 100))
    bitmap = Bitmap.of(np.ones((100, 120), bool))
    beside = polygon((0, 0), (10, 0), (10, 100), (0, 100))
    part = sample_of(full, bitmap, beside).crop(30, 40, 40, 60)
    for new in (part.pad(10, 20, (100, 120)), part.warp(scaling((1, 1), (20, 10)), (100, 120))):
        target = new.target()
        assert target["labels"].tolist() == [0, 1]
        assert target["boxes"].tolist() == [[20, 10, 80, 50]] * 2
        expected = torch.zeros(100, 120, dtype=torch.bool)
        expected[10:50, 20:80] = True
        assert torch.equal(target["masks"], expected.expand(2, -1, -1))
        assert torch.equal(target["semantic"] != IGNORE, expected)
        assert (new.image[:, ~expected] == 114).all()
        assert torch.equal(new.image[:, 10:50, 20:80], part.image)
        assert torch.equal(new.semantic[10:50, 20:80], part.semantic)


def test_objects_out_of_view_or_below_a_pixel_are_dropped():
    thin = [10, 20, 10.5, 60]
    sample = sample_of(boxes=[[40, 30, 80, 70], [0, 0, 20, 20], thin])
    target = sample.warp(about_center(turn(0.7), (100, 120), np.array([60.0, 50])), (100, 120))
    assert target.target()["labels"].tolist() == [0, 1]
    assert sample.warp(scaling((1, 1), (-30, 0)), (100, 120)).target()["labels"].tolist() == [0]


def test_the_box_of_a_cut_outline_is_that_of_its_visible_part():
    corner = polygon((0, 0), (80, 0), (0, 80))
    target = sample_of(corner).warp(scaling((1, 1), (-60, -10)), (100, 120)).target()
    np.testing.assert_allclose(target["boxes"], [[0, 0, 10, 10]], atol=1e-4)
    unknown = Polygons(np.zeros((0, 2)), np.zeros(0, np.int64))
    sample = sample_of(unknown, boxes=[[0, 0, 80, 80]])
    target = sample.warp(scaling((1, 1), (-60, -10)), (100, 120)).target()
    assert target["boxes"].tolist() == [[0, 0, 20, 70]] and not target["masks"].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_clipped_polygons_paint_the_same_inside(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-60, 160, (rng.integers(3, 9), 2)).round(1)
    whole, size = polygon(*points), (70, 90)
    part = whole.clip(size)
    assert (part.points >= 0).all() and (part.points <= [90, 70]).all()
    before, after = paint([whole, part], size)
    # Only the rounding along edges may differ: all of it where the shape is a needle.
    assert (before != after).sum() <= 50 + 0.03 * before.sum()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_quarter_turns_are_exact(turns):
    rng = np.random.default_rng(3)
    mask = rng.random((100, 120)) < 0.3
    sample = sample_of(Bitmap.of(mask), boxes=[[10, 20, 50, 80]])
    new = sample.rot90(turns)
    assert torch.equal(new.image, torch.rot90(sample.image, turns, (1, 2)))
    assert torch.equal(new.semantic, torch.rot90(sample.semantic, turns, (0, 1)))
    assert (paint(new.segmentations, new.size)[0] == np.rot90(mask, turns)).all()
    box = np.zeros((100, 120), bool)
    box[20:80, 10:50] = True
    rows, columns = np.rot90(box, turns).nonzero()
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert new.boxes.tolist() == [expected]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 3)), "with an inverse"),
        (np.eye(2), "with an inverse"),
        (np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1.0]]), "to infinity"),
    ],
)
def test_matrices_without_an_image_are_refused(matrix, message):
    with pytest.raises(ArgumentError, match=message):
        sample_of().warp(matrix, (100, 120))


def test_a_matrix_counts_up_to_a_factor():
    sample = sample_of(polygon(*SQUARE))
    matrix = homography(
        np.array(SQUARE, float), np.array([[41, 32], [80, 33], [82, 71], [40, 70]], float)
    )
    one, other = (sample.warp(factor * matrix, (90, 90)) for factor in (1, -2))
    assert torch.equal(one.image, other.image)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)


def test_letterbox_by_hand():
    sample, rng = sample_of(polygon(*SQUARE)), np.random.default_rng(0)
    new = T.Letterbox(fill=9)(sample, rng, 60)
    assert new.size == (60, 60) and torch.equal(
        new.image[:, 5:55], F.resize(sample.image, [50, 60])
    )
    assert (new.image[:, [0, 4, 55, 59]] == 9).all() and (new.semantic[[4, 55]] == IGNORE).all()
    assert new.target()["boxes"].tolist() == [[20, 20, 40, 40]]
    assert T.Letterbox()(sample, rng, "40x90").size == (90, 40)
    assert T.Letterbox()(sample, rng, (50, 80)).size == (50, 80)
    assert T.Letterbox()(sample.rot90(1), rng, (50, 80)).size == (80, 50)
    tall = Sample(torch.zeros(3, 1000, 2, dtype=torch.uint8), 0, (1000, 2))
    assert T.Letterbox()(tall, rng, 96).size == (96, 96)


def test_quarter_turns_fit_into_every_network_size():
    sample = sample_of(polygon(*SQUARE))
    for size, expected in ((120, (120, 100)), ((100, 120), (120, 100)), ("120x100", (100, 120))):
        sizes = {T.Rotate90(p=1)(sample, np.random.default_rng(s), size).size for s in range(8)}
        assert sizes == {(100, 120), expected}
    small = sample.resize((50, 120))  # as ScaleJitter may leave it
    sizes = {T.Rotate90(p=1)(small, np.random.default_rng(s), "120x100").size for s in range(8)}
    assert sizes == {(50, 120), (100, 60)}
    larger = {T.Rotate90(p=1)(sample, np.random.default_rng(s), "60x50").size for s in range(8)}
    assert larger == {(100, 120), (120, 100)}  # before it is resized


def test_ranges_of_affine():
    """A point in the center shows the shift; a square around it angle and scale."""
    sample, rng = sample_of(polygon(*SQUARE)), np.random.default_rng(0)
    still = T.Affine(degrees=0, translate=0, scale=(1, 1), shear=0)(sample, rng, 120)
    assert torch.equal(still.image, sample.image) and (still.boxes == sample.boxes).all()
    angles, scales, shifts = [], [], []
    for _ in range(200):
        new = T.Affine(degrees=30, translate=0.1, scale=(0.5, 1.5), shear=0)(sample, rng, 120)
        points = new.segmentations[0].points
        edge = points[1] - points[0]
        angles.append(math.degrees(math.atan2(-edge[1], edge[0])))
        scales.append(np.hypot(*edge) / 40)
        shifts.append(points.mean(0) - [60, 50])
    assert -30 <= min(angles) < -25 and 25 < max(angles) <= 30
    assert 0.5 <= min(scales) < 0.55 and 1.4 < max(scales) <= 1.5
    reach = np.abs(shifts).max(0)
    assert (reach <= [12, 10]).all() and (reach > [11, 9]).all()
    sheared = T.Affine(degrees=0, translate=0, scale=(1, 1), shear=20)(sample, rng, 120)
    (right, _), (_, down) = np.diff(sheared.segmentations[0].points, axis=0)[:2]
    assert right == pytest.approx(40) and down == pytest.approx(40)
