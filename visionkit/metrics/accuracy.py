"""Accuracy of classification: one class per image, or any number of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import DivergedError
from visionkit.types import Batch


def checked_probs(prediction: dict[str, Any], image_id: int | None) -> Tensor:
    """The prediction's `probs` on the CPU. Raises for NaN and infinity, which rank at random."""
    probs = prediction["probs"].detach().float().cpu().clone()  # not a view of the whole batch
    if not probs.isfinite().all():
        raise DivergedError(f"image {image_id}: the predicted probabilities are not finite")
    return probs


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN when none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


class Accuracy:
    """Top-1, top-5 (of more than five classes) and the accuracy within each class, in [0, 1].

    `mean_class_accuracy` weighs all classes alike that occur in the data; a class that does not
    occur has accuracy NaN. Images without `class_id` are left out.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        # Row by row: images of each class, those right at first place, those right within five.
        self.counts = torch.zeros(3, len(self.classes), dtype=torch.int64)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        top = min(5, len(self.classes))
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" not in target:
                continue
            truth = int(target["class_id"])
            ranked = checked_probs(prediction, target.get("image_id")).topk(top).indices
            self.counts[:, truth] += torch.tensor([1, ranked[0] == truth, truth in ranked])

    def state(self) -> list[list[int]]:
        return self.counts.tolist()

    def merge(self, states: Sequence[list[list[int]]]) -> None:
        self.counts = torch.tensor(states).sum(0)

    def compute(self) -> dict[str, float]:
        images, first, five = self.counts.double()
        per_class = (first / images).tolist()  # 0 / 0 is NaN: no such image
        metrics = {"top1": (first.sum() / images.sum()).item()}
        if len(self.classes) > 5:
            metrics["top5"] = (five.sum() / images.sum()).item()
        metrics["mean_class_accuracy"] = nan_mean(per_class)
        metrics |= {f"accuracy/{name}": x for name, x in zip(self.classes, per_class, strict=True)}
        return metrics


class MultiLabelAccuracy:
    """Mean average precision over classes, and F1 at a threshold, of multi-label classification.

    `mAP` is the mean over the classes that occur of `AP/<class>`: the area under the
    precision-recall curve without interpolation, images of equal probability counted together.
    `f1` counts all (image, class) pairs together, a probability of at least `threshold` as yes.
    `top1` is the share of images whose most probable class is one of theirs, among those that
    have any.
    """

    def __init__(self, classes: Sequence[str], *, threshold: float = 0.5):
        self.classes = list(classes)
        self.threshold = threshold
        self.probs: list[Tensor] = []  # (K,) float32 for each image
        self.truth: list[Tensor] = []  # (K,) bool

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> None:
        for prediction, target in zip(predictions, batch.targets, strict=True):
            if "class_id" in target:
                self.probs.append(checked_probs(prediction, target.get("image_id")))
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
    """Sum over the thresholds of precision x gain in recall; NaN without a positive.

    `scores` (N,) float, `truth` (N,) bool. Equal scores share one threshold, so that the result
    does not depend on the order of the data.
    """
    positives = int(truth.sum())
    if positives == 0:
        return math.nan
    scores, order = scores.sort(descending=True)
    hits = truth[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # the last of its score
    hits, taken = hits[last], torch.arange(1, len(scores) + 1)[last]
    gained = hits.diff(prepend=hits.new_zeros(1))
    return (hits / taken * gained).sum().item() / positives
