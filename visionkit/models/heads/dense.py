"""What heads have in common that detect objects at every place of every level at once.

A place is an anchor or a location, see `places`. For each, such a head predicts a score per class
and four numbers, which lead from the place to a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from visionkit.config.schema import Count, Fraction, Range
from visionkit.errors import ConfigError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.heads.places import Anchors, Locations
from visionkit.ops.boxes import clip
from visionkit.ops.nms import Among, detections, suppress
from visionkit.types import Batch, Dataset, Evaluator, Head, Level, Prediction

Places: TypeAlias = Anchors | Locations
Prior = Annotated[float, Range(low=0, high=0.5, open=True)]


class DenseHead(Head):
    """Base of the heads that detect objects, each with class, score and box, in one stage.

    A subclass adds its layers, `dense_predictions` and `loss`.

    All levels need the same number of channels, as those of an FPN have.

    score_threshold, pre_nms_top_n: detections must score higher, and be among the best of their
        level, to enter the non-maximum suppression.
    nms_iou, max_detections: overlap at which the weaker of two detections goes, and how many stay
        in an image.
    nms: whether only the detections of one `class` suppress each other, or `all`, so that no
        object is found as two classes.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        score_threshold: Fraction,
        pre_nms_top_n: Count = 1000,
        nms_iou: Fraction = 0.6,
        nms: Among = "class",
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        channels = {name: level.channels for name, level in levels.items()}
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"{type(self).__name__} needs feature maps of equal channels, got {channels}; "
                "add `neck: {type: FPN}`"
            )
        self.levels, self.channels = levels, next(iter(channels.values()))
        self.score_threshold, self.pre_nms_top_n = score_threshold, pre_nms_top_n
        self.nms_iou, self.nms, self.max_detections = nms_iou, nms, max_detections

    def dense_predictions(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Places]:
        """For P places the scores (B, P, K) of the classes, and the offsets or distances (B, P, 4)
        from which `Places.boxes` computes the boxes."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], sizes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The best of each level, M in all: `boxes` (B, M, 4) in input pixels, `scores` and
        `labels` (B, M). M depends on the size of the batch's images and `pre_nms_top_n` alone."""
        scores, offsets, places = self.dense_predictions(features)
        index, labels, best = best_of_each_level(scores, places.per_level, self.pre_nms_top_n)
        offsets = offsets.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = places.boxes(offsets, index)
        boxes = clip(boxes, places.image_size if sizes is None else sizes)
        return {"boxes": boxes, "scores": best, "labels": labels}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Prediction]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first."""
        scores = outputs["scores"]
        found = suppress(
            outputs["boxes"],
            scores.masked_fill(scores <= self.score_threshold, -1),
            outputs["labels"],
            iou=self.nms_iou,
            among=self.nms,
            count=self.max_detections,
        )
        return detections(found, batch)

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))


def best_of_each_level(
    scores: Tensor, per_level: Sequence[int], top_n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Place, class and score, each (B, M), of the `top_n` best of each level of `scores`
    (B, P, K), or of all where there are fewer."""
    num_classes = scores.shape[-1]
    index, labels, best = [], [], []
    first = 0
    for level in scores.split(list(per_level), 1):
        # The best pairs of place and class are at the best places: far fewer to sort.
        places = level.amax(2).topk(min(top_n, level.shape[1]), 1).indices
        pairs = level.gather(1, places[..., None].expand(-1, -1, num_classes)).flatten(1)
        top, pair = pairs.topk(min(top_n, pairs.shape[1]), 1)
        index.append(first + places.gather(1, pair // num_classes))
        labels.append(pair % num_classes)
        best.append(top)
        first += level.shape[1]
    return torch.cat(index, 1), torch.cat(labels, 1), torch.cat(best, 1)


def cells_first(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C) in float32."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).float()


def prior_bias(prior: float) -> float:
    """Bias under which each class begins with the probability `prior` (Lin et al. 2017)."""
    return -math.log((1 - prior) / prior)
