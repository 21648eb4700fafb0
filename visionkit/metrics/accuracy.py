"""Metrics of classification and localization, and what all metrics share: `finite`, `nan_mean`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.ops.boxes import area, box_iou, rescale_boxes
from visionkit.types import Batch, Target


class Accuracy:
    """Top-1, top-5 (with more than five classes) and per-class accuracy, in [0, 1].

    `mean_class_accuracy` is the mean over the classes that occur in the data; the accuracy of other
    classes is NaN. Images without `class_id` are skipped.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        # Rows: images of each class, those with the class first, those with it in the first five.
        self.counts = torch.zeros(3, len(self.classes), dtype=torch.int64)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        top = min(5, len(self.classes))
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" not in target:
                continue
            truth = int(target["class_id"])
            ranked = finite(prediction, "probs", target.get("image_id")).topk(top).indices
            self.counts[:, truth] += torch.tensor([1, ranked[0] == truth, truth in ranked])

    def state(self) -> list[list[int]]:
        return self.counts.tolist()

    def merge(self, states: Sequence[list[list[int]]]) -> None:
        self.counts = torch.tensor(states).sum(0)

    def compute(self) -> dict[str, float]:
        images, first, five = self.counts.double()
        per_class = (first / images).tolist()  # 0 / 0 is NaN: no image of the class
        metrics = {"top1": (first.sum() / images.sum()).item()}
        if len(self.classes) > 5:
            metrics["top5"] = (five.sum() / images.sum()).item()
        metrics["mean_class_accuracy"] = nan_mean(per_class)
        metrics |= {f"accuracy/{name}": x for name, x in zip(self.classes, per_class, strict=True)}
        return metrics


class MultiLabelAccuracy:
    """Mean average precision and F1 of multi-label classification.

    `AP/<class>` is the area under the precision-recall curve without interpolation; images of equal
    probability share one threshold. `mAP` is its mean over the classes that occur. `f1` is
    computed over all (image, class) pairs; a probability of at least `threshold` is positive.
    `top1` is the share of images whose most probable class is correct, among images with a class.
    """

    def __init__(self, classes: Sequence[str], *, threshold: float = 0.5):
        self.classes = list(classes)
        self.threshold = threshold
        self.probs: list[Tensor] = []  # (K,) float32 for each image
        self.truth: list[Tensor] = []  # (K,) bool

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" in target:
                self.probs.append(finite(prediction, "probs", target.get("image_id")))
                self.truth.append(target["class_id"].cpu() > 0.5)

    def state(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.probs, self.truth

    def merge(self, states: Sequence[tuple[list[Tensor], list[Tensor]]]) -> None:
        self.probs = [row for probs, _ in states for row in probs]
        self.truth = [row for _, truth in states for row in truth]

    def compute(self) -> dict[str, float]:
        shape = (len(self.probs), len(self.classes))
        probs = torch.stack(self.probs) if self.probs else torch.zeros(shape)
        truth = torch.stack(self.truth) if self.truth else torch.zeros(shape, dtype=torch.bool)
        chosen = probs >= self.threshold
        some = truth.any(1)
        hits = truth[some].gather(1, probs[some].argmax(1, keepdim=True)).double()
        guesses = (chosen.sum() + truth.sum()).item()
        aps = [average_precision(probs[:, k], truth[:, k]) for k in range(len(self.classes))]
        return {
            "mAP": nan_mean(aps),
            "top1": hits.mean().item(),
            "f1": 2 * (chosen & truth).sum().item() / guesses if guesses else math.nan,
            **{f"AP/{name}": ap for name, ap in zip(self.classes, aps, strict=True)},
        }


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Sum over all thresholds of precision times the gain in recall; NaN without a positive.

    `scores` (N,) float, `truth` (N,) bool. Equal scores share one threshold, so the result does
    not depend on the order of the data.
    """
    positives = int(truth.sum())
    if positives == 0:
        return math.nan
    scores, order = scores.sort(descending=True)
    hits = truth[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # the last of equal scores
    hits, taken = hits[last], torch.arange(1, len(scores) + 1)[last]
    gained = hits.diff(prepend=hits.new_zeros(1))
    return (hits / taken * gained).sum().item() / positives


class LocalizationAccuracy:
    """`top1` (of the class), `mean_iou` (of the box), `loc50` and `loc75`, all in [0, 1].

    `loc50` is the share of images with the correct class and a box with IoU >= 0.5, the criterion
    of ILSVRC (Russakovsky et al. 2015); `loc75` requires IoU >= 0.75. The ground truth is the
    largest object of the image, in original pixels; images without objects are skipped.
    """

    names = ("top1", "mean_iou", "loc50", "loc75")

    def __init__(self) -> None:
        self.scores: list[tuple[float, ...]] = []  # of each image, in the order of the names

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        boxes, labels, found = largest_objects(batch.targets)
        for i in found.nonzero()[:, 0].tolist():
            target = batch.targets[i]
            box = finite(predictions[i], "box", target.get("image_id"))
            truth = rescale_boxes(boxes[i].cpu(), target["size"], target["orig_size"])
            correct = int(predictions[i]["probs"].argmax()) == int(labels[i])
            iou = box_iou(box[None].double(), truth[None].double()).item()
            scores = [correct, iou, correct and iou >= 0.5, correct and iou >= 0.75]
            self.scores.append(tuple(map(float, scores)))

    def state(self) -> list[tuple[float, ...]]:
        return self.scores

    def merge(self, states: Sequence[list[tuple[float, ...]]]) -> None:
        self.scores = [scores for state in states for scores in state]

    def compute(self) -> dict[str, float]:
        if not self.scores:
            return dict.fromkeys(self.names, math.nan)
        # Exact sums do not depend on the order of the images.
        totals = map(math.fsum, zip(*self.scores, strict=True))
        return {n: s / len(self.scores) for n, s in zip(self.names, totals, strict=True)}


def largest_objects(targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """The object with the largest box of each image; crowd regions do not count.

    Returns boxes (B, 4), labels (B,) and found (B,) bool, on the device of the targets. If an image
    has no object or is not labeled, found is False and the others are zero.
    """
    device = next((t["boxes"].device for t in targets if "boxes" in t), None)
    boxes = torch.zeros(len(targets), 4, device=device)
    labels = torch.zeros(len(targets), dtype=torch.int64, device=device)
    found = torch.zeros(len(targets), dtype=torch.bool, device=device)
    for i, target in enumerate(targets):
        if "boxes" not in target or "labels" not in target or len(target["boxes"]) == 0:
            continue
        areas = area(target["boxes"])
        if "iscrowd" in target:
            areas = areas.masked_fill(target["iscrowd"], -1)
        largest = areas.argmax()  # stays a tensor: an `if` on its value would wait for the GPU
        found[i] = areas[largest] >= 0
        boxes[i] = target["boxes"][largest] * found[i]
        labels[i] = target["labels"][largest] * found[i]
    return boxes, labels, found


def finite(prediction: Mapping[str, Any], key: str, image: Any) -> Tensor:
    """`prediction[key]` as float32 on the CPU. Raises for NaN and infinity, which would be ranked
    at random; `image` names the image in the error."""
    values = prediction[key].detach().float().cpu().clone()  # not a view of the whole batch
    if not values.isfinite().all():
        raise DivergedError(f"image {image}: the predicted {key!r} is not finite")
    return values


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
