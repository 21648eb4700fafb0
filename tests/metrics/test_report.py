"""Metrics as text: over how many classes a mean is, and few lines for many classes."""

import math

import pytest
import torch

from visionkit.metrics.accuracy import (
    Accuracy,
    AttributeAccuracy,
    LocalizationAccuracy,
    MultiLabelAccuracy,
)
from visionkit.metrics.confusion import ConfusionMatrix
from visionkit.metrics.report import SHOWN, Coverage, metric_lines, to_record
from visionkit.types import Batch


def test_a_coverage_in_words():
    assert str(Coverage.of(["a", "b"], [True, True])) == "2 classes"
    assert str(Coverage.of(["a"], [True])) == "1 class"
    assert str(Coverage.of(["a", "b"], [False, True])) == "1 of 2 classes; no ground truth: a"
    many = Coverage.of([f"c{i}" for i in range(30)], [False] * 30)
    assert str(many) == "0 of 30 classes; no ground truth: c0, c1, c2, c3, c4 and 25 more"


def test_the_record_has_all():
    facts = {"classes": {"mIoU": Coverage.of(["a", "b"], [False, True])}, "coco_engine": "x 1"}
    assert to_record({"mIoU": 0.5}, facts) == {
        "mIoU": 0.5,
        "coco_engine": "x 1",
        "classes": {"mIoU": {"scored": 1, "total": 2, "without_ground_truth": ["a"]}},
    }
    assert to_record({"psnr": 1.0}, {}) == {"psnr": 1.0}


def test_few_metrics_are_printed_one_a_line():
    metrics = {"objects/bbox/AP": 0.25, "objects/bbox/APl": math.nan, "objects/bbox/AP/cat": 0.5}
    over = {"objects/bbox/AP": Coverage.of(["cat", "dog"], [True, False])}
    assert metric_lines(metrics, over) == [
        "objects/bbox/AP      0.2500  1 of 2 classes; no ground truth: dog",
        "objects/bbox/APl     n/a",
        "objects/bbox/AP/cat  0.5000",
    ]
    assert metric_lines({}) == []


@pytest.mark.parametrize("family", ["h/bbox/AP", "h/IoU", "h/accuracy", "h/dice"])
def test_of_many_classes_the_worst_and_the_best_are_printed(family):
    scores = {f"{family}/a/{i}": (i * 37 % 80) / 100 for i in range(80)}  # a name with a slash
    scores[f"{family}/none"] = math.nan
    metrics = {"h/top": 0.5, family: 0.4, **scores, "h/last": 0.1}
    lines = metric_lines(metrics)
    values = [float(line.split()[-1]) for line in lines if line.startswith(f"{family}/a/")]
    assert values == [i / 100 for i in [*range(10), *range(70, 80)]]
    assert lines[0].startswith("h/top") and lines[-1].startswith("h/last")
    (told,) = [line for line in lines if "worst and best" in line]
    assert told.startswith(f"{family}/...: the 20 worst and best of 81 classes, 1 n/a; JSON")
    assert len(lines) == SHOWN + 4


def test_twenty_classes_are_all_printed_and_undefined_ones_alone_do_not_crash():
    metrics = {"AP": 0.5, **{f"AP/{i}": i / 20 for i in range(20)}}
    assert len(metric_lines(metrics)) == 21
    metrics = {"AP": math.nan, **{f"AP/{i}": math.nan for i in range(40)}}
    assert len(metric_lines(metrics)) == 2 and "40 n/a" in metric_lines(metrics)[1]


def test_names_cannot_steer_the_terminal():
    metrics = {"AP/a\x1b[2J\nerror: forged": 0.5}
    (line,) = metric_lines(metrics, {"AP/a\x1b[2J\nerror: forged": Coverage(0, 1, ("x\x07",))})
    assert line.isprintable() and "forged" in line


def batch(*targets):
    return Batch(torch.zeros(len(targets), 3, 8, 8, dtype=torch.uint8), list(targets))


def test_classification_says_which_classes_occur():
    accuracy = Accuracy(["cat", "dog", "fox"])
    accuracy.update(
        [{"probs": torch.tensor([0.1, 0.2, 0.7])}], batch({"class_id": torch.tensor(2)})
    )
    assert accuracy.coverage()["top1"] == (1, 3, ("cat", "dog"))
    labels = MultiLabelAccuracy(["cat", "dog"])
    assert labels.coverage()["mAP"] == (0, 2, ("cat", "dog"))
    truth = torch.tensor([1.0, 0.0])
    labels.update([{"probs": torch.tensor([0.1, 0.9])}] * 2, batch(*[{"class_id": truth}] * 2))
    assert labels.coverage()["mAP"] == (1, 2, ("dog",))


def test_localization_says_which_classes_occur():
    accuracy = LocalizationAccuracy(["cat", "dog"])
    box = torch.tensor([[1.0, 1, 5, 5]])
    target = {"boxes": box, "labels": torch.tensor([1]), "size": (8, 8), "orig_size": (8, 8)}
    accuracy.update([{"box": box[0], "probs": torch.tensor([0.2, 0.8])}], batch(target))
    assert accuracy.coverage()["top1"] == (1, 2, ("cat",))
    assert accuracy.compute()["loc75"] == 1


def test_a_map_without_the_foreground_says_so():
    """mIoU is 1, but over one class alone."""
    confusion = ConfusionMatrix(["background", "lesion"])
    empty = torch.zeros(8, 8, dtype=torch.uint8)
    confusion.update([{"semantic": empty}], batch({"semantic": empty}))
    assert confusion.compute()["mIoU"] == 1
    assert confusion.coverage()["mIoU"] == (1, 2, ("lesion",))
    found = empty.clone()
    found[0, 0] = 1
    confusion.update([{"semantic": found}], batch({"semantic": empty}))
    assert confusion.coverage()["mIoU"] == (2, 2, ("lesion",))  # counts as 0
    assert confusion.compute()["mIoU"] == pytest.approx((127 / 128 + 0) / 2)
    assert confusion.coverage()["mean_accuracy"] == (1, 2, ("lesion",))


def test_attributes_say_which_are_known():
    accuracy = AttributeAccuracy(["color=red", "color=blue", "broken"])
    box = torch.tensor([[1.0, 1, 5, 5]])
    target = {
        **{"boxes": box, "size": (8, 8), "orig_size": (8, 8)},
        "attributes": torch.tensor([[1.0, 0.0, math.nan]]),
    }
    probs = torch.tensor([[0.9, 0.1, 0.5]])
    prediction = {"boxes": box, "scores": torch.ones(1), "attributes": probs}
    accuracy.update([prediction], batch(target))
    assert accuracy.coverage()["accuracy"].without == ("broken",)
