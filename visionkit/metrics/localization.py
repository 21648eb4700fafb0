"""Accuracy of one class and one box per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.ops.boxes import area, box_iou, to_original
from visionkit.types import Batch, Target


def largest_objects(targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """The object with the largest box of each image, crowd regions aside.

    Gives boxes (B, 4), labels (B,) and found (B,) bool, on the device of the targets. Where a
    image has no object, or is not labeled, found is False and the others are zero.
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
        # Indexed by a tensor, and no `if` on a value: the accelerator is never waited for.
        all_reduce_max = areas.argmax()
        found[i] = areas[all_reduce_max] >= 0
        boxes[i] = target["boxes"][all_reduce_max] * found[i]
        labels[i] = target["labels"][all_reduce_max] * found[i]
    return boxes, labels, found


class LocalizationAccuracy:
    """`top1` (class right), `mean_iou` (of the box), `loc50` and `loc75`, all in [0, 1].

    `loc50` counts the images whose class is right and whose box has IoU >= 0.5 with the truth,
    the criterion of ILSVRC (Russakovsky et al. 2015); `loc75` asks for IoU >= 0.75. The truth is
    the largest object of the image, in original pixels; images without one are left out.
    """

    names = ("top1", "mean_iou", "loc50", "loc75")

    def __init__(self) -> None:
        self.scores: list[tuple[float, ...]] = []  # of each image, in the order of the names

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        boxes, labels, found = largest_objects(batch.targets)
        for i in found.nonzero()[:, 0].tolist():
            target, box = batch.targets[i], predictions[i]["box"].float().cpu()
            if not box.isfinite().all():
                raise DivergedError(f"image {target.get('image_id')}: the box is not finite")
            truth = to_original(boxes[i].cpu(), target["size"], target["orig_size"])
            right = int(predictions[i]["probs"].argmax()) == int(labels[i])
            iou = box_iou(box[None].double(), truth[None].double()).item()
            scores = [right, iou, right and iou >= 0.5, right and iou >= 0.75]
            self.scores.append(tuple(map(float, scores)))

    def state(self) -> list[tuple[float, ...]]:
        return self.scores

    def merge(self, states: Sequence[list[tuple[float, ...]]]) -> None:
        self.scores = [scores for state in states for scores in state]

    def compute(self) -> dict[str, float]:
        if not self.scores:
            return dict.fromkeys(self.names, math.nan)
        # Exact sums, so that the order of the images changes nothing.
        totals = map(math.fsum, zip(*self.scores, strict=True))
        return {n: s / len(self.scores) for n, s in zip(self.names, totals, strict=True)}
