"""The parts that two-stage heads are made of: anchors, matching and sampling, masks."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from visionkit.errors import ConfigError
from visionkit.models.heads.dense import AnchorGenerator
from visionkit.models.heads.matching import (
    BACKGROUND,
    IGNORED,
    GroundTruth,
    Matcher,
    Sampler,
    ground_truth_of,
)
from visionkit.models.heads.rcnn.roi_heads import (
    best_scores,
    mask_targets,
)
from visionkit.types import Level

LEVELS = {"fine": Level(8, 8), "coarse": Level(8, 16)}


def objects(boxes, crowds=()):
    boxes, crowds = torch.tensor(boxes).view(-1, 4), torch.tensor(crowds).view(-1, 4)
    return GroundTruth(boxes, torch.zeros(len(boxes), dtype=torch.int64), crowds, None)


# --- anchors ---


def test_anchors_by_hand():
    anchors = AnchorGenerator(LEVELS, None, [0.25, 1.0])
    features = {"fine": torch.zeros(1, 8, 2, 3), "coarse": torch.zeros(1, 8, 1, 2)}
    result, per_level, image_size, weights = anchors(features)
    assert weights == (1, 1, 1, 1)
    assert per_level == [2 * 6, 2 * 2] and image_size == (16, 24)
    assert result.shape == (2 * (6 + 2), 4)
    assert result[0].tolist() == [-64, -16, 64, 16]  # size 8 * 8, height / width = 1/4
    assert result[1].tolist() == [-32, -32, 32, 32]
    assert result[3].tolist() == [8 - 32, -32, 8 + 32, 32]  # next column
    assert result[7].tolist() == [-32, 8 - 32, 32, 8 + 32]  # next row
    assert result[13].tolist() == [-64, -64, 64, 64]  # size 8 * 16
    assert result[15].tolist() == [12 - 64, -64, 12 + 64, 64]  # 24 pixels in 2 cells


def test_anchors_are_not_part_of_a_checkpoint():
    assert not AnchorGenerator(LEVELS, None, [1.0]).state_dict()


@pytest.mark.parametrize("sizes", [[[8]], [[8], [8, 16]], [[], []]])
def test_anchor_sizes_must_fit_the_levels(sizes):
    with pytest.raises(ConfigError, match="anchor_sizes"):
        AnchorGenerator(LEVELS, sizes, [1.0])


# --- matching and sampling ---


def match_naively(matcher, boxes, objects):
    iou = box_iou(boxes, objects.boxes)
    matched = []
    for row in iou:
        best = row.max().item()
        known = best >= matcher.fg_iou
        if matcher.best_for_each:
            known |= any(0 < row[m] == iou[:, m].max() for m in range(len(row)))
        otherwise = IGNORED if best >= matcher.bg_iou else BACKGROUND
        matched.append(int(row.argmax()) if known else otherwise)
    return matched


@pytest.mark.parametrize("best_for_each", [True, False])
def test_matching_equals_a_naive_loop(best_for_each):
    matcher = Matcher(0.6, 0.3, best_for_each)
    corner = torch.rand(300, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(300, 2) * 30 + 1], 1)
    truth = GroundTruth(boxes[:7] + 2, torch.zeros(7), boxes[:0], None)
    matched = matcher(boxes, truth)
    assert matched.tolist() == match_naively(matcher, boxes, truth)
    assert {BACKGROUND, IGNORED} < set(matched.tolist())


def test_an_object_that_no_box_touches_matches_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    matcher = Matcher(0.7, 0.3, best_for_each=True)
    far = objects([[100.0, 100, 110, 110]])
    assert matcher(boxes, far).tolist() == [BACKGROUND, BACKGROUND]


def test_background_in_a_crowd_is_ignored_but_objects_there_are_not():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [14, 0, 24, 10], [16, 0, 26, 10], [0, 12, 4, 16], [50, 50, 60, 60]]
    )
    truth = objects([[0.0, 0, 10, 10]], crowds=[[0.0, 0, 20, 20]])
    matched = Matcher(0.5, 0.5, best_for_each=False)(boxes, truth)
    assert matched.tolist() == [0, IGNORED, BACKGROUND, IGNORED, BACKGROUND]


def test_crowds_are_not_objects():
    target = {
        "boxes": torch.tensor([[8.0, 8, 28, 28], [30, 40, 62, 50]]),
        "labels": torch.tensor([0, 1]),
        "masks": torch.rand(2, 64, 64) > 0.5,
        "iscrowd": torch.tensor([True, False]),
    }
    truth = ground_truth_of(target)
    assert truth.boxes.equal(target["boxes"][1:])
    assert truth.labels.tolist() == [1]
    assert truth.crowds.equal(target["boxes"][:1])
    assert truth.masks.equal(target["masks"][1:])
    target["iscrowd"][:] = False
    assert len(ground_truth_of(target).boxes) == 2


def test_sampling_counts_and_randomness():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(100, 1)
    boxes[30:] += 200
    matched = Matcher(0.5, 0.5, best_for_each=False)(boxes, objects([[0.0, 0, 10, 10]]))

    def draw(batch_size, fraction):
        torch.manual_seed(3)
        positive, negative = Sampler(batch_size, fraction)(matched, None)
        assert (positive < 30).all()
        assert (negative >= 30).all()
        assert len({*positive.tolist(), *negative.tolist()}) == len(positive) + len(negative)
        return positive.tolist(), negative.tolist()

    positive, negative = draw(20, 0.25)
    assert (len(positive), len(negative)) == (5, 15)
    assert draw(20, 0.25) == (positive, negative)
    assert sorted(positive) != list(range(5))
    assert [len(part) for part in draw(90, 0.5)] == [30, 60]  # too few positives: more negatives
    assert [len(part) for part in draw(1000, 0.5)] == [30, 70]


# --- detections ---


def test_the_best_candidates_in_the_order_of_places():
    scores = torch.tensor([[0.3, -1, 0.9, 0.5, 0.2], [-1, -1, 0.4, -1, -1]])
    best, index = best_scores(scores, 3, 1)
    assert index[0].tolist() == [0, 2, 3]
    assert best[0].tolist() == scores[0, [0, 2, 3]].tolist()
    assert best[1].amax() == scores[1, 2]  # the others are no candidates
    assert (best[1] >= 0).sum() == 1
    best, index = best_scores(scores[1:], 3, 1)
    assert index.tolist() == [[2]]  # no more than there are
    assert best_scores(scores[1:], 3, 2)[0].shape == (1, 2)
    assert best_scores(scores[:, :2], 3, 3)[0].shape == (2, 2)


# --- masks ---


def test_mask_targets_equal_torchvision():
    masks = [torch.rand(3, 40, 50) > 0.5, torch.rand(1, 64, 32) > 0.5, torch.rand(0, 9, 9) > 0]
    boxes = [torch.rand(5, 4) * 20, torch.rand(2, 4) * 20, torch.zeros(0, 4)]
    boxes = [torch.cat([b[:, :2], b[:, 2:] + 21], 1) for b in boxes]
    matched = [torch.tensor([2, 0, 1, 2, 2]), torch.tensor([0, 0]), torch.zeros(0).long()]
    targets = mask_targets(boxes, matched, masks, 28)
    expected = [
        project_masks_on_boxes(m, b, i, 28) for m, b, i in zip(masks, boxes, matched, strict=True)
    ]
    torch.testing.assert_close(targets, torch.cat(expected))
