"""What dense heads have in common: locations, the best of each level, suppression."""

import pytest
import torch

from visionkit.models.heads import FCOS, TaskAligned
from visionkit.models.heads.dense import (
    AnchorGenerator,
    DenseHead,
    Locations,
    best_of_each_level,
    locations_of,
)
from visionkit.types import Batch, Level

LEVELS = {"fine": Level(8, 8), "coarse": Level(8, 16)}
CLASSES = ["square", "bar"]
# In an image of 64 x 64 B overlaps A by 4/5; C overlaps A by 1/2, and B by 20/32 = 0.625; D
# overlaps none. At an IoU of 0.6, A suppresses B if their classes do not matter. C stays: a
# detection that is suppressed suppresses none.
A, B, C, D = [0, 0, 40, 40], [0, 0, 40, 32], [0, 0, 40, 20], [44, 44, 60, 60]
BOXES, LABELS = torch.tensor([B, D, A, C], dtype=torch.float32), torch.tensor([1, 1, 0, 0])
SCORES = torch.tensor([0.8, 0.6, 0.9, 0.7])


def maps():
    return {n: torch.zeros(1, 8, 64 // lv.stride, 64 // lv.stride) for n, lv in LEVELS.items()}


def head_that_finds_four(head_class, labels=LABELS, **arguments):
    """The four boxes, found at four locations."""
    head = head_class(LEVELS, CLASSES, num_convs=0, nms_iou=0.6, **arguments).eval()
    locations = locations_of(LEVELS, maps())
    places = torch.tensor([9, 63, 10, 70])
    scores, distances = torch.zeros(1, 80, 2), torch.ones(1, 80, 4)
    scores[0, places, labels] = SCORES
    centers, strides = locations.centers[places], locations.strides[places, None]
    distances[0, places, :2] = (centers - BOXES[:, :2]) / strides
    distances[0, places, 2:] = (BOXES[:, 2:] - centers) / strides
    head.dense_predictions = lambda features: (scores, distances, locations)
    return head


def found_by(head):
    batch = Batch(torch.zeros(1, 3, 64, 64).byte(), [{"size": (64, 64), "orig_size": (64, 64)}])
    (found,) = head.predict(maps(), batch)
    torch.testing.assert_close(found["scores"], found["scores"].sort(descending=True).values)
    return list(zip(found["boxes"].round().int().tolist(), found["labels"].tolist(), strict=True))


@pytest.mark.parametrize("head_class", [FCOS, TaskAligned])
def test_nms_says_which_of_four_detections_stay(head_class):
    stay = {"class": [(A, 0), (B, 1), (C, 0), (D, 1)], "all": [(A, 0), (C, 0), (D, 1)]}
    for nms, expected in stay.items():
        assert found_by(head_that_finds_four(head_class, nms=nms)) == expected
    assert found_by(head_that_finds_four(head_class)) == stay["class"]  # the default
    above = head_that_finds_four(head_class, score_threshold=0.7)
    assert found_by(above) == [(A, 0), (B, 1)]  # scores must be higher than the threshold


@pytest.mark.parametrize(("head_class", "votes"), [(TaskAligned, True), (FCOS, False)])
def test_only_task_aligned_votes_by_default(head_class, votes):
    """B and A are of one class here; at an IoU of 0.6 A suppresses B, which then has a vote."""
    for arguments, expected in (({}, votes), ({"score_voting": not votes}, not votes)):
        head = head_that_finds_four(head_class, labels=LABELS * 0, **arguments)
        size = {"size": (64, 64), "orig_size": (64, 64)}
        (found,) = head.predict(maps(), Batch(torch.zeros(1, 3, 64, 64).byte(), [size]))
        box = found["boxes"][0]
        torch.testing.assert_close(box[:3], torch.tensor([0.0, 0.0, 40.0]))
        assert (box[3] < 39.9) == expected and box[3] > 39 and len(found["boxes"]) == 3


class AnchorHead(DenseHead):
    """Detects two of its anchors, of 16 x 16 and 32 x 32 pixels."""

    def dense_predictions(self, features):
        places = AnchorGenerator(self.levels, [[16], [32]], [1.0])(features)
        scores = torch.zeros(1, 80, 2)
        scores[0, [9, 70], [1, 0]] = torch.tensor([0.9, 0.8])
        return scores, torch.zeros(1, 80, 4), places


def test_a_head_may_detect_at_anchors():
    found = found_by(AnchorHead(LEVELS, score_threshold=0.5))
    # The cells (x, y) are (1, 1) of the fine level and (2, 1) of the coarse one.
    assert found == [([0, 0, 16, 16], 1), ([16, 0, 48, 32], 0)]


def test_candidates_are_clipped_to_the_valid_image_or_else_to_the_batch():
    head = head_that_finds_four(FCOS)
    boxes = head(maps(), torch.tensor([[30, 20]]))["boxes"]
    assert boxes[..., 0::2].max() == 20 and boxes[..., 1::2].max() == 30
    assert head(maps())["boxes"].max() == 64
    assert head(maps())["boxes"].shape == (1, 2 * 80, 4)  # all pairs of location and class


@pytest.mark.parametrize("top_n", [1, 7, 40, 1000])
def test_the_best_of_each_level_are_those_of_a_full_sort(top_n):
    torch.manual_seed(0)
    per_level, num_classes = [30, 12, 1], 5
    scores = torch.rand(3, sum(per_level), num_classes)
    corners = torch.arange(sum(per_level)).float()[:, None].expand(-1, 4)
    offsets = torch.zeros(3, sum(per_level), 4)
    places = Locations(corners[:, :2], torch.ones(sum(per_level)), per_level, (1, 1))
    boxes, labels, best, levels, _ = best_of_each_level(scores, offsets, places, top_n)
    index = boxes[..., 0].long()
    assert torch.equal(levels, torch.bucketize(index, torch.tensor([30, 42]), right=True))
    assert best.shape == (3, sum(min(top_n, n * num_classes) for n in per_level))
    for image in range(3):
        expected, first = [], 0
        for count in per_level:
            pairs = [
                (-float(scores[image, first + p, k]), first + p, k)
                for p in range(count)
                for k in range(num_classes)
            ]
            expected += sorted(pairs)[:top_n]
            first += count
        columns = (-best[image], index[image], labels[image])
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == expected


def test_locations_of_coarse_levels_are_spread_over_the_batch():
    """As in torchvision: 2 cells of stride 64 over 96 pixels lie 48 pixels apart."""
    levels = {"p5": Level(8, 32), "p6": Level(8, 64)}
    features = {"p5": torch.zeros(1, 8, 3, 2), "p6": torch.zeros(1, 8, 2, 1)}
    locations = locations_of(levels, features)
    assert locations.image_size == (96, 64) and locations.per_level == [6, 2]
    assert locations.centers[6:].tolist() == [[0, 0], [0, 48]]
    assert locations.strides.tolist() == [32] * 6 + [64] * 2
