"""Metrics of classification, localization and attributes, and what all metrics share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionkit.data.attributes import YES, Group, groups
from visionkit.errors import ConfigError, DivergedError
from visionkit.metrics.comparison import Subject
from visionkit.metrics.image_reports import (
    attribute_parts,
    classification_parts,
    classification_sentences,
    localization_parts,
    localization_sentences,
    multilabel_parts,
    multilabel_sentences,
)
from visionkit.metrics.intervals import mean_over
from visionkit.metrics.parts import Part, ReportContext
from visionkit.metrics.report import Coverage
from visionkit.metrics.thresholds import Curve, Thresholds
from visionkit.ops.boxes import area, box_iou, rescale_boxes
from visionkit.types import Batch, Target

MIN_IOU = 0.5  # between an object and the detection that matches it


class Records:
    """Base of the evaluators that keep one record for each image."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def state(self) -> list[Any]:
        return self.records

    def merge(self, states: Sequence[list[Any]]) -> None:
        self.records = [record for records in states for record in records]


class Counts:
    """Base of the evaluators that add up integers."""

    counts: Tensor  # int64

    def state(self) -> list[list[int]]:
        return self.counts.tolist()

    def merge(self, states: Sequence[list[list[int]]]) -> None:
        self.counts = torch.tensor(states).sum(0)


class ClassRecord(NamedTuple):
    """The class of an image, and the up to five most probable ones."""

    image_id: int
    truth: int
    ranked: tuple[int, ...]
    prob: float  # of the first


