"""Metrics of localization: one class and one box per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.metrics.values import finite
from visionkit.ops.boxes import area, box_iou, rescale_boxes
from visionkit.types import Batch, Target


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
