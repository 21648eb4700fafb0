"""How well the attributes of the objects that were found are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionkit.data.classes import YES, Group, groups
from visionkit.errors import ConfigError, DivergedError
from visionkit.metrics.accuracy import nan_mean
from visionkit.ops.boxes import box_iou, to_original
from visionkit.types import Batch, Target

MIN_IOU = 0.5  # a detection that overlaps an object less has not found it


class Counts(NamedTuple):
    """What processes exchange; G attributes."""

    right: Tensor  # (G,) int64: right answers about objects that were found
    known: Tensor  # (G,) int64: answers that are known about them
    found: int
    objects: int  # with at least one known attribute


class AttributeAccuracy:
    """`accuracy`, `accuracy/<attribute>` and `found`, in [0, 1].

    `found` is the share of the objects with known attributes that a detection, of any class,
    overlaps with IoU >= 0.5 in original pixels. `accuracy/<attribute>` is the share of right
    answers about the objects that were found: for a one-of attribute the most probable value, for
    the other classes, each counted for itself, whether the probability is at least 0.5.
    `accuracy` is the mean over the attributes. So it says nothing about objects that were missed;
    read it beside `found`.

    Crowd regions are no objects; images whose boxes or attributes are not labeled are left out.
    Predictions hold `boxes` (N, 4) in original pixels, `scores` (N,) and `attributes` (N, A).
    """

    def __init__(self, classes: Sequence[str]):
        self.groups = groups(classes)
        zeros = torch.zeros(len(self.groups), dtype=torch.int64)
        self.counts = Counts(zeros, zeros, 0, 0)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "boxes" not in prediction or "scores" not in prediction:
                raise ConfigError(
                    "attributes are scored for detected boxes, but the predictions hold "
                    f"{sorted(prediction)} only: let `on` name a head that detects boxes"
                )
            if "boxes" in target and "attributes" in target:
                self._count(prediction, target)

    def _count(self, prediction: dict[str, Any], target: Target) -> None:
        probs = prediction["attributes"].detach().float().cpu()
        if not probs.isfinite().all():
            raise DivergedError(f"image {target.get('image_id')}: attributes are not finite")
        boxes, truth = objects_in_original_pixels(target)
        matched = match(prediction["boxes"].cpu(), prediction["scores"].cpu(), boxes)
        is_known = ~truth.isnan().all(1)
        found = is_known & (matched >= 0)
        answers = [
            right_and_known(group, probs[matched[found]], truth[found])
            for group in self.groups.values()
        ]
        right, known = torch.tensor(answers, dtype=torch.int64).view(-1, 2).unbind(1)
        new = Counts(right, known, int(found.sum()), int(is_known.sum()))
        self.counts = Counts(*(a + b for a, b in zip(self.counts, new, strict=True)))

    def state(self) -> Counts:
        return self.counts

    def merge(self, states: Sequence[Counts]) -> None:
        self.counts = Counts(*(sum(column) for column in zip(*states, strict=True)))

    def compute(self) -> dict[str, float]:
        right, known, found, objects = self.counts
        per_attribute = (right.double() / known).tolist()  # 0 / 0 is NaN: no such answer
        return {
            "accuracy": nan_mean(per_attribute),
            "found": found / objects if objects else math.nan,
            **{f"accuracy/{n}": x for n, x in zip(self.groups, per_attribute, strict=True)},
        }


def objects_in_original_pixels(target: Target) -> tuple[Tensor, Tensor]:
    """Boxes (M, 4) and attributes (M, A) of the objects, crowd regions aside, on the CPU."""
    boxes = to_original(target["boxes"], target["size"], target["orig_size"]).cpu()
    attributes = target["attributes"].cpu()
    single = torch.ones(len(boxes), dtype=torch.bool)
    if "iscrowd" in target:
        single = ~target["iscrowd"].cpu()
    return boxes[single], attributes[single]


def match(boxes: Tensor, scores: Tensor, objects: Tensor) -> Tensor:
    """For each object (M, 4) the detection that has found it, or -1: (M,) int64.

    Detections (N, 4) choose in the order of their scores, each the free object that it overlaps
    most, if that is by at least `MIN_IOU`.
    """
    matched = torch.full((len(objects),), -1)
    iou_NM = box_iou(boxes.float(), objects.float())
    for detection in scores.argsort(descending=True, stable=True).tolist():
        free = iou_NM[detection].masked_fill(matched >= 0, -1)
        if len(free) and free.max() >= MIN_IOU:
            matched[free.argmax()] = detection
    return matched


def right_and_known(group: Group, probs: Tensor, truth: Tensor) -> tuple[int, int]:
    """Right answers and known answers about one attribute, from (R, A) for R objects."""
    probs, truth = probs[:, group.columns], truth[:, group.columns]
    if group.kind == "one_of":
        known = (truth == 1).any(1)
        right = probs.argmax(1) == truth.nan_to_num().argmax(1)
    else:
        known = ~truth.isnan()
        right = (probs >= YES) == (truth == 1)
    return int((right & known).sum()), int(known.sum())
