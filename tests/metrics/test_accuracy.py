import math

import pytest
import torch

from visionkit.errors import DivergedError
from visionkit.metrics.accuracy import (
    Accuracy,
    LocalizationAccuracy,
    MultiLabelAccuracy,
    average_precision,
    largest_objects,
)
from visionkit.types import Batch


def batch_of(targets):
    return Batch(torch.zeros(len(targets), 3, 32, 32, dtype=torch.uint8), targets)


def class_batch(*class_ids):
    return batch_of([{"image_id": i, "class_id": torch.tensor(c)} for i, c in enumerate(class_ids)])


def ranking(*order, num_classes):
    """Probabilities that rank the classes in that order, the others last."""
    probs = torch.zeros(num_classes)
    for rank, label in enumerate(order):
        probs[label] = 0.5**rank
    return {"probs": probs / probs.sum()}


# --- One class per image -----------------------------------------------------------------------


def test_top1_top5_and_class_accuracies_by_hand():
    evaluator = Accuracy(["a", "b", "c", "d", "e", "f"])
    predictions = [
        ranking(0, 1, num_classes=6),  # a: right
        ranking(1, 0, num_classes=6),  # a: second
        ranking(5, 4, 3, 2, 1, 0, num_classes=6),  # a: last
        ranking(2, num_classes=6),  # c: right
    ]
    evaluator.update(predictions[:2], class_batch(0, 0))
    evaluator.update(predictions[2:], class_batch(0, 2))
    metrics = evaluator.compute()
    assert metrics["top1"] == 2 / 4
    assert metrics["top5"] == 3 / 4
    assert metrics["accuracy/a"] == pytest.approx(1 / 3)
    assert metrics["accuracy/c"] == 1
    assert math.isnan(metrics["accuracy/b"])
    assert metrics["mean_class_accuracy"] == pytest.approx((1 / 3 + 1) / 2)


def test_top5_needs_more_than_five_classes():
    assert "top5" not in Accuracy(list("abcde")).compute()
    assert "top5" in Accuracy(list("abcdef")).compute()


def test_merged_processes_count_like_one():
    batches = [((0, 1, num), label) for num, label in [(2, 0), (3, 1), (4, 2)]]
    whole, parts = Accuracy(list("abcdef")), [Accuracy(list("abcdef")) for _ in range(2)]
    for i, (order, label) in enumerate(batches):
        for evaluator in (whole, parts[i % 2]):
            evaluator.update([ranking(*order, num_classes=6)], class_batch(label))
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == pytest.approx(whole.compute(), nan_ok=True)


def test_nothing_seen_is_nan_and_unlabeled_images_do_not_count():
    evaluator = Accuracy(["a", "b"])
    evaluator.update([ranking(0, num_classes=2)], batch_of([{"image_id": 1}]))
    assert all(math.isnan(value) for value in evaluator.compute().values())


def test_probabilities_that_are_not_finite_are_refused_by_image():
    nan = {"probs": torch.tensor([math.nan, 1.0])}
    batch = batch_of([{"image_id": 42, "class_id": torch.tensor(0)}])
    with pytest.raises(DivergedError, match="image 42"):
        Accuracy(["a", "b"]).update([nan], batch)


# --- Several labels per image ------------------------------------------------------------------


def test_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    truth = torch.tensor([True, False, True, False])
    # hits at ranks 1 and 3: (1/1 + 2/3) / 2
    assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, torch.ones(4, dtype=torch.bool)) == 1
    assert math.isnan(average_precision(scores, torch.zeros(4, dtype=torch.bool)))


def test_average_precision_of_equal_scores_does_not_depend_on_their_order():
    scores, truth = torch.full((4,), 0.5), torch.tensor([True, False, False, False])
    assert average_precision(scores, truth) == average_precision(scores, truth.flip(0)) == 0.25


