"""Objects of an image and of its tiles, joined at the seams."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from visionkit.ops import seams
from visionkit.ops.merging import merge_objects
from visionkit.ops.views import View, Views

SIZE = (100, 180)
# The whole image, and two tiles of 100 pixels that have 20 in common: 0..100 and 80..180.
VIEWS = Views.of(tiles=100, overlap=0.2).plan(SIZE)


def seen(view, box):
    """The box as a perfect detector sees it in a view; None if it sees nothing of it."""
    left, top, right, bottom = view.window
    x1, y1 = max(box[0], left), max(box[1], top)
    x2, y2 = min(box[2], right), min(box[3], bottom)
    return [x1 - left, y1 - top, x2 - left, y2 - top] if x1 < x2 and y1 < y2 else None


def prediction(view, boxes, scores):
    pairs = [(seen(view, b), s) for b, s in zip(boxes, scores, strict=True)]
    pairs = [(box, score) for box, score in pairs if box is not None]
    height, width = view.size
    masks = []
    for (x1, y1, x2, y2), _ in pairs:
        pixels = np.zeros((height, width), np.uint8, order="F")
        pixels[y1:y2, x1:x2] = 1
        masks.append(coco_mask.encode(pixels))
    return {
        "boxes": np.array([box for box, _ in pairs], np.float32).reshape(-1, 4),
        "scores": np.array([score for _, score in pairs], np.float32),
        "labels": np.zeros(len(pairs), np.int64),
        "masks": masks,
    }


def merged(objects, views=VIEWS, whole=True):
    """What a perfect detector finds, with the whole image or, where it misses everything there, by
    the tiles alone."""
    rng = np.random.default_rng(0)
    found = [
        prediction(
            view,
            objects if whole or view.is_tile else [],
            rng.uniform(0.5, 1, 99)[: len(objects) if whole or view.is_tile else 0],
        )
        for view in views
    ]
    result = merge_objects(found, views)
    for box, mask in zip(result["boxes"], result["masks"], strict=True):
        x, y, w, h = coco_mask.toBbox(mask).tolist()
        assert mask["size"] == list(views[0].image) and [x, y, x + w, y + h] == box.tolist()
    return sorted(result["boxes"].tolist())


def test_two_tiles_and_the_image():
    assert [view.window for view in VIEWS] == [
        (0, 0, 180, 100),
        (0, 0, 100, 100),
        (80, 0, 180, 100),
    ]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "box",
    [
        [10, 10, 30, 30],  # in one tile
        [82, 10, 98, 30],  # in both, uncut
        [70, 10, 95, 30],  # cut by the second tile alone
        [85, 10, 120, 30],  # cut by the first alone
        [60, 10, 120, 30],  # cut by both: larger than what they have in common
        [5, 5, 175, 95],  # nearly the image
        [80, 10, 100, 30],  # exactly what they have in common
    ],
)
def test_an_object_is_found_once(box, whole):
    assert merged([box], whole=whole) == [box]


def test_neighbors_stay_apart():
    boxes = [[70, 10, 95, 30], [70, 40, 95, 60], [96, 10, 120, 30]]
    assert merged(boxes) == sorted(boxes)


def test_an_object_over_four_tiles_is_one():
    views = Views.of(tiles=100, overlap=0.2).plan((180, 180))
    assert len(views) == 5
    assert merged([[40, 30, 150, 160]], views, whole=False) == [[40, 30, 150, 160]]


def test_an_object_over_three_tiles_is_one_in_any_order_of_scores():
    views = Views.of(tiles=100, overlap=0.2).plan((100, 260))
    for scores in ([0.9, 0.5, 0.7], [0.5, 0.9, 0.7], [0.9, 0.7, 0.5]):
        tiles = [
            prediction(view, [[30, 20, 230, 60]], [score])
            for view, score in zip(views[1:], scores, strict=True)
        ]
        found = merge_objects([prediction(views[0], [], []), *tiles], views)
        assert found["boxes"].tolist() == [[30, 20, 230, 60]]
        assert found["scores"].tolist() == pytest.approx([0.9])


def test_without_an_overlap_the_whole_image_tells_that_pieces_are_one():
    views = Views.of(tiles=100, overlap=0).plan((100, 200))
    assert merged([[60, 10, 150, 30]], views) == [[60, 10, 150, 30]]


def test_of_two_windows_the_higher_score_counts():
    whole = prediction(VIEWS[0], [[10, 10, 30, 31]], [0.4])
    tile = prediction(VIEWS[1], [[10, 10, 30, 30]], [0.8])
    found = merge_objects([whole, tile, prediction(VIEWS[2], [], [])], VIEWS)
    assert found["boxes"].tolist() == [[10, 10, 30, 30]]
    assert found["scores"].tolist() == pytest.approx([0.8])


def test_objects_of_one_window_are_not_compared():
    """Its head has already decided that they are two."""
    boxes = [[10, 10, 30, 30], [11, 10, 31, 30]]
    alone = [
        prediction(view, boxes if view == VIEWS[1] else [], [0.9, 0.8] if view == VIEWS[1] else [])
        for view in VIEWS
    ]
    assert len(merge_objects(alone, VIEWS)["boxes"]) == 2


def test_classes_are_not_joined():
    found = [prediction(view, [[60, 10, 120, 30]], [0.9]) for view in VIEWS]
    found[2]["labels"] += 1
    assert merge_objects(found, VIEWS)["labels"].tolist() == [0, 1]


def test_views_of_a_window_are_fused_before_windows_are_joined():
    """Mirrored views too: two of each window, so that scores are means over two."""
    views = Views.of("flip", 100).plan(SIZE)
    box = [60, 10, 120, 30]
    found = []
    for view in views:
        one = prediction(view, [box], [0.8])
        if view.flip:
            x1, y1, x2, y2 = one["boxes"][0].tolist()
            width = view.size[1]
            one["boxes"] = np.array([[width - x2, y1, width - x1, y2]], np.float32)
            pixels = coco_mask.decode(one["masks"][0])[:, ::-1]
            one["masks"] = [coco_mask.encode(np.asfortranarray(pixels))]
        found.append(one)
    result = merge_objects(found, views)
    assert result["boxes"].tolist() == [box] and result["scores"].tolist() == pytest.approx([0.8])
    assert coco_mask.toBbox(result["masks"][0]).tolist() == [60, 10, 60, 20]


def test_attributes_follow_the_objects():
    found = [prediction(view, [[82, 10, 98, 30]], [0.9]) for view in VIEWS]
    for one, value in zip(found, (0.0, 0.3, 0.6), strict=True):
        one["attributes"] = np.array([[value]])
    np.testing.assert_allclose(merge_objects(found, VIEWS)["attributes"], [[0.3]])


@pytest.mark.parametrize("seed", range(4))
def test_random_objects_are_found_once(seed):
    """Of a perfect detector on a large image: every object, and nothing else."""
    rng = np.random.default_rng(seed)
    views = Views.of(tiles=128, overlap=0.25).plan((500, 700))
    boxes: list[list[int]] = []
    while len(boxes) < 60:
        x, y = rng.integers(0, 640), rng.integers(0, 440)
        w, h = rng.integers(4, 60, 2)
        box = [int(x), int(y), int(min(x + w, 700)), int(min(y + h, 500))]
        apart = all(
            box[0] >= b[2] + 2 or box[2] + 2 <= b[0] or box[1] >= b[3] + 2 or box[3] + 2 <= b[1]
            for b in boxes
        )
        boxes += [box] if apart else []
    scores = rng.uniform(0.1, 1, 60)
    found = [
        prediction(view, boxes if view.is_tile else [], scores if view.is_tile else [])
        for view in views
    ]
    assert sorted(merge_objects(found, views)["boxes"].tolist()) == sorted(boxes)


def test_a_view_alone_is_as_it_was():
    one = prediction(VIEWS[0], [[10, 10, 30, 30], [50, 10, 90, 30]], [0.5, 0.9])
    found = merge_objects([one], VIEWS[:1])
    assert found["boxes"].tolist() == [[50, 10, 90, 30], [10, 10, 30, 30]]
    assert View(SIZE, (0, 0, 180, 100)) == VIEWS[0]


@pytest.mark.parametrize("at_a_time", [1, 7, 2**20])
def test_pairs_that_overlap_are_those_of_a_loop_over_all(at_a_time, monkeypatch):
    monkeypatch.setattr(seams, "PAIRS", at_a_time)
    rng = np.random.default_rng(0)
    low = rng.integers(0, 40, (60, 2))  # with equal sides, boxes that touch, and empty ones
    boxes = np.concatenate([low, low + rng.integers(0, 12, (60, 2))], 1).astype(np.float64)
    expected = {
        (i, j)
        for i in range(60)
        for j in range(i)
        if (np.minimum(boxes[i, 2:], boxes[j, 2:]) > np.maximum(boxes[i, :2], boxes[j, :2])).all()
    }
    found = [
        (max(pair), min(pair))
        for first, second in seams._overlapping(boxes)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
        if (boxes[[*pair], 2:].min(0) > boxes[[*pair], :2].max(0)).all()  # empty ones do not
    ]
    assert len(expected) > 50 and len(found) == len(set(found)) and set(found) == expected
    assert not [*seams._overlapping(np.zeros((0, 4)))]