class Accuracy(Records):
    """Top-1, top-5 (with more than five classes) and per-class accuracy, in [0, 1].

    `mean_class_accuracy` is the mean over the classes that occur in the data; the accuracy of other
    classes is NaN. Images without `class_id` are skipped.
    """

    def __init__(self, classes: Sequence[str]):
        super().__init__()  # a `ClassRecord` for each image
        self.classes = list(classes)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        top = min(5, len(self.classes))
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" not in target:
                continue
            id_ = target.get("image_id", len(self.records))
            probs, ranked = finite(prediction, "probs", id_).topk(top)
            found = tuple(ranked.tolist())
            self.records.append(ClassRecord(id_, int(target["class_id"]), found, float(probs[0])))

    def compute(self) -> dict[str, float]:
        records, classes = self.records, len(self.classes)
        truth = torch.tensor([one.truth for one in records], dtype=torch.int64)
        first = torch.tensor([one.truth == one.ranked[0] for one in records], dtype=torch.bool)
        five = sum(one.truth in one.ranked for one in records)
        images = truth.bincount(minlength=classes).double()
        correct = truth[first].bincount(minlength=classes).double()
        per_class = (correct / images).tolist()  # 0 / 0 is NaN: no image of the class
        metrics = {"top1": (correct.sum() / images.sum()).item()}
        if classes > 5:
            metrics["top5"] = five / len(records) if records else math.nan
        metrics["mean_class_accuracy"] = nan_mean(per_class)
        metrics |= {f"accuracy/{name}": x for name, x in zip(self.classes, per_class, strict=True)}
        return metrics

    def coverage(self) -> dict[str, Coverage]:
        present = {one.truth for one in self.records}
        over = Coverage.of(self.classes, [i in present for i in range(len(self.classes))])
        return {"top1": over, "mean_class_accuracy": over}

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.records)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`top1` (R,) in replicates with these weights (R, I) of the images."""
        records = sorted(self.records)
        right = np.array([one.truth == one.ranked[0] for one in records])
        return {"top1": mean_over(weights, right, np.ones(len(right)))}

    def subject(self) -> Subject:
        """What was scored, to compare it with another model."""
        truth = np.array([one.truth for one in sorted(self.records)])
        return Subject(self.image_ids(), self.classes, {"the class": truth})

    def report(self, context: ReportContext) -> list[Part]:
        return classification_parts(self.classes, self.records, context)

    def sentences(self, context: ReportContext) -> list[str]:
        """What stands out in a report."""
        return classification_sentences(self.classes, self.records)


class MultiLabelAccuracy(Records):
    """Mean average precision and F1 of multi-label classification.

    `AP/<class>` is the area under the precision-recall curve without interpolation; images of equal
    probability share one threshold. `mAP` is its mean over the classes that occur. `f1` is
    computed over all (image, class) pairs; a probability of at least `threshold` is positive.
    `top1` is the share of images whose most probable class is correct, among images with a class.
    A class that is not known for an image (NaN in `class_id`) does not count there.
    """

    def __init__(self, classes: Sequence[str], *, threshold: float = 0.5):
        super().__init__()  # each record: image id, probabilities (K,), ground truth (K,) float
        self.classes = list(classes)
        self.threshold = threshold

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" in target:
                id_ = target.get("image_id", len(self.records))
                probs = finite(prediction, "probs", id_)
                self.records.append((id_, probs, target["class_id"].cpu().float()))

    def compute(self) -> dict[str, float]:
        probs, truth, known = self._tables(self.records)
        chosen = (probs >= self.threshold) & known
        some = truth.any(1)
        hits = self._hits(probs, truth, known)[some].double()
        guesses = (chosen.sum() + truth.sum()).item()
        aps = [
            average_precision(probs[known[:, k], k], truth[known[:, k], k])
            for k in range(len(self.classes))
        ]
        return {
            "mAP": nan_mean(aps),
            "top1": hits.mean().item(),
            "f1": 2 * (chosen & truth).sum().item() / guesses if guesses else math.nan,
            **{f"AP/{name}": ap for name, ap in zip(self.classes, aps, strict=True)},
        }

    def _tables(self, records: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, ground truth bool and whether it is known bool, each (I, K)."""
        none = torch.zeros(0, len(self.classes))  # if there is no image
        probs = torch.vstack([none, *(row for _, row, _ in records)])
        truth = torch.vstack([none, *(row for _, _, row in records)])
        return probs, truth > 0.5, ~truth.isnan()

    @staticmethod
    def _hits(probs: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        """(I,) bool: whether the most probable of the known classes is correct."""
        best = probs.masked_fill(~known, -1).argmax(1, keepdim=True)
        return truth.gather(1, best)[:, 0]

    def coverage(self) -> dict[str, Coverage]:
        occurs = self._tables(self.records)[1].any(0).tolist()
        return {"mAP": Coverage.of(self.classes, occurs)}

    def curves(self) -> tuple[dict[str, Curve], Curve]:
        """What counts as present from some probability on, by class and over all classes."""
        probs, truth, known = (table.numpy() for table in self._tables(self.records))

        def curve(rows: np.ndarray, hits: np.ndarray, counts: np.ndarray) -> Curve:
            return Curve.of(rows[counts].astype(float), hits[counts], int(hits.sum()))

        by_class = {
            name: curve(probs[:, k], truth[:, k], known[:, k])
            for k, name in enumerate(self.classes)
        }
        pooled = curve(probs, truth, known)
        return by_class, pooled

    def thresholds(self) -> Thresholds | None:
        return Thresholds.of(*self.curves())

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.records)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`top1` (R,) in replicates with these weights (R, I) of the images."""
        records = sorted(self.records, key=lambda record: record[0])
        probs, truth, known = self._tables(records)
        some = truth.any(1)
        right = self._hits(probs, truth, known) & some
        return {"top1": mean_over(weights, right.numpy(), some.numpy())}

    def subject(self) -> Subject:
        """What was scored, to compare it with another model."""
        tables = self._tables(sorted(self.records, key=lambda record: record[0]))
        truth = np.where(tables[2], tables[1], -1)
        return Subject(self.image_ids(), self.classes, {"the classes": truth})

    def report(self, context: ReportContext) -> list[Part]:
        used = context.thresholds or self.thresholds()
        return multilabel_parts(self.classes, *self.curves(), used)

    def sentences(self, context: ReportContext) -> list[str]:
        """What stands out in a report."""
        return multilabel_sentences(self.compute())


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


class LocalizationRecord(NamedTuple):
    """The largest object of an image and what was found instead; boxes xyxy in original pixels."""

    image_id: int
    label: int
    guess: int
    iou: float
    box: tuple[float, ...]
    truth: tuple[float, ...]

    @property
    def right(self) -> bool:
        return self.guess == self.label

    def located(self, iou: float) -> bool:
        """Whether the class is right and the box is near enough."""
        return self.right and self.iou >= iou


class LocalizationAccuracy(Records):
    """`top1` (of the class), `mean_iou` (of the box), `loc50` and `loc75`, all in [0, 1].

    `loc50` is the share of images with the correct class and a box with IoU >= 0.5, the criterion
    of ILSVRC (Russakovsky et al. 2015); `loc75` requires IoU >= 0.75. The ground truth is the
    largest object of the image, in original pixels; images without objects are skipped.
    """

    names = ("top1", "mean_iou", "loc50", "loc75")

    def __init__(self, classes: Sequence[str] = ()) -> None:
        super().__init__()  # a `LocalizationRecord` for each image
        self.classes = list(classes)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        boxes, labels, found = largest_objects(batch.targets)
        for i in found.nonzero()[:, 0].tolist():
            target, label = batch.targets[i], int(labels[i])
            id_ = target.get("image_id", len(self.records))
            box = finite(predictions[i], "box", id_)
            truth = rescale_boxes(boxes[i].cpu(), target["size"], target["orig_size"])
            guess = int(predictions[i]["probs"].argmax())
            iou = box_iou(box[None].double(), truth[None].double()).item()
            boxes_of = tuple(box.tolist()), tuple(truth.tolist())
            self.records.append(LocalizationRecord(id_, label, guess, iou, *boxes_of))

    def _scores(self, records: Sequence[LocalizationRecord]) -> np.ndarray:
        """(I, 4) float64, the values of `names` for each image."""
        rows = [(one.right, one.iou, one.located(0.5), one.located(0.75)) for one in records]
        return np.array(rows, float).reshape(-1, 4)

    def compute(self) -> dict[str, float]:
        if not self.records:
            return dict.fromkeys(self.names, math.nan)
        # Exact sums do not depend on the order of the images.
        totals = map(math.fsum, self._scores(self.records).T.tolist())
        return {n: s / len(self.records) for n, s in zip(self.names, totals, strict=True)}

    def coverage(self) -> dict[str, Coverage]:
        found = {one.label for one in self.records}
        return {"top1": Coverage.of(self.classes, [i in found for i in range(len(self.classes))])}

    def image_ids(self) -> np.ndarray:
        return image_ids_of(self.records)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """All metrics (R,) in replicates with these weights (R, I) of the images."""
        scores = self._scores(sorted(self.records))
        ones = np.ones(len(scores))
        return {n: mean_over(weights, scores[:, k], ones) for k, n in enumerate(self.names)}

    def subject(self) -> Subject:
        """What was scored, to compare it with another model."""
        records = sorted(self.records)
        labels = np.array([one.label for one in records])
        boxes = np.array([one.truth for one in records]).reshape(-1, 4)
        return Subject(self.image_ids(), self.classes, {"the class": labels, "the box": boxes})

    def report(self, context: ReportContext) -> list[Part]:
        return localization_parts(self.classes, self.records, context)

    def sentences(self, context: ReportContext) -> list[str]:
        """What stands out in a report."""
        return localization_sentences(self.classes, self.records)


class AttributeAccuracy(Counts):
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
        self.classes = list(classes)
        # A row for each attribute: its correct predictions for objects that were found, and its
        # known values there. Then: objects found, and those with at least one known attribute. Then
        # a row for each class: how often it is true and known, of the objects that were found.
        rows = len(self.groups) + 1 + len(self.classes)
        self.counts = torch.zeros(rows, 2, dtype=torch.int64)

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
        there = truth[found]
        values = torch.stack([(there == 1).sum(0), (~there.isnan()).sum(0)], 1).tolist()
        objects = int(found.sum()), int(is_known.sum())
        self.counts += torch.tensor([*per_group, objects, *values])

    def compute(self) -> dict[str, float]:
        correct, known = self.counts[: len(self.groups) + 1].double().unbind(1)
        *per_attribute, found = (correct / known).tolist()  # 0 / 0 is NaN: no known value
        return {
            "accuracy": nan_mean(per_attribute),
            "found": found,
            **{f"accuracy/{n}": x for n, x in zip(self.groups, per_attribute, strict=True)},
        }

    def coverage(self) -> dict[str, Coverage]:
        known = self.counts[: len(self.groups), 1] > 0
        return {"accuracy": Coverage.of([*self.groups], known.tolist())}

    def report(self, context: ReportContext) -> list[Part]:
        return attribute_parts(self.groups, self.classes, self.counts.numpy())


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


def image_ids_of(records: Sequence[Any]) -> np.ndarray:
    """(I,) the images of records that begin with the id, in order."""
    return np.array(sorted(record[0] for record in records), np.int64)


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
