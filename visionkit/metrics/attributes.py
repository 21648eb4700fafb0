"""Accuracy of the attributes of detected objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionkit.data.classes import YES, Group, groups
from visionkit.errors import ConfigError
from visionkit.metrics.accuracy import finite, nan_mean
from visionkit.ops.boxes import box_iou, rescale_boxes
from visionkit.types import Batch, Target

MIN_IOU = 0.5  # between an object and the detection that matches it


class Counts(NamedTuple):
    """What ranks exchange; G attributes."""

    correct: Tensor  # (G,) int64: correct predictions for objects that were found
    known: Tensor  # (G,) int64: known values of these objects
    found: int
    num_objects: int  # with at least one known attribute


class AttributeAccuracy:
    """`accuracy`, `accuracy/<attribute>` and `found`, in [0, 1].

    `found` is the share of objects with known attributes that a detection of any class overlaps
    with IoU >= 0.5 in original pixels. `accuracy/<attribute>` is the share of correct predictions
    for these objects: for a one-of attribute the most probable value must be correct; any other
    class is predicted if its probability is at least 0.5. `accuracy` is the mean over the
    attributes. It does not include missed objects, so read it together with `found`.

    Crowd regions do not count as objects. Images without labeled boxes or attributes are skipped.
    Predictions have `boxes` (N, 4) in original pixels, `scores` (N,) and `attributes` (N, A).
    """

    def __init__(self, classes: Sequence[str]):
        self.groups = groups(classes)
        zeros = torch.zeros(len(self.groups), dtype=torch.int64)
        self.counts = Counts(zeros, zeros, 0, 0)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "boxes" not in prediction or "scores" not in prediction:
                raise ConfigError(
                    "attributes are scored for detected boxes, but the predictions have only "
                    f"{sorted(prediction)}: set boxes_from to a head that detects boxes"
                )
            if "boxes" in target and "attributes" in target:
                self._count(prediction, target)

    def _count(self, prediction: dict[str, Any], target: Target) -> None:
        probs = finite(prediction, "attributes", target.get("image_id"))
        boxes, truth = _original_objects(target)
        matched = match(prediction["boxes"].cpu(), prediction["scores"].cpu(), boxes)
        is_known = ~truth.isnan().all(1)
        found = is_known & (matched >= 0)
        per_group = [
            _correct_and_known(group, probs[matched[found]], truth[found])
            for group in self.groups.values()
        ]
        correct, known = torch.tensor(per_group, dtype=torch.int64).view(-1, 2).unbind(1)
        self.merge([self.counts, Counts(correct, known, int(found.sum()), int(is_known.sum()))])

    def state(self) -> Counts:
        return self.counts

    def merge(self, states: Sequence[Counts]) -> None:
        self.counts = Counts(*(sum(column) for column in zip(*states, strict=True)))

    def compute(self) -> dict[str, float]:
        correct, known, found, num_objects = self.counts
        per_attribute = (correct.double() / known).tolist()  # 0 / 0 is NaN: no known value
        return {
            "accuracy": nan_mean(per_attribute),
            "found": found / num_objects if num_objects else math.nan,
            **{f"accuracy/{n}": x for n, x in zip(self.groups, per_attribute, strict=True)},
        }


def _original_objects(target: Target) -> tuple[Tensor, Tensor]:
    """Boxes (M, 4) in original pixels and attributes (M, A), without crowds, on the CPU."""
    boxes = rescale_boxes(target["boxes"], target["size"], target["orig_size"]).cpu()
    attributes = target["attributes"].cpu()
    single = torch.ones(len(boxes), dtype=torch.bool)
    if "iscrowd" in target:
        single = ~target["iscrowd"].cpu()
    return boxes[single], attributes[single]


def match(boxes: Tensor, scores: Tensor, objects: Tensor) -> Tensor:
    """For each object (M, 4) the index of its detection, or -1: (M,) int64.

    By descending score, each detection (N, 4) takes the unmatched object with the highest IoU, if
    that is at least `MIN_IOU`.
    """
    matched = torch.full((len(objects),), -1)
    iou_NM = box_iou(boxes.float(), objects.float())
    for detection in scores.argsort(descending=True, stable=True).tolist():
        free = iou_NM[detection].masked_fill(matched >= 0, -1)
        if len(free) and free.max() >= MIN_IOU:
            matched[free.argmax()] = detection
    return matched


def _correct_and_known(group: Group, probs: Tensor, truth: Tensor) -> tuple[int, int]:
    """The number of correct predictions and of known values of one attribute, from (R, A)."""
    probs, truth = probs[:, group.columns], truth[:, group.columns]
    if group.kind == "one_of":
        known = (truth == 1).any(1)
        correct = probs.argmax(1) == truth.nan_to_num().argmax(1)
    else:
        known = ~truth.isnan()
        correct = (probs >= YES) == (truth == 1)
    return int((correct & known).sum()), int(known.sum())
