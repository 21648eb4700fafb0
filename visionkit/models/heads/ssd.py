"""SSD: one-stage detection from default boxes of many scales (Liu et al. 2016, arXiv 1512.02325),
and SSDLite, its form for phones (Sandler et al. 2018, 1801.04381).

Every default box scores background and the classes and predicts the offsets that lead from it to
the box of an object. Parameter names, outputs and losses are those of torchvision's `ssd300_vgg16`
and `ssdlite320_mobilenet_v3_large`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Natural, NonNegative, Positive
from visionkit.errors import ConfigError
from visionkit.models.heads.dense import Anchors, DenseHead, cells_first, padded_size
from visionkit.models.heads.matching import (
    BACKGROUND,
    GroundTruth,
    Matcher,
    ground_truth_of,
    labeled,
    marginal_targets,
    zero_losses,
)
from visionkit.ops.boxes import OFFSET_WEIGHTS, box_iou, clip, encode
from visionkit.ops.layers import cell_corners, init_convs, init_lite, lite_conv
from visionkit.ops.losses import marginal_cross_entropy
from visionkit.types import Batch, Features, Level, Loss

TERMS = ("classification", "box_reg")


class SSD(DenseHead):
    """One-stage detection from default boxes of many scales (Liu et al. 2016), lite or not.

    Each level has predictors of its own, so levels may differ in channels: those of the neck
    `SSDExtra` or of any other.

    box_sizes: side of the square default box of each level, and one more, in pixels; by default
        [4 * stride], and twice the last. A second square has the geometric mean of two of them.
    box_ratios: for each level the ratios of the sides of more boxes of the same area as the first,
        each of them upright and lying; by default [2, 3].
    max_box: longest side of a default box, in pixels; null: no limit.
    steps: for each level the pixels between the centers of boxes; by default the boxes are spread
        evenly over the image.
    lite: whether the predictors are depthwise separable.
    fg_iou: a default box detects an object that it overlaps by at least this, or more than any
        other box does.
    negative_ratio, min_negatives: background boxes in the loss, the hardest of an image: so many
        for each box with an object, and at least so many. torchvision's and the paper's least is
        0, with which images without objects teach nothing.
    score_threshold, pre_nms_top_n: detections must score higher, and be among the best of their
        class, to enter the non-maximum suppression.
    kwargs: the other arguments of `DenseHead`.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        box_sizes: list[Positive] | None = None,
        box_ratios: list[list[Positive]] | None = None,
        max_box: Positive | None = None,
        steps: list[Positive] | None = None,
        lite: bool = False,
        fg_iou: Fraction = 0.5,
        negative_ratio: NonNegative = 3.0,
        min_negatives: Natural = 3,
        score_threshold: Fraction = 0.01,
        pre_nms_top_n: Count = 400,
        nms_iou: Fraction = 0.45,
        max_detections: Count = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            levels,
            score_threshold=score_threshold,
            pre_nms_top_n=pre_nms_top_n,
            nms_iou=nms_iou,
            max_detections=max_detections,
            **kwargs,
        )
        self.cell = None  # a default box detects an object smaller than a cell, too
        self.boxes = DefaultBoxes(levels, box_sizes, box_ratios, max_box, steps)
        self.matcher = Matcher(fg_iou, fg_iou, best_for_each=False)
        self.negative_ratio, self.min_negatives = negative_ratio, min_negatives
        per_cell = self.boxes.per_cell
        self.head = nn.ModuleDict(
            {
                "classification_head": Predictors(levels, per_cell, len(classes) + 1, lite),
                "regression_head": Predictors(levels, per_cell, 4, lite),
            }
        )
        layer = "head.classification_head.module_list.{}" + (".1" if lite else "")
        names = [layer.format(number) for number in range(len(levels))]
        self.class_layers = dict.fromkeys(names, 1)  # type: ignore[misc]  # by number of levels
        self.class_groups = dict(zip(names, per_cell, strict=True))

    def outputs(self, features: Features) -> tuple[Tensor, Tensor]:
        """Logits (B, P, 1 + K), background first, and offsets (B, P, 4), in float32."""
        maps = [features[name] for name in self.levels]
        logits, offsets = (predictors(maps) for predictors in self.head.values())
        return logits, offsets

    def dense_predictions(self, features: Features) -> tuple[Tensor, Tensor, Anchors]:
        logits, offsets = self.outputs(features)
        return logits.softmax(2)[..., 1:], offsets, self.boxes(features)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """The best of each class, M in all: `boxes` (B, M, 4) in input pixels, `scores` and
        `labels` (B, M). M depends on the size of the batch's images and `pre_nms_top_n` alone."""
        scores, offsets, anchors = self.dense_predictions(features)
        most = torch.sym_min(self.pre_nms_top_n, scores.shape[1])
        top, index = scores.mT.topk(most, 2)  # (B, K, M / K)
        boxes = clip(anchors.boxes(offsets), anchors.image_size if sizes is None else sizes)
        labels = torch.arange(top.shape[1], device=top.device)[:, None].expand_as(top)
        return {
            "boxes": boxes.gather(1, index.flatten(1)[..., None].expand(-1, -1, 4)),
            "scores": top.flatten(1),
            "labels": labels.flatten(1),
        }

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Sums over the default boxes; the count is of those with an object.

        `classification` is the cross-entropy of the boxes with an object and of the hardest of the
        others, `box_reg` smooth L1 of the offsets. Boxes in a crowd region do not learn that they
        show background. Where some classes are not labeled, a box without an object shows
        background or one of these, as in the second stage of `FasterRCNN`.
        """
        features, batch = labeled(features, batch, self.required_targets)
        if not len(batch):
            return zero_losses(self, features, TERMS)
        logits, offsets = self.outputs(features)
        anchors = self.boxes(features).corners
        truths = [ground_truth_of(target) for target in batch.targets]
        matched = torch.stack([self._match(anchors, truth) for truth in truths])
        found = matched >= 0  # (B, P)
        image, index = found.nonzero(as_tuple=True)
        own = [objects[objects >= 0] for objects in matched]
        classes = torch.zeros_like(matched)
        pairs = [*zip(truths, own, strict=True)]
        classes[image, index] = torch.cat([truth.labels[objects] + 1 for truth, objects in pairs])

        class_losses = _class_losses(logits, classes, truths)
        wanted = (self.negative_ratio * found.sum(1)).clamp(min=self.min_negatives)
        background = class_losses.masked_fill(matched != BACKGROUND, 0)
        hardest = background.sort(1, descending=True).values
        drawn = torch.arange(hardest.shape[1], device=wanted.device) < wanted[:, None]
        classification = class_losses[image, index].sum() + (hardest * drawn).sum()

        boxes = torch.cat([truth.boxes[objects] for truth, objects in pairs])
        targets = encode(boxes, anchors[index], OFFSET_WEIGHTS)
        box_reg = F.smooth_l1_loss(offsets[image, index], targets, reduction="sum")
        count = found.sum()
        return {"classification": Loss(classification, count), "box_reg": Loss(box_reg, count)}

    def _match(self, anchors: Tensor, truth: GroundTruth) -> Tensor:
        """For each anchor (P, 4) the index of its object, or what `Matcher` says: (P,) int64. An
        object has the anchor that overlaps it most, whatever other objects that overlaps; of
        several objects with one such anchor, the last."""
        matched = self.matcher(anchors, truth)
        if not len(truth.boxes):
            return matched
        overlap, best = box_iou(truth.boxes, anchors).max(1)
        objects = torch.arange(len(best), device=best.device)[overlap > 0]
        own = torch.full_like(matched, -1).scatter_reduce(0, best[overlap > 0], objects, "amax")
        return torch.where(own >= 0, own, matched)


def _class_losses(logits: Tensor, classes: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
    """Cross-entropy (B, P) of `logits` (B, P, 1 + K) with `classes` (B, P), 0 for background; in
    partly labeled images `marginal_cross_entropy`."""
    flat = logits.flatten(0, 1)  # for (B, P) at once, a GPU has no deterministic algorithm
    if not any(truth.partially_labeled for truth in truths):
        losses = F.cross_entropy(flat, classes.flatten(), reduction="none")
        return losses.view_as(classes)
    num_classes = logits.shape[2] - 1
    every = torch.ones(num_classes, dtype=torch.bool, device=logits.device)
    known = torch.stack([every if t.labeled is None else t.labeled for t in truths])
    possible = F.one_hot(classes, num_classes + 1).bool()
    possible[..., 1:] |= (classes == 0)[..., None] & ~known[:, None]
    targets = marginal_targets(flat.detach(), possible.flatten(0, 1))
    return marginal_cross_entropy(flat, targets).view_as(classes)


class DefaultBoxes(nn.Module):
    """Boxes of fixed shapes around the center of every cell of every level; arguments as of `SSD`.

    per_cell: their number in a cell of each level.
    """

    shapes: Tensor

    def __init__(
        self,
        levels: dict[str, Level],
        sizes: Sequence[float] | None,
        ratios: Sequence[Sequence[float]] | None,
        max_box: float | None,
        steps: Sequence[float] | None,
    ) -> None:
        super().__init__()
        strides = [level.stride for level in levels.values()]
        sizes = [4 * stride for stride in (*strides, 2 * strides[-1])] if sizes is None else sizes
        ratios = [[2, 3] for _ in strides] if ratios is None else ratios
        for key, given, count in (
            ("box_sizes", sizes, len(levels) + 1),
            ("box_ratios", ratios, len(levels)),
            ("steps", steps or strides, len(levels)),
        ):
            if len(given) != count:
                more = " and one more" if count > len(levels) else ""
                raise ConfigError(
                    f"{key}: got {len(given)}; expected one for each of the {len(levels)} levels "
                    f"{[*levels]}{more}"
                )
        self.levels, self.steps = levels, steps
        self.per_cell = [2 + 2 * len(of_level) for of_level in ratios]
        shapes = [
            _shapes(size, math.sqrt(size * larger), of_level)
            for size, larger, of_level in zip(sizes, sizes[1:], ratios, strict=False)
        ]
        limited = torch.cat(shapes).clamp(max=math.inf if max_box is None else max_box)
        self.register_buffer("shapes", limited, persistent=False)  # (sum of per_cell, 2)

    def forward(self, features: Features) -> Anchors:
        image_size = padded_size(self.levels, features)
        corners = []
        for number, shapes in enumerate(self.shapes.split(self.per_cell)):
            grid = features[[*self.levels][number]].shape[-2:]
            if self.steps is None:
                step = image_size[0] / grid[0], image_size[1] / grid[1]
            else:
                step = self.steps[number], self.steps[number]
            x, y = cell_corners(grid, step, shapes.device).unbind(1)
            centers = torch.stack([x + step[1] / 2, y + step[0] / 2], 1)[:, None]
            corners.append(torch.cat([centers - shapes / 2, centers + shapes / 2], 2).flatten(0, 1))
        per_level = [part.shape[0] for part in corners]
        return Anchors(torch.cat(corners), per_level, image_size, OFFSET_WEIGHTS)


def _shapes(size: float, second: float, ratios: Sequence[float]) -> Tensor:
    """Widths and heights (2 + 2 * ratios, 2) of the default boxes of a level."""
    pairs = [(size, size), (second, second)]
    for ratio in ratios:
        long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
        pairs += [(long, short), (short, long)]
    return torch.tensor(pairs)


class Predictors(nn.Module):
    """A predictor for each level, with so many outputs for each default box. Names are
    torchvision's."""

    def __init__(
        self, levels: dict[str, Level], per_cell: Sequence[int], outputs: int, lite: bool
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.module_list = nn.ModuleList()
        for level, count in zip(levels.values(), per_cell, strict=True):
            width, out = level.channels, count * outputs
            if lite:
                depthwise = lite_conv(width, width, kernel=3, depthwise=True)
                block = nn.Sequential(depthwise, nn.Conv2d(width, out, 1))
                self.module_list.append(init_lite(block))
            else:
                conv = nn.Conv2d(width, out, 3, padding=1)
                self.module_list.append(init_convs(conv, nn.init.xavier_uniform_))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) of each level to (B, P, outputs) in float32."""
        found = [
            cells_first(predict(x)).unflatten(2, (-1, self.outputs)).flatten(1, 2)
            for predict, x in zip(self.module_list, maps, strict=True)
        ]
        return torch.cat(found, 1)
