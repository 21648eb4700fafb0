"""FCOS: one-stage detection without anchor boxes (Tian et al. 2019, arXiv 1904.01355, 2006.09214).

Every location of every level scores the classes and predicts the distances to the sides of the
object that it lies in, and how near it is to the object's center. Parameter names, outputs and
losses are those of `torchvision.models.detection.fcos_resnet50_fpn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visionkit.config.schema import Fraction, Natural, NonNegative, Positive
from visionkit.models.heads.dense import (
    DenseHead,
    Locations,
    Prior,
    cells_first,
    init_small,
    locations_of,
    prior_bias,
)
from visionkit.ops.boxes import area
from visionkit.ops.layers import group_norm
from visionkit.ops.losses import giou_loss, sigmoid_focal_loss
from visionkit.types import Batch, Features, Level, Loss, Target


class Output(NamedTuple):
    """What the convolutions give for each of the P locations, in float32."""

    class_logits: Tensor  # (B, P, K)
    distances: Tensor  # (B, P, 4): to the left, top, right, bottom side, in cells
    centerness_logits: Tensor  # (B, P)


class FCOS(DenseHead):
    """One-stage detection without anchors (Tian et al. 2019).

    All levels need the same number of channels, as those of an FPN have. The score of a detection
    is sqrt(class probability x centerness).

    num_convs: convolutions before the predictors, in each of the two branches.
    norm: `group` normalization after each of them (the paper's), or `none`.
    center_radius: locations within so many cells of an object's center may detect it.
    focal_alpha, focal_gamma, prior: of the focal loss, and the class probability at the start
        (Lin et al. 2017).
    kwargs: the other arguments of `DenseHead`.
    """

    class_layers: ClassVar[dict[str, int]] = {"head.classification_head.cls_logits": 1}

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        num_convs: Natural = 4,
        norm: Literal["group", "none"] = "group",
        center_radius: Positive = 1.5,
        focal_alpha: Fraction = 0.25,
        focal_gamma: NonNegative = 2.0,
        prior: Prior = 0.01,
        score_threshold: Fraction = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, score_threshold=score_threshold, **kwargs)
        self.center_radius = center_radius
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.head = Branches(self.channels, len(classes), num_convs, norm, prior)

    def outputs(self, features: Features) -> Output:
        return self.head([features[name] for name in self.levels])

    def dense_predictions(self, features: Features) -> tuple[Tensor, Tensor, Locations]:
        output = self.outputs(features)
        centerness = output.centerness_logits.sigmoid()[..., None]
        scores = (output.class_logits.sigmoid() * centerness).sqrt()
        return scores, output.distances, locations_of(self.levels, features)

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """Sums over the locations; the count is of those that lie in an object.

        `classification` is the focal loss, `box_reg` 1 - GIoU, `centerness` cross-entropy.
        Locations in a crowd region do not learn that they show background, and none learns
        anything about a class that is not labeled in its image, but from an object of that class.
        """
        output = self.outputs(features)
        labeled = [
            i for i, t in enumerate(batch.targets) if all(key in t for key in self.required_targets)
        ]
        if len(labeled) < len(batch):
            output = Output(*(tensor[labeled] for tensor in output))
        truth = Truth.of([batch.targets[i] for i in labeled], output.distances.device)
        return self._losses(output, locations_of(self.levels, features), truth)

    def _losses(self, output: Output, locations: Locations, truth: Truth) -> dict[str, Loss]:
        ranges = side_ranges(self.levels, locations)
        matched, ignored = match(locations, ranges, truth, self.center_radius)
        found = matched >= 0  # (B, P)
        labels = truth.labels.gather(1, matched.clamp(min=0)).masked_fill(~found, -1)
        classes = torch.arange(output.class_logits.shape[-1], device=labels.device)
        one_hot = labels[..., None] == classes
        class_losses = sigmoid_focal_loss(
            output.class_logits, one_hot, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        loss_mask = (found | ~ignored)[..., None].expand_as(one_hot)  # (B, P, K)
        if truth.labeled is not None:
            loss_mask = loss_mask & (truth.labeled[:, None] | one_hot)

        image, index = found.nonzero(as_tuple=True)
        true_boxes = truth.boxes[image, matched[image, index]]
        boxes = locations.boxes(output.distances[image, index], index)
        centerness_losses = F.binary_cross_entropy_with_logits(
            output.centerness_logits[image, index],
            true_centerness(locations.centers[index], true_boxes),
            reduction="sum",
        )
        count = found.sum()
        return {
            "classification": Loss((class_losses * loss_mask).sum(), count),
            "box_reg": Loss(giou_loss(boxes, true_boxes).sum(), count),
            "centerness": Loss(centerness_losses, count),
        }


class Truth(NamedTuple):
    """The objects of a batch, padded with empty boxes to one number N >= 1."""

    boxes: Tensor  # (B, N, 4)
    labels: Tensor  # (B, N)
    iscrowd: Tensor  # (B, N)
    labeled: Tensor | None  # (B, K) bool; None: all classes everywhere

    @classmethod
    def of(cls, targets: Sequence[Target], device: torch.device) -> Truth:
        boxes = torch.zeros(0, 1, 4, device=device)
        if not targets:
            return cls(boxes, boxes[..., 0].long(), boxes[..., 0].bool(), None)
        iscrowd = [t.get("iscrowd", torch.zeros_like(t["labels"]).bool()) for t in targets]
        labeled = [target["labeled"] for target in targets if "labeled" in target]
        if labeled:
            every = torch.ones_like(labeled[0])
            labeled = [target.get("labeled", every) for target in targets]
        return cls(
            _padded([target["boxes"] for target in targets]),
            _padded([target["labels"] for target in targets]),
            _padded(iscrowd),
            torch.stack(labeled) if labeled else None,
        )


def _padded(rows: list[Tensor]) -> Tensor:
    """Rows (N, ...) of each image as (B, N + 1, ...), padded with zeros.

    The last is always padding, so that a batch without objects has one to index.
    """
    padded = pad_sequence(rows, batch_first=True)
    return torch.cat([padded, padded.new_zeros(len(rows), 1, *padded.shape[2:])], 1)


def side_ranges(levels: dict[str, Level], locations: Locations) -> Tensor:
    """For each location the range (P, 2) of the farthest side of the objects that it detects."""
    bounds = [0.0, *(4.0 * level.stride for level in [*levels.values()][1:]), math.inf]
    pairs = locations.centers.new_tensor([*pairwise(bounds)])
    counts = torch.tensor(locations.per_level, device=pairs.device)
    return pairs.repeat_interleave(counts, 0, output_size=len(locations.centers))


def match(
    locations: Locations, ranges: Tensor, truth: Truth, radius: float
) -> tuple[Tensor, Tensor]:
    """The object that each location has to detect, or -1; and whether it lies in a crowd region.

    Both (B, P). A location takes an object if it is inside the box, within `radius` cells of the
    box's center, and its farthest side is in `ranges` (P, 2); of several such objects the one
    with the smallest box. An object that no location takes gets the nearest one.
    """
    x1, y1, x2, y2 = truth.boxes[:, None].unbind(-1)  # (B, 1, N) each
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    areas, iscrowd = area(truth.boxes)[:, None], truth.iscrowd[:, None]
    matched, ignored = [], []
    counts = torch.zeros_like(truth.labels)  # of the locations that take an object
    # About four million pairs of location and object at a time bound the memory.
    chunk = max(1, 2**22 // max(1, truth.labels.numel()))
    columns = locations.centers, locations.strides, ranges
    for centers, strides, limits in zip(*(c.split(chunk) for c in columns), strict=True):
        x, y = centers[None, :, None].unbind(-1)  # (1, chunk, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (B, chunk, N)
        nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
        farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        off_center = torch.maximum((x - center_x).abs(), (y - center_y).abs())
        inside = nearest > 0
        takes = inside & ~iscrowd & (off_center < radius * strides[:, None])
        takes &= (farthest > limits[:, :1]) & (farthest < limits[:, 1:])
        counts += takes.sum(1)
        least, index = areas.where(takes, math.inf).min(2)
        matched.append(index.masked_fill(least.isinf(), -1))
        ignored.append((inside & iscrowd).any(2))
    all_matched = _with_unseen(torch.cat(matched, 1), counts, locations, ranges, truth)
    return all_matched, torch.cat(ignored, 1)


def _with_unseen(
    matched: Tensor, counts: Tensor, locations: Locations, ranges: Tensor, truth: Truth
) -> Tensor:
    """The matches (B, P) with objects that no location takes, such as those smaller than a cell: of
    the level whose range has half their longest side, the nearest location takes them, unless it is
    the only one of another object."""
    unseen = (counts == 0) & ~truth.iscrowd & (area(truth.boxes) > 0)
    for image in unseen.any(1).nonzero()[:, 0].tolist():
        objects = unseen[image].nonzero()[:, 0]
        boxes = truth.boxes[image, objects]
        half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
        allowed = (half >= ranges[:, 0]) & (half < ranges[:, 1])
        only = (matched[image] >= 0) & (counts[image, matched[image].clamp(min=0)] == 1)
        nearest = locations.nearest_of(boxes, allowed & ~only)
        taken = objects[nearest.clamp(min=0)]
        matched[image] = torch.where(nearest >= 0, taken, matched[image])
    return matched


def true_centerness(centers: Tensor, boxes: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its sides, for points (N, 2) and boxes (N, 4): (N,). 1 for a
    point outside of its box: it is the only one that detects the object."""
    before, after = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(before, after) / torch.maximum(before, after)  # (N, 2)
    inside = (ratios > 0).all(1)
    return ratios.prod(1).where(inside, 1.0).sqrt()


class Branches(nn.Module):
    """The convolutions, shared by all levels. Names are torchvision's."""

    def __init__(self, channels: int, num_classes: int, num_convs: int, norm: str, prior: float):
        super().__init__()
        self.classification_head = Branch(channels, num_convs, norm, {"cls_logits": num_classes})
        self.regression_head = Branch(channels, num_convs, norm, {"bbox_reg": 4, "bbox_ctrness": 1})
        bias = self.classification_head.get_parameter("cls_logits.bias")
        nn.init.constant_(bias, prior_bias(prior))

    def forward(self, levels: Sequence[Tensor]) -> Output:
        maps = [[*self.classification_head(x), *self.regression_head(x)] for x in levels]
        class_logits, distances, centerness_logits = (
            torch.cat([cells_first(of_level) for of_level in column], 1)
            for column in zip(*maps, strict=True)
        )
        return Output(class_logits, distances.relu(), centerness_logits[..., 0])


class Branch(nn.Module):
    """Convolutions, and on the last of them a predictor for each of `outputs`, by channels."""

    def __init__(self, channels: int, num_convs: int, norm: str, outputs: dict[str, int]):
        super().__init__()
        self.conv = nn.Sequential()
        for _ in range(num_convs):
            self.conv.append(conv3x3(channels, channels))
            if norm == "group":
                self.conv.append(group_norm(channels))
            self.conv.append(nn.ReLU())
        self.outputs = list(outputs)
        for name, out_channels in outputs.items():
            self.add_module(name, conv3x3(channels, out_channels))

    def forward(self, feature: Tensor) -> list[Tensor]:
        feature = self.conv(feature)
        return [self.get_submodule(name)(feature) for name in self.outputs]


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    init_small(conv)
    return conv
