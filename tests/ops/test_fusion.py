"""Weighted boxes fusion of the objects of several views."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou

from visionkit.ops.fusion import Objects, fused, overlap, weighted_boxes
from visionkit.ops.merging import merge_objects
from visionkit.ops.views import View

SIZE = (40, 60)
WHOLE = View(SIZE, (0, 0, 60, 40))
MIRRORED = WHOLE._replace(flip=True)


def naive(boxes, scores, of, views, iou):
    """The loops of the paper, section 3, one number at a time; one box of each view."""
    clusters, members = [], []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        best, highest = None, iou
        for place, (x1, y1, x2, y2) in enumerate(clusters):
            if of[row] in {of[one] for one in members[place]}:
                continue
            a1, b1, a2, b2 = boxes[row]
            shared = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            if shared / union > highest:
                best, highest = place, shared / union
        if best is None:
            clusters.append(tuple(boxes[row]))
            members.append([row])
            continue
        members[best].append(row)
        total = sum(scores[one] for one in members[best])
        clusters[best] = tuple(
            sum(scores[one] * boxes[one][side] for one in members[best]) / total
            for side in range(4)
        )
    confidence = [
        sum(scores[one] for one in own) / len(own) * min(len(own), views) / views for own in members
    ]
    return clusters, confidence, members


@pytest.mark.parametrize("seed", range(5))
def test_boxes_equal_a_naive_reference(seed):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(20, 80, (12, 2))[rng.integers(0, 12, 60)] + rng.normal(0, 2, (60, 2))
    sides = rng.uniform(8, 25, (60, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1)
    scores, of = rng.uniform(0.01, 1, 60), rng.integers(0, 4, 60)
    found, found_scores, groups = weighted_boxes(boxes, scores, of, 4, iou=0.4)
    expected, expected_scores, members = naive(boxes.tolist(), scores.tolist(), of, 4, 0.4)
    assert [group.tolist() for group in groups] == members
    assert 1 < max(map(len, members)) <= 4
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found_scores, expected_scores)


def test_a_worked_example():
    """Two views of one object and a box that one view alone has: weights 0.8 and 0.4."""
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 13, 10], [30, 30, 40, 40]])
    found, scores, groups = weighted_boxes(boxes, np.array([0.8, 0.4, 0.6]), np.array([0, 1, 0]), 2)
    np.testing.assert_allclose(found, [[0, 0, (0.8 * 10 + 0.4 * 13) / 1.2, 10], [30, 30, 40, 40]])
    np.testing.assert_allclose(scores, [0.6, 0.3])  # mean; and half, as one of two views saw it
    assert [group.tolist() for group in groups] == [[0, 1], [2]]


def test_boxes_of_one_view_stay_apart():
    """And do not lower the score of the one that another view confirms."""
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 11, 10]])
    found, scores, groups = weighted_boxes(boxes, np.array([0.9, 0.7, 0.1]), np.array([0, 1, 0]), 2)
    assert [group.tolist() for group in groups] == [[0, 1], [2]]
    np.testing.assert_allclose(scores, [0.8, 0.05])
    np.testing.assert_allclose(found, [[0, 0, 10, 10], [1, 0, 11, 10]])


def test_nothing_found():
    none = np.zeros(0, int)
    boxes, scores, groups = weighted_boxes(np.zeros((0, 4)), np.zeros(0), none, 2)
    assert boxes.shape == (0, 4) and scores.shape == (0,) and groups == []


def test_scores_of_zero_and_boxes_without_area_do_no_harm():
    boxes, scores, _ = weighted_boxes(np.array([[1.0, 1, 1, 1]] * 2), np.zeros(2), np.arange(2), 2)
    assert np.isfinite(boxes).all() and (scores == 0).all()


def test_overlap_is_that_of_torchvision():
    boxes = np.random.default_rng(0).uniform(0, 50, (20, 2, 2))
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], 1)
    expected = box_iou(*[torch.as_tensor(boxes)] * 2).numpy()
    np.testing.assert_allclose(overlap(boxes[:, None], boxes), expected)


def rle(left, top, right, bottom):
    pixels = np.zeros(SIZE, np.uint8, order="F")
    pixels[top:bottom, left:right] = 1
    return coco_mask.encode(pixels)


def found(*boxes, scores, labels=None, **others):
    labels = [0] * len(boxes) if labels is None else labels
    columns = {"scores": np.array(scores, np.float32), "labels": np.array(labels)}
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), **columns, **others}


def test_a_mirrored_view_finds_the_same_object():
    """10..20 of 60 pixels is 40..50 mirrored."""
    one = found([10, 5, 20, 15], scores=[0.9])
    two = found([40, 5, 50, 15], scores=[0.5])
    merged = merge_objects([one, two], [WHOLE, MIRRORED])
    assert merged["boxes"].tolist() == [[10, 5, 20, 15]]
    assert merged["scores"].tolist() == pytest.approx([0.7])


def test_objects_of_other_classes_are_not_fused():
    one, two = (found([10, 5, 20, 15], scores=[0.9], labels=[k]) for k in (0, 1))
    merged = merge_objects([one, two], [WHOLE, WHOLE._replace(scale=1.2)])
    assert merged["labels"].tolist() == [0, 1] and len(merged["boxes"]) == 2
    assert merged["scores"].tolist() == pytest.approx([0.45, 0.45])


def test_masks_are_the_mean_of_those_fused_weighted_by_score():
    """Where two of three scores agree, the pixel belongs to the object: 0.5 + 0.4 > 0.3."""
    views = [WHOLE, MIRRORED, WHOLE._replace(scale=1.2)]
    found_in = [
        found([10, 5, 22, 15], scores=[0.5], masks=[rle(10, 5, 22, 15)]),
        found([39, 5, 50, 15], scores=[0.4], masks=[rle(39, 5, 50, 15)]),  # 10..21
        found([10, 5, 20, 15], scores=[0.3], masks=[rle(10, 5, 20, 15)]),
    ]
    merged = merge_objects(found_in, views)
    (mask,) = merged["masks"]
    expected = rle(10, 5, 21, 15)  # at 21 the first alone, 0.5 of 1.2
    assert np.array_equal(coco_mask.decode(mask), coco_mask.decode(expected))


def test_masks_without_a_common_pixel_leave_that_of_the_best():
    masks = [rle(10, 5, 14, 15), rle(15, 5, 20, 15), rle(14, 5, 15, 15)]
    parts = [
        Objects(np.array([[10.0, 5, 20, 15]]), np.array([s]), np.array([0]), [mask], None)
        for s, mask in zip((0.3, 0.4, 0.2), masks, strict=True)
    ]
    assert fused(parts).masks == [masks[1]]


def test_attributes_are_means_of_those_fused():
    one = found([10, 5, 20, 15], scores=[0.9], attributes=np.array([[0.2, 1.0]]))
    two = found([10, 5, 20, 15], scores=[0.1], attributes=np.array([[0.4, 0.0]]))
    merged = merge_objects([one, two], [WHOLE, WHOLE._replace(scale=0.5)])
    np.testing.assert_allclose(merged["attributes"], [[0.3, 0.5]])


def test_no_view_finds_anything():
    none = found(scores=[], masks=[], attributes=np.zeros((0, 3)))
    merged = merge_objects([none, none], [WHOLE, MIRRORED])
    assert merged["boxes"].shape == (0, 4) and merged["masks"] == []
    assert merged["attributes"].shape == (0, 3) and merged["labels"].dtype == np.int64
