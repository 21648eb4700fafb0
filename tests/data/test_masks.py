"""Outlines: painted as pycocotools does, exact under flips and crops, run lengths read right."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from support.run_lengths import run_lengths
from visionkit.data.checks.findings import Problems
from visionkit.data.coco.records import AnnotationReader
from visionkit.data.coco.segmentations import find_fault
from visionkit.data.masks import Bitmap, Polygons, paint, scaling


def polygons(*parts):
    arrays = [np.array(part, float).reshape(-1, 2) for part in parts]
    return Polygons(np.concatenate(arrays), np.cumsum([len(array) for array in arrays]))


def bitmap(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return Bitmap(rle["counts"], mask.shape)


def one(segmentation, size):
    return paint([segmentation], size)[0]


def reference(parts, size):
    rle = coco_mask.merge(coco_mask.frPyObjects([list(map(float, part)) for part in parts], *size))
    return coco_mask.decode(rle).astype(bool)


def table_of(*segmentations):
    reader = AnnotationReader(Problems(""))
    reader.add([{"segmentation": segmentation} for segmentation in segmentations])
    assert not reader.mask_faults
    return reader.table(np.zeros(0, np.int64)).masks


coordinate = st.integers(-300, 1200).map(lambda tenths: tenths / 10)  # ties of the rounding too
polygon = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8).map(
    lambda points: [value for point in points for value in point]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(polygon, min_size=1, max_size=3), st.integers(1, 90), st.integers(1, 90))
def test_polygons_are_painted_as_by_pycocotools(parts, height, width):
    found = one(polygons(*parts), (height, width))
    assert (found == reference(parts, (height, width))).all()


def test_nothing_is_an_empty_mask():
    none = Polygons(np.zeros((0, 2)), np.zeros(0, int))
    assert not one(none, (4, 5)).any()
    assert not one(none.map(scaling(np.array([2, 2]), np.array([1, 1]))), (4, 5)).any()
    assert paint([], (4, 5)).shape == (0, 4, 5)


def test_outlines_beyond_the_image_paint_nothing():
    square = polygons([10, 10, 20, 10, 20, 20, 10, 20])
    for offset in ([100, 0], [0, 100], [-100, 0], [0, -100]):
        assert not one(square.map(scaling(np.ones(2), np.array(offset))), (30, 30)).any()


def test_flips_and_crops_of_bitmaps_are_exact():
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    original = bitmap(mask)
    flipped = original.map(scaling(np.array([-1, 1]), np.array([9, 0])))
    assert (one(flipped, (7, 9)) == mask[:, ::-1]).all()
    both = flipped.map(scaling(np.array([1, -1]), np.array([0, 7])))
    assert (one(both, (7, 9)) == mask[::-1, ::-1]).all()
    cropped = both.map(scaling(np.ones(2), np.array([-2, -3])))
    assert (one(cropped, (4, 5)) == mask[::-1, ::-1][3:7, 2:7]).all()
    doubled = cropped.map(scaling(np.array([2, 2]), np.zeros(2)))
    assert (one(doubled, (8, 10)) == mask[::-1, ::-1][3:7, 2:7].repeat(2, 0).repeat(2, 1)).all()


def test_a_shrunk_bitmap_takes_the_pixel_under_each_center():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    third = bitmap(mask).map(scaling(np.array([1 / 3, 1 / 3]), np.zeros(2)))
    assert one(third, (3, 3)).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_a_bitmap_smaller_than_the_canvas_leaves_the_rest_empty():
    mask = np.ones((3, 3), bool)
    found = one(bitmap(mask).map(scaling(np.ones(2), np.array([2, 1]))), (6, 6))
    assert found[1:4, 2:5].all() and found.sum() == 9


def test_a_table_gives_back_what_was_put_in():
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:9] = True
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    compressed = {"size": [8, 10], "counts": rle["counts"].decode()}
    uncompressed = {"size": [8, 10], "counts": run_lengths(rle["counts"]).tolist()}
    two = [[0, 0, 4, 0, 4, 4], [5, 5, 9, 5, 9, 7, 5, 7]]
    table = table_of(two, compressed, None, uncompressed, [], [two[1]])
    assert len(table) == 6
    both, second = reference(two, (8, 10)), reference(two[1:], (8, 10))
    expected = [both, mask, 0 * mask, mask, 0 * mask, second]
    painted = paint([table[i] for i in range(6)], (8, 10))
    for found, wanted in zip(painted, expected, strict=True):
        assert (found == wanted).all()
    assert table.is_empty().tolist() == [False, False, True, False, True, False]
    assert [table.area(i, (8, 10)) for i in range(6)] == expected_areas(expected)
    without = table.without(np.array([0, 1]))
    assert without.is_empty().tolist() == [True, True, True, False, True, False]
    assert (one(without[5], (8, 10)) == second).all() and not without[1].known


def expected_areas(masks):
    return [mask.sum() for mask in masks]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "has 4 numbers"),
        ([[1, 1, 5, 5, 3, 3, 2]], "has 7 numbers"),
        ([[[]]], "has 1 numbers"),
        ([1, 1, 5, 5, 3, 3], "list of polygons"),
        ("polygon", "list of polygons"),
        ([[1, 1, "5", 5, 3, 3]], "where a number must be"),
        ([[1, 1, None, 5, 3, 3]], "where a number must be"),
        ([[10**400, 1, 1, 5, 3, 3]], "where a number must be"),
        ({"size": [4, 5, 1], "counts": [20]}, r"size is \[4, 5, 1\]"),
        ({"size": [8, 10], "counts": [20, 30]}, "add up to 50"),
        ({"size": [8, 10], "counts": [100, -20]}, "must be from 0"),
        ({"size": [8, 10], "counts": [40.0, 40]}, "list of integers"),
        ({"size": [8, 10], "counts": []}, "add up to 0"),
        ({"size": [8, 10], "counts": ""}, "not a compressed"),
        ({"size": [8, 10], "counts": "04"}, "add up to 4"),
        ({"size": [8, 10], "counts": "héé"}, "not a compressed"),
        ({"size": [8, 10]}, "counts must be"),
        ({"counts": [80]}, "size is None"),
    ],
)
def test_malformed_segmentations(segmentation, message):
    assert re.search(message, find_fault(segmentation))
    reader = AnnotationReader(Problems(""))
    reader.add([{"segmentation": found} for found in ([[1, 1, 5, 5, 3, 3]], segmentation)])
    assert reader.mask_faults == [(1, find_fault(segmentation))]
    assert reader.table(np.zeros(0, np.int64)).masks.is_empty().tolist() == [False, True]


@pytest.mark.parametrize("segmentation", [None, [], {}, [[1, 2, 3, 4, 5, 6.5]]])
def test_sound_segmentations(segmentation):
    assert find_fault(segmentation) == ""
    assert len(table_of(segmentation)) == 1