def test_multi_label_metrics_by_hand():
    evaluator = MultiLabelAccuracy(["a", "b", "never"], threshold=0.5)
    truths = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    probs = [[0.9, 0.6, 0.1], [0.8, 0.7, 0.1], [0.3, 0.2, 0.6]]
    batch = class_batch(*truths)
    evaluator.update([{"probs": torch.tensor(p)} for p in probs], batch)
    metrics = evaluator.compute()
    # a: ranks 1 (yes), 2 (no), 3 (yes); b: ranks 1 (yes), 2 (no), 3 (yes)
    assert metrics["AP/a"] == metrics["AP/b"] == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(metrics["AP/never"])
    assert metrics["mAP"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["top1"] == 1 / 3  # the first image; both others are surest of a wrong class
    # 5 positives, 2 of them correct; 4 are true
    assert metrics["f1"] == pytest.approx(2 * 2 / (5 + 4))


def test_multi_label_merges_and_is_nan_without_data():
    one, two = (MultiLabelAccuracy(["a", "b"]) for _ in range(2))
    assert all(math.isnan(value) for value in one.compute().values())
    one.update([{"probs": torch.tensor([0.9, 0.1])}], class_batch([1.0, 0.0]))
    two.update([{"probs": torch.tensor([0.8, 0.7])}], class_batch([0.0, 1.0]))
    one.merge([one.state(), two.state()])
    assert one.compute() == {
        "mAP": 1.0,
        "top1": 0.5,
        "f1": pytest.approx(0.8),
        "AP/a": 1.0,
        "AP/b": 1.0,
    }


# --- One class and one box -----------------------------------------------------------------------


def box_target(boxes, labels, iscrowd=None, **kwargs):
    return {
        "image_id": 1,
        "size": (50, 100),
        "orig_size": (100, 200),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(iscrowd or [False] * len(labels), dtype=torch.bool),
        **kwargs,
    }


def test_the_largest_object_that_is_not_a_crowd_is_the_truth():
    targets = [
        box_target([[0, 0, 9, 9], [0, 0, 20, 20], [0, 0, 50, 50]], [3, 4, 5], [0, 0, 1]),
        box_target([[0, 0, 50, 50]], [5], [1]),
        box_target([], []),
        {"image_id": 1},
    ]
    boxes, labels, found = largest_objects(targets)
    assert boxes.tolist() == [[0, 0, 20, 20], [0] * 4, [0] * 4, [0] * 4]
    assert labels.tolist() == [4, 0, 0, 0]
    assert found.tolist() == [True, False, False, False]


def test_localization_metrics_by_hand():
    evaluator = LocalizationAccuracy()
    truth = box_target([[0, 0, 10, 10]], [1])  # (0, 0, 20, 20) in original pixels
    right, wrong = torch.tensor([0.1, 0.9]), torch.tensor([0.9, 0.1])
    predictions = [
        {"probs": right, "box": torch.tensor([0.0, 0, 20, 20])},  # IoU 1
        {"probs": wrong, "box": torch.tensor([0.0, 0, 20, 20])},  # IoU 1, wrong class
        {"probs": right, "box": torch.tensor([0.0, 0, 20, 12])},  # IoU 0.6
        {"probs": right, "box": torch.tensor([0.0, 0, 20, 5])},  # IoU 0.25
        {"probs": wrong, "box": torch.tensor([0.0, 0, 1, 1])},  # no object: skipped
    ]
    evaluator.update(predictions, batch_of([truth] * 4 + [box_target([], [])]))
    assert evaluator.compute() == pytest.approx(
        {"top1": 3 / 4, "mean_iou": (1 + 1 + 0.6 + 0.25) / 4, "loc50": 2 / 4, "loc75": 1 / 4}
    )


def test_localization_merges_and_is_nan_without_data():
    one, two = LocalizationAccuracy(), LocalizationAccuracy()
    assert all(math.isnan(value) for value in one.compute().values())
    truth = batch_of([box_target([[0, 0, 10, 10]], [0])])
    one.update([{"probs": torch.tensor([1.0]), "box": torch.tensor([0.0, 0, 20, 20])}], truth)
    two.update([{"probs": torch.tensor([1.0]), "box": torch.tensor([0.0, 0, 20, 5])}], truth)
    one.merge([one.state(), two.state()])
    assert one.compute() == {"top1": 1, "mean_iou": 0.625, "loc50": 0.5, "loc75": 0.5}


def test_a_box_that_is_not_finite_is_refused():
    prediction = {"probs": torch.tensor([1.0]), "box": torch.tensor([math.nan, 0, 1, 1])}
    with pytest.raises(DivergedError, match="image 1"):
        LocalizationAccuracy().update([prediction], batch_of([box_target([[0, 0, 9, 9]], [0])]))
