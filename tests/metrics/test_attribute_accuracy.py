"""The metric of attributes: hand-worked values, and a loop as the reference of the matching."""

import math

import pytest
import torch

from visionkit.errors import ConfigError, DivergedError
from visionkit.metrics.accuracy import AttributeAccuracy, match
from visionkit.metrics.parts import ReportContext
from visionkit.ops.boxes import box_iou
from visionkit.types import Batch

CLASSES = ["color=blue", "covered", "color=red", "holds:cup", "holds:pen"]  # color not side by side
NAN = math.nan


def make_target(boxes, attributes, *, iscrowd=None, size=(64, 64), orig_size=(128, 256)):
    target = {
        "image_id": 1,
        "size": size,
        "orig_size": orig_size,
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "attributes": torch.tensor(attributes, dtype=torch.float32).view(-1, len(CLASSES)),
    }
    if iscrowd is not None:
        target["iscrowd"] = torch.tensor(iscrowd)
    return target


def make_batch(*targets):
    return Batch(torch.zeros(len(targets), 3, 64, 64, dtype=torch.uint8), list(targets))


def test_detections_choose_the_best_free_object_in_the_order_of_their_scores():
    objects = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 54.9], [2, 0, 12, 10]])
    # The second is first to choose; it overlaps both left objects by 9/11 and takes the first.
    # The first then gets the next best, 8/12. The third overlaps by 0.49: too little.
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1])
    assert match(boxes, scores, objects).tolist() == [1, 0, -1]
    scores = torch.tensor([0.8, 0.1, 0.7, 0.9])
    assert match(boxes, scores, objects).tolist() == [0, 3, -1]
    assert match(boxes, scores, objects[:0]).tolist() == []
    assert match(boxes[:0], scores[:0], objects).tolist() == [-1, -1, -1]


def test_matching_agrees_with_a_loop():
    for seed in range(20):
        torch.manual_seed(seed)
        corners = torch.rand(14, 2) * 20
        boxes = torch.cat([corners, corners + 10 + torch.rand(14, 2)], 1)
        boxes, objects, scores = boxes[:8], boxes[8:], torch.rand(8)
        iou, owner = box_iou(boxes, objects), {}
        for d in sorted(range(8), key=lambda d: -scores[d]):
            free = [(float(iou[d, m]), -m) for m in range(6) if m not in owner]
            if free and max(free)[0] >= 0.5:
                owner[-max(free)[1]] = d
        assert match(boxes, scores, objects).tolist() == [owner.get(m, -1) for m in range(6)]


def prediction_for(boxes, probs):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "scores": torch.linspace(0.9, 0.1, len(boxes)),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "attributes": torch.tensor(probs, dtype=torch.float32).view(-1, len(CLASSES)),
    }


def scored_images():
    """Four objects of which something is known: three are found. Boxes: twice and four times."""
    batch = make_batch(
        make_target(
            [[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 64, 64], [40, 40, 50, 50]],
            [[0, 1, 1, 1, 0], [1, NAN, 0, NAN, NAN], [1, 1, 0, 0, 0], [NAN] * 5],
            iscrowd=[False, False, True, False],
        ),
        make_target([[0, 0, 10, 10], [30, 30, 40, 40]], [[0, 0, 1, NAN, 1], [1, 0, 0, 1, 1]]),
        {"image_id": 3, "size": (64, 64), "orig_size": (64, 64)},
    )
    found = [
        prediction_for(
            [[80, 40, 120, 60], [0, 0, 40, 20], [160, 80, 200, 100]],
            [[0.6, 0.9, 0.4, 0.9, 0.9], [0.7, 0.5, 0.3, 0.2, 0.1], [0.1] * 5],
        ),
        prediction_for([[0, 0, 40, 20]], [[0.2, 0.7, 0.8, 0.0, 0.6]]),
        prediction_for([], []),
    ]
    return found, batch


# color: blue (right), blue for red (wrong), red (right). covered: yes (right), yes for no (wrong).
# holds: no cup (wrong), no pen (right), a pen (right).
WORKED = {
    "found": 3 / 4,
    "accuracy/color": 2 / 3,
    "accuracy/covered": 1 / 2,
    "accuracy/holds": 2 / 3,
    "accuracy": (2 / 3 + 1 / 2 + 2 / 3) / 3,
}


def test_hand_worked_metrics():
    evaluator = AttributeAccuracy(CLASSES)
    evaluator.update(*scored_images())
    assert evaluator.compute() == pytest.approx(WORKED)


def test_processes_are_merged_by_their_counts():
    found, batch = scored_images()
    parts = []
    for i in range(3):
        parts.append(AttributeAccuracy(CLASSES))
        parts[-1].update(found[i : i + 1], Batch(batch.images[i : i + 1], batch.targets[i : i + 1]))
    merged = AttributeAccuracy(CLASSES)
    merged.merge([part.state() for part in parts])
    assert merged.compute() == pytest.approx(WORKED)


def test_metrics_without_a_known_object_are_not_defined():
    metrics = AttributeAccuracy(CLASSES).compute()
    assert set(metrics) == set(WORKED) and all(math.isnan(value) for value in metrics.values())


def test_missing_boxes_and_bad_numbers_are_reported():
    found, batch = scored_images()
    with pytest.raises(ConfigError, match="set boxes_from to a head that detects boxes"):
        AttributeAccuracy(CLASSES).update([{"attributes": f["attributes"]} for f in found], batch)
    found[0]["attributes"][0, 0] = NAN
    with pytest.raises(DivergedError, match="image 1"):
        AttributeAccuracy(CLASSES).update(found, batch)


def test_the_base_rate_is_the_accuracy_of_the_most_frequent_answers():
    """Of four objects three are blue, one is covered; all hold a cup, one holds a pen."""
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(4)]
    truth = [[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1]]
    target = make_target(boxes, truth, orig_size=(64, 64))
    evaluator = AttributeAccuracy(CLASSES)
    found = {"boxes": target["boxes"], "scores": torch.ones(4), "attributes": torch.zeros(4, 5)}
    evaluator.update([found], make_batch(target))
    (table,) = evaluator.report(ReportContext(no_images))
    rates = {row[0]: (row[1], row[3]) for row in table.rows}
    # Held things are 8 answers: always a cup and never a pen is right in 4 + 3.
    assert rates == {"color": (4, 0.75), "covered": (4, 0.75), "holds": (8, 7 / 8)}


def no_images(image_id):
    raise AssertionError(image_id)
