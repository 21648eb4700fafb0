"""One-stage detection that is taught which cells detect what by how well they do: the assignment
of TOOD (Feng et al. 2021, arXiv 2108.07755) with the quality focal loss of Li et al. 2020
(arXiv 2006.04388).

Every cell of every level scores the classes and tells how far it is from the sides of an object,
as in FCOS; but the score is trained to be the IoU of its own box, so no centerness is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from visionkit.config.schema import Count, Fraction, Natural, NonNegative, Positive
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.heads.fcos import (
    Points,
    Prior,
    best_candidates,
    cells_first,
    cells_of,
    common_channels,
    decode,
)
from visionkit.ops.boxes import box_iou, clip, to_original
from visionkit.ops.losses import giou_loss, quality_focal_loss
from visionkit.types import Batch, Dataset, Evaluator, Head, Level, Loss, Target

# --- Which cells detect which object, by how well they do so already: task-aligned assignment.

TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def align(
    scores: Tensor,
    boxes: Tensor,
    points: Points,
    objects: Tensor,
    labels: Tensor,
    *,
    radius: float,
    top_k: int,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """The object that each cell of an image has to detect, or -1, and its target score.

    `scores` (P, K) and `boxes` (P, 4) are the cells' predictions, `objects` (N, 4) and `labels`
    (N,) the truth. A cell is a candidate for an object if its center is inside the box and within
    `radius` cell sides of the box's center. Of these the `top_k` with the highest alignment
    score^alpha x IoU^beta take the object; a cell that several objects want takes the one it
    overlaps most. The target score, 0..1, is the alignment, scaled so that the best cell of an
    object gets the highest IoU among its cells (Feng et al. 2021, equations 1 to 3).

    Both (P,).
    """
    num_points = len(boxes)
    if not len(objects):
        return labels.new_full((num_points,), -1), boxes.new_zeros(num_points)
    candidates = _candidates(points, objects, radius)  # (N, P)
    overlaps = box_iou(objects, boxes)
    alignment = scores.T[labels] ** alpha * overlaps**beta
    alignment = alignment.where(candidates, 0.0)
    best = alignment.topk(min(top_k, num_points), dim=1).values
    taken = (alignment > 0) & (alignment >= best[:, -1:])
    overlap, matched = overlaps.where(taken, -1.0).max(0)  # (P,)
    found = overlap >= 0

    taken = torch.zeros_like(taken).scatter_(0, matched[None], found[None])
    alignment = alignment.where(taken, 0.0)
    highest = overlaps.where(taken, 0.0).amax(1) / alignment.amax(1).clamp(min=TINY)
    return matched.where(found, -1), (alignment * highest[:, None]).amax(0)


def _candidates(points: Points, objects: Tensor, radius: float) -> Tensor:
    """Whether each cell is near enough to the center of each object: (N, P)."""
    x, y = points.centers.T
    x1, y1, x2, y2 = objects[:, :, None].unbind(1)
    inside = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y)) > 0
    off_center = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    return inside & (off_center < radius * points.sizes)


MAX_LOG_DISTANCE = 6.0  # 400 cells: keeps exp() finite


class Output(NamedTuple):
    """What the convolutions give for each of the P cells, in float32."""

    class_logits: Tensor  # (B, P, K)
    distances: Tensor  # (B, P, 4): to the left, top, right, bottom side, in cells


class Assigned(NamedTuple):
    """What each of the P cells of an image is taught."""

    objects: Tensor  # (P,): the object that it detects, or -1
    target_scores: Tensor  # (P, K): 0 but for the class of that object
    taught: Tensor  # (P, K) bool: False where it is not known whether 0 is right


class TaskAligned(Head):
    """Objects of any number, each with class, score and box.

    All levels need the same number of channels, as an FPN gives them.

    num_convs: convolutions before the predictors, in each of the two branches, shared by all
        levels; each level has batch norms of its own (Lyu et al. 2022, arXiv 2212.07784).
    center_radius: cells within so many cell sides of an object's center may detect it.
    top_k: how many cells of all levels detect an object, at most.
    alpha, beta: exponents of score and IoU in the alignment that chooses them.
    box_weight: of the box loss against the classification loss.
    prior: the class probability at the start (Lin et al. 2017).
    score_threshold, pre_nms_top_n: detections must score higher, and be among the best of their
        level, to enter the non-maximum suppression.
    nms_iou, max_detections: overlap at which the weaker of two detections of a class goes, and
        how many stay in an image.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"
    draw_threshold = 0.4  # scores are trained to be IoUs

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        num_convs: Natural = 2,
        center_radius: Positive = 1.5,
        top_k: Count = 10,
        alpha: NonNegative = 0.5,
        beta: NonNegative = 6.0,
        box_weight: NonNegative = 2.0,
        prior: Prior = 0.01,
        score_threshold: Fraction = 0.05,
        nms_iou: Fraction = 0.6,
        max_detections: Count = 100,
        pre_nms_top_n: Count = 1000,
    ):
        super().__init__()
        self.levels = levels
        self.center_radius, self.top_k = center_radius, top_k
        self.alpha, self.beta, self.box_weight = alpha, beta, box_weight
        self.score_threshold, self.pre_nms_top_n = score_threshold, pre_nms_top_n
        self.nms_iou, self.max_detections = nms_iou, max_detections
        channels = common_channels(levels, "TaskAligned")
        self.classification = Branch(channels, len(classes), num_convs, len(levels))
        self.regression = Branch(channels, 4, num_convs, len(levels))
        nn.init.constant_(self.classification.predict.bias, -math.log((1 - prior) / prior))
        nn.init.constant_(self.regression.predict.bias, math.log(3))  # boxes of 6 x 6 cells

    def forward(self, features: dict[str, Tensor]) -> Output:
        maps = [features[name] for name in self.levels]
        class_logits, log_distances = self.classification(maps), self.regression(maps)
        return Output(class_logits, log_distances.clamp(max=MAX_LOG_DISTANCE).exp())

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Sums over the cells, divided by the sum of their target scores.

        `classification` is the quality focal loss, `box_reg` 1 - GIoU weighted by the target
        score. Cells in a crowd region are not taught that they show background, and none is
        taught anything about a class that is not labeled in its image, but by an object of
        that class.
        """
        output = self(features)
        labeled = [
            i for i, t in enumerate(batch.targets) if all(key in t for key in self.required_targets)
        ]
        points = cells_of(self.levels, features, batch.images.shape[-2:])
        class_loss = output.class_logits[:0].sum()
        box_loss = output.distances[:0].sum()
        total = class_loss.detach()
        for image in labeled:
            target, logits = batch.targets[image], output.class_logits[image]
            boxes = decode(output.distances[image], points, ...)
            assigned = self._assign(logits, boxes, points, target)
            losses = quality_focal_loss(logits, assigned.target_scores)
            class_loss = class_loss + (losses * assigned.taught).sum()
            found = (assigned.objects >= 0).nonzero()[:, 0]
            weights = assigned.target_scores[found].amax(1)
            truth = target["boxes"][assigned.objects[found]]
            box_loss = box_loss + (giou_loss(boxes[found], truth) * weights).sum()
            total = total + weights.sum()
        return {
            "classification": Loss(class_loss, total),
            "box_reg": Loss(self.box_weight * box_loss, total),
        }

    @torch.no_grad()
    def _assign(self, logits: Tensor, boxes: Tensor, points: Points, target: Target) -> Assigned:
        crowd = target.get("iscrowd", torch.zeros_like(target["labels"])).bool()
        known = (~crowd).nonzero()[:, 0]
        labels = target["labels"][known]
        matched, quality = align(
            logits.sigmoid(),
            boxes,
            points,
            target["boxes"][known],
            labels,
            radius=self.center_radius,
            top_k=self.top_k,
            alpha=self.alpha,
            beta=self.beta,
        )
        found = (matched >= 0).nonzero()[:, 0]
        scores = torch.zeros_like(logits)
        scores[found, labels[matched[found]]] = quality[found]
        taught = ~within(points.centers, target["boxes"][crowd])[:, None].expand_as(scores)
        if "labeled" in target:
            taught = taught & target["labeled"]
        objects = torch.full_like(matched, -1)
        objects[found] = known[matched[found]]
        return Assigned(objects, scores, taught | (scores > 0))

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first."""
        output = self(features)
        points = cells_of(self.levels, features, batch.images.shape[-2:])
        per_level = [features[name].shape[-2:].numel() for name in self.levels]
        detections = []
        for image, target in enumerate(batch.targets):
            point, labels, scores = best_candidates(
                output.class_logits[image].sigmoid(),
                per_level,
                threshold=self.score_threshold,
                most=self.pre_nms_top_n,
            )
            boxes = decode(output.distances[image, point], points, point)
            boxes = clip(boxes, target["size"])
            keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
            boxes = to_original(boxes[keep], target["size"], target["orig_size"])
            detections.append({"boxes": boxes, "scores": scores[keep], "labels": labels[keep]})
        return detections

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))


class Branch(nn.Module):
    """Convolutions shared by all levels, each followed by a batch norm of the level's own.

    Statistics differ between levels; one norm for all would fit none in evaluation.
    """

    def __init__(self, channels: int, out_channels: int, num_convs: int, num_levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(num_convs)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_convs))
            for _ in range(num_levels)
        )
        self.predict = nn.Conv2d(channels, out_channels, 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, channels, h, w) map per level to (B, P, out_channels) in float32."""
        outputs = []
        for x, norms in zip(maps, self.norms, strict=True):
            for conv, norm in zip(self.convs, norms, strict=True):
                x = F.relu(_normalized(norm, conv(x)), inplace=True)
            outputs.append(cells_first(self.predict(x)))
        return torch.cat(outputs, 1)


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """One cell of one image has no statistics: it is normalized by those of the past."""
    if norm.training and x[:, 0].numel() == 1:
        mean, variance = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


def within(points: Tensor, regions: Tensor) -> Tensor:
    """Whether each of the `points` (P, 2) lies in one of the `regions` (N, 4): (P,) bool."""
    before = points[:, None] > regions[:, :2]
    return (before & (points[:, None] < regions[:, 2:])).all(2).any(1)
