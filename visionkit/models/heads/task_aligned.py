"""One-stage detection in which a location learns to detect an object if it already does so well:
the assignment of TOOD (Feng et al. 2021, arXiv 2108.07755) with the quality focal loss of Li et
al. 2020 (arXiv 2006.04388).

Every location of every level scores the classes and predicts the distances to the sides of an
object, as in FCOS; but the score is trained to be the IoU of its own box, so no centerness is
needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Natural, NonNegative, Positive
from visionkit.models.heads.dense import (
    DenseHead,
    Locations,
    Prior,
    cells_first,
    locations_of,
    prior_bias,
)
from visionkit.ops.boxes import box_iou
from visionkit.ops.layers import BatchNorm, constant_bias
from visionkit.ops.losses import giou_loss, quality_focal_loss
from visionkit.types import Batch, Features, Level, Loss, Target

TINY = torch.finfo(torch.float32).tiny
# Target score of a location that is the only one of its object: with the IoU alone, which may be 0,
# an object smaller than a cell would never be learned.
LEAST_QUALITY = 0.1
MAX_LOG_DISTANCE = 6.0  # 400 cells: keeps exp() finite


class Output(NamedTuple):
    """What the convolutions give for each of the P locations, in float32."""

    class_logits: Tensor  # (B, P, K)
    distances: Tensor  # (B, P, 4): to the left, top, right, bottom side, in cells
    hidden: list[Tensor]  # (B, C, h, w) of each level: what the distances are predicted from


class Assigned(NamedTuple):
    """What each of the P locations of an image learns."""

    objects: Tensor  # (P,): the object that it detects, or -1
    target_scores: Tensor  # (P, K): 0 but for the class of that object
    loss_mask: Tensor  # (P, K) bool: False where it is not known whether 0 is right


class TaskAligned(DenseHead):
    """One-stage detection with task-aligned assignment; scores are trained to be IoUs (Feng et al.
    2021).

    All levels need the same number of channels, as those of an FPN have.

    num_convs: convolutions before the predictors, in each of the two branches, shared by all
        levels; each level has its own batch norms (Lyu et al. 2022, arXiv 2212.07784).
    center_radius: locations within so many cells of an object's center may detect it.
    top_k: how many locations of all levels detect an object, at most.
    alpha, beta: exponents of score and IoU in the alignment that chooses them.
    focal_beta: exponent of |score - target|, by which each score's loss is weighted. With less than
        the 2 of Li et al. 2020, scores that are not far off learn faster.
    box_weight: of the box loss against the classification loss.
    prior: the class probability at the start (Lin et al. 2017).
    kwargs: the other arguments of `DenseHead`.
    """

    draw_threshold = 0.4  # scores are trained to be IoUs
    class_layers: ClassVar[dict[str, int]] = {"classification.predict": 1}

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
        focal_beta: NonNegative = 2.0,
        box_weight: NonNegative = 2.0,
        prior: Prior = 0.01,
        score_threshold: Fraction = 0.05,
        score_voting: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            levels, score_threshold=score_threshold, score_voting=score_voting, **kwargs
        )
        self.center_radius, self.top_k = center_radius, top_k
        self.alpha, self.beta, self.box_weight = alpha, beta, box_weight
        self.focal_beta = focal_beta
        self.classification = Branch(self.channels, len(classes), num_convs, len(levels))
        self.regression = Branch(self.channels, 4, num_convs, len(levels))
        constant_bias(self.classification.predict, prior_bias(prior))
        constant_bias(self.regression.predict, math.log(3))  # boxes of 6 x 6 cells

    def outputs(self, features: Features) -> Output:
        maps = [features[name] for name in self.levels]
        class_logits, hidden = self.classification(maps), self.regression.hidden(maps)
        log_distances = self.regression.predictions(hidden)
        return Output(class_logits, log_distances.clamp(max=MAX_LOG_DISTANCE).exp(), hidden)

    def dense_predictions(self, features: Features) -> tuple[Tensor, Tensor, Locations]:
        output = self.outputs(features)
        scores = output.class_logits.sigmoid()
        return scores, output.distances, locations_of(self.levels, features)

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Sums over the locations; the count is the sum of their target scores.

        `classification` is the quality focal loss, `box_reg` 1 - GIoU weighted by the target
        score. Locations in a crowd region do not learn that they show background, and none learns
        anything about a class that is not labeled in its image, but from an object of that class.
        """
        locations = locations_of(self.levels, features)
        losses, _ = self.detection_losses(self.outputs(features), locations, batch)
        return losses

    def detection_losses(
        self, output: Output, locations: Locations, batch: Batch
    ) -> tuple[dict[str, Loss], list[Assigned | None]]:
        """The losses, and what the locations of each image learn; None for an image without
        labels."""
        learned: list[Assigned | None] = []
        class_loss = output.class_logits[:0].sum()
        box_loss = output.distances[:0].sum()
        total = class_loss.detach()
        for image, target in enumerate(batch.targets):
            if any(key not in target for key in self.required_targets):
                learned.append(None)
                continue
            logits = output.class_logits[image]
            boxes = locations.boxes(output.distances[image])
            assigned = self._assign(logits, boxes, locations, target)
            learned.append(assigned)
            losses = quality_focal_loss(logits, assigned.target_scores, beta=self.focal_beta)
            class_loss = class_loss + (losses * assigned.loss_mask).sum()
            found = (assigned.objects >= 0).nonzero()[:, 0]
            weights = assigned.target_scores[found].amax(1)
            truth = target["boxes"][assigned.objects[found]]
            box_loss = box_loss + (giou_loss(boxes[found], truth) * weights).sum()
            total = total + weights.sum()
        box_reg = Loss(self.box_weight * box_loss, total)
        return {"classification": Loss(class_loss, total), "box_reg": box_reg}, learned

    @torch.no_grad()
    def _assign(
        self, logits: Tensor, boxes: Tensor, locations: Locations, target: Target
    ) -> Assigned:
        crowd = target.get("iscrowd", torch.zeros_like(target["labels"])).bool()
        known = (~crowd).nonzero()[:, 0]
        objects, labels = target["boxes"][known], target["labels"][known]
        matched, quality = self.align(logits.sigmoid(), boxes, locations, objects, labels)
        found = (matched >= 0).nonzero()[:, 0]
        scores = torch.zeros_like(logits)
        scores[found, labels[matched[found]]] = quality[found]
        in_crowd = locations.contained(target["boxes"][crowd]).any(0)
        loss_mask = ~in_crowd[:, None].expand_as(scores)
        if "labeled" in target:
            loss_mask = loss_mask & target["labeled"]
        matched[found] = known[matched[found]]
        return Assigned(matched, scores, loss_mask | (scores > 0))

    @torch.no_grad()
    def align(
        self, scores: Tensor, boxes: Tensor, locations: Locations, objects: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The object that each location of an image has to detect, or -1, and its target score.

        `scores` (P, K) and `boxes` (P, 4) are the predictions, `objects` (N, 4) and `labels` (N,)
        the ground truth. A location is a candidate for an object if it is inside the box and within
        `center_radius` cells of the box's center. Of these the `top_k` with the highest alignment
        score^alpha x IoU^beta take the object; a location that several objects want takes the one
        that its box overlaps most. The target score, 0..1, is the alignment, scaled so that the
        best location of an object gets the highest IoU among its locations (Feng et al. 2021,
        equations 1 to 3). An object without a candidate, such as one smaller than a cell, takes the
        location nearest to it; the target score is the IoU, at least LEAST_QUALITY.

        Both (P,).
        """
        num_locations = len(boxes)
        if not len(objects):
            return labels.new_full((num_locations,), -1), boxes.new_zeros(num_locations)
        candidates = _candidates(locations, objects, self.center_radius)  # (N, P)
        nearest = _nearest_to_unseen(locations, objects, candidates)  # (P,)
        candidates = candidates & (nearest < 0)
        overlaps = box_iou(objects, boxes)
        alignment = scores.T[labels] ** self.alpha * overlaps**self.beta
        alignment = alignment.where(candidates, 0.0)
        best = alignment.topk(min(self.top_k, num_locations), dim=1).values
        taken = (alignment > 0) & (alignment >= best[:, -1:])
        overlap, matched = overlaps.where(taken, -1.0).max(0)  # (P,)
        found = overlap >= 0

        taken = torch.zeros_like(taken).scatter_(0, matched[None], found[None])
        alignment = alignment.where(taken, 0.0)
        highest = overlaps.where(taken, 0.0).amax(1) / alignment.amax(1).clamp(min=TINY)
        matched, quality = matched.where(found, -1), (alignment * highest[:, None]).amax(0)
        at = (nearest >= 0).nonzero()[:, 0]
        matched[at] = nearest[at]
        quality[at] = overlaps[nearest[at], at].clamp(min=LEAST_QUALITY)
        return matched, quality


def _candidates(locations: Locations, objects: Tensor, radius: float) -> Tensor:
    """Whether each location is inside each object and near enough to its center: (N, P)."""
    x, y = locations.centers.T
    x1, y1, x2, y2 = objects[:, :, None].unbind(1)
    off_center = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    return locations.contained(objects) & (off_center < radius * locations.strides)


def _nearest_to_unseen(locations: Locations, objects: Tensor, candidates: Tensor) -> Tensor:
    """For each location the object (P,) without candidates that it is nearest to, or -1. The only
    candidate of another object stays that."""
    counts = candidates.sum(1)
    unseen = (counts == 0).nonzero()[:, 0]
    if not len(unseen):
        return counts.new_full((len(locations.centers),), -1)
    free = ~candidates[counts == 1].any(0)
    nearest = locations.nearest_of(objects[unseen], free.expand(len(unseen), -1))
    return unseen[nearest.clamp(min=0)].masked_fill(nearest < 0, -1)


class Branch(nn.Module):
    """Convolutions shared by all levels, each followed by a batch norm of its own level.

    Statistics differ between levels; one norm for all would fit none in evaluation.
    """

    def __init__(self, channels: int, out_channels: int, num_convs: int, num_levels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(num_convs)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(
            nn.ModuleList(BatchNorm(channels) for _ in range(num_convs)) for _ in range(num_levels)
        )
        self.predict = nn.Conv2d(channels, out_channels, 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, channels, h, w) map per level to (B, P, out_channels) in float32."""
        return self.predictions(self.hidden(maps))

    def hidden(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One (B, channels, h, w) map per level after the convolutions."""
        outputs = []
        for x, norms in zip(maps, self.norms, strict=True):
            for conv, norm in zip(self.convs, norms.children(), strict=True):
                x = F.relu(norm(conv(x)), inplace=True)
            outputs.append(x)
        return outputs

    def predictions(self, hidden: Sequence[Tensor]) -> Tensor:
        """One hidden map per level to (B, P, out_channels) in float32."""
        return torch.cat([cells_first(self.predict(x)) for x in hidden], 1)
