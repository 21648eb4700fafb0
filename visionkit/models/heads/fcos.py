"""FCOS: one-stage detection without anchor boxes (Tian et al. 2019, arXiv 1904.01355, 2006.09214).

Every cell of every level scores the classes, and tells how far it is from the sides of the object
that it lies in and how near to the object's center. Parameter names, outputs and losses are those
of `torchvision.models.detection.fcos_resnet50_fpn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

from visionkit.config.schema import Count, Fraction, Natural, NonNegative, Positive, Range
from visionkit.errors import ConfigError
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.ops.boxes import area, clip, to_original
from visionkit.ops.layers import group_norm
from visionkit.ops.losses import giou_loss, sigmoid_focal_loss
from visionkit.types import Batch, Dataset, Evaluator, Head, Level, Loss, Target

# --- The cells of FCOS: where they lie, and which object each of them has to detect.


class Points(NamedTuple):
    """Where the cells of all levels lie, one level after the other, in input pixels."""

    centers: Tensor  # (P, 2): x, y
    sizes: Tensor  # (P,): side of a cell
    smallest: Tensor  # (P,): the cell takes objects whose farthest side is farther off than this
    all_reduce_max: Tensor  # (P,): and nearer than this


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
        labels = [target["labels"] for target in targets]
        iscrowd = [t.get("iscrowd", torch.zeros_like(t["labels"]).bool()) for t in targets]
        # One empty box more, so that there is something to index in a batch without objects.
        columns = [[target["boxes"] for target in targets], labels, iscrowd]
        padded = [pad_sequence(column, batch_first=True) for column in columns]
        padded = [torch.cat([p, p.new_zeros(len(p), 1, *p.shape[2:])], 1) for p in padded]
        labeled = [target["labeled"] for target in targets if "labeled" in target]
        if labeled:
            every = torch.ones_like(labeled[0])
            labeled = [target.get("labeled", every) for target in targets]
        return cls(*padded, torch.stack(labeled) if labeled else None)


def match(points: Points, truth: Truth, radius: float) -> tuple[Tensor, Tensor]:
    """The object that each cell has to detect, or -1; and whether it lies in a crowd region.

    Both (B, P). A cell takes an object if its center is inside the box, within `radius` cell
    sides of the box's center, and the farthest side is in the range of its level; of several such
    objects the one with the smallest box.
    """
    x1, y1, x2, y2 = truth.boxes[:, None].unbind(-1)  # (B, 1, N) each
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    areas, iscrowd = area(truth.boxes)[:, None], truth.iscrowd[:, None]
    matched, ignored = [], []
    # About four million (cell, object) pairs at a time bound the memory.
    chunk = max(1, 2**22 // max(1, truth.labels.numel()))
    for some in zip(*(column.split(chunk) for column in points), strict=True):
        centers, sizes, smallest, all_reduce_max = (column[None, :, None] for column in some)
        x, y = centers.unbind(-1)  # (1, chunk, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (B, chunk, N)
        nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
        farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        off_center = torch.maximum((x - center_x).abs(), (y - center_y).abs())
        inside = nearest > 0
        takes = inside & ~iscrowd & (off_center < radius * sizes)
        takes &= (farthest > smallest) & (farthest < all_reduce_max)
        least, index = areas.where(takes, math.inf).min(2)
        matched.append(index.masked_fill(least.isinf(), -1))
        ignored.append((inside & iscrowd).any(2))
    return torch.cat(matched, 1), torch.cat(ignored, 1)


def decode(distances: Tensor, points: Points, point: Tensor) -> Tensor:
    """Boxes (N, 4) from `distances` (N, 4), in cells, around the cells numbered `point` (N,)."""
    centers = points.centers[point]
    pixels = distances * points.sizes[point][:, None]
    return torch.cat([centers - pixels[:, :2], centers + pixels[:, 2:]], 1)


def true_centerness(centers: Tensor, boxes: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its sides, for points (N, 2) within boxes (N, 4): (N,)."""
    before, after = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(before, after) / torch.maximum(before, after)  # (N, 2)
    return ratios.prod(1).sqrt()


def cells_of(
    levels: dict[str, Level], features: dict[str, Tensor], image_size: tuple[int, int]
) -> Points:
    """The cells of the `features` of `levels`, over images padded to `image_size` (h, w)."""
    strides = [level.stride for level in levels.values()]
    bounds = [0.0, *(4.0 * stride for stride in strides[1:]), math.inf]
    parts = []
    for i, (name, stride) in enumerate(zip(levels, strides, strict=True)):
        centers = grid(features[name], stride, image_size)
        constants = centers.new_tensor([stride, bounds[i], bounds[i + 1]])
        parts.append([centers, *constants[:, None].expand(3, len(centers))])
    return Points(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def grid(feature: Tensor, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Centers (h * w, 2), x and y in input pixels, of the cells of `feature` (B, C, h, w)."""
    h, w = feature.shape[-2:]
    # Levels coarser than 32 rarely divide the padded image. Like torchvision, whose weights
    # were trained so, their cells are spread evenly over it.
    step_y, step_x = (stride, stride) if stride <= 32 else (image_size[0] // h, image_size[1] // w)
    y = torch.arange(h, device=feature.device, dtype=torch.float32) * step_y
    x = torch.arange(w, device=feature.device, dtype=torch.float32) * step_x
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], 2).reshape(-1, 2)


Prior = Annotated[float, Range(low=0, high=0.5, open=True)]


class Output(NamedTuple):
    """What the convolutions give for each of the P cells, in float32."""

    class_logits: Tensor  # (B, P, K)
    distances: Tensor  # (B, P, 4): to the left, top, right, bottom side, in cells
    centerness_logits: Tensor  # (B, P)


class FCOS(Head):
    """Objects of any number, each with class, score and box.

    All levels need the same number of channels, as an FPN gives them. The score of a detection
    is sqrt(class probability x centerness).

    num_convs: convolutions before the predictors, in each of the two branches.
    norm: `group` normalization after each of them (the paper's), or `none`.
    center_radius: cells within so many cell sides of an object's center may detect it.
    focal_alpha, focal_gamma, prior: of the focal loss, and the class probability at the start
        (Lin et al. 2017).
    score_threshold, pre_nms_top_n: detections must score higher, and be among the best of their
        level, to enter the non-maximum suppression.
    nms_iou, max_detections: overlap at which the weaker of two detections of a class goes, and
        how many stay in an image.
    """

    required_targets = ("boxes", "labels")
    class_key = "labels"
    main_metric = "bbox/AP"

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
        nms_iou: Fraction = 0.6,
        max_detections: Count = 100,
        pre_nms_top_n: Count = 1000,
    ):
        super().__init__()
        self.levels = levels
        self.center_radius = center_radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.pre_nms_top_n = pre_nms_top_n
        self.head = Branches(common_channels(levels, "FCOS"), len(classes), num_convs, norm, prior)

    def forward(self, features: dict[str, Tensor]) -> Output:
        return self.head([features[name] for name in self.levels])

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Sums over the cells, divided by the number of cells that lie in an object.

        `classification` is the focal loss, `box_reg` 1 - GIoU, `centerness` cross-entropy. Cells
        in a crowd region are not taught that they show background, and none is taught anything
        about a class that is not labeled in its image, but by an object of that class.
        """
        output = self(features)
        labeled = [
            i for i, t in enumerate(batch.targets) if all(key in t for key in self.required_targets)
        ]
        if len(labeled) < len(batch):
            output = Output(*(tensor[labeled] for tensor in output))
        points = cells_of(self.levels, features, batch.images.shape[-2:])
        truth = Truth.of([batch.targets[i] for i in labeled], output.distances.device)
        matched, ignored = match(points, truth, self.center_radius)
        return self._losses(output, points, truth, matched, ignored)

    def _losses(
        self, output: Output, points: Points, truth: Truth, matched: Tensor, ignored: Tensor
    ) -> dict[str, Loss]:
        found = matched >= 0  # (B, P)
        count = found.sum()
        labels = truth.labels.gather(1, matched.clamp(min=0)).masked_fill(~found, -1)
        one_hot = labels[..., None] == torch.arange(
            output.class_logits.shape[-1], device=labels.device
        )
        class_losses = sigmoid_focal_loss(
            output.class_logits, one_hot, alpha=self.focal_alpha, gamma=self.focal_gamma
        )

        taught = (found | ~ignored)[..., None].expand_as(one_hot)  # (B, P, K)
        if truth.labeled is not None:
            taught = taught & (truth.labeled[:, None] | one_hot)

        image, point = found.nonzero(as_tuple=True)
        truth_boxes = truth.boxes[image, matched[image, point]]
        boxes = decode(output.distances[image, point], points, point)
        centerness = true_centerness(points.centers[point], truth_boxes)
        centerness_losses = F.binary_cross_entropy_with_logits(
            output.centerness_logits[image, point], centerness, reduction="sum"
        )
        return {
            "classification": Loss((class_losses * taught).sum(), count),
            "box_reg": Loss(giou_loss(boxes, truth_boxes).sum(), count),
            "centerness": Loss(centerness_losses, count),
        }

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[dict[str, Any]]:
        """Each image's `boxes` (N, 4), `scores` (N,) and `labels` (N,), best first."""
        output = self(features)
        points = cells_of(self.levels, features, batch.images.shape[-2:])
        scores = (
            output.class_logits.sigmoid() * output.centerness_logits.sigmoid()[..., None]
        ).sqrt()
        per_level = [features[name].shape[-2:].numel() for name in self.levels]
        detections = []
        for image, target in enumerate(batch.targets):
            point, labels, best = best_candidates(
                scores[image],
                per_level,
                threshold=self.score_threshold,
                most=self.pre_nms_top_n,
            )
            boxes = decode(output.distances[image, point], points, point)
            boxes = clip(boxes, target["size"])
            keep = batched_nms(boxes, best, labels, self.nms_iou)[: self.max_detections]
            boxes = to_original(boxes[keep], target["size"], target["orig_size"])
            detections.append({"boxes": boxes, "scores": best[keep], "labels": labels[keep]})
        return detections

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox",))


def best_candidates(
    scores: Tensor, per_level: Sequence[int], *, threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cell, class and score of the detections worth a look among `scores` (P, K): those above
    `threshold`, at most `most` of each level."""
    num_classes = scores.shape[1]
    cells, labels, best = [], [], []
    first_cell = 0
    for level_scores in scores.split(per_level):
        flat = level_scores.flatten()
        passed = (flat > threshold).nonzero()[:, 0]
        top = flat[passed].topk(min(len(passed), most))
        passed = passed[top.indices]
        cells.append(first_cell + passed // num_classes)
        labels.append(passed % num_classes)
        best.append(top.values)
        first_cell += len(level_scores)
    return torch.cat(cells), torch.cat(labels), torch.cat(best)


def common_channels(levels: dict[str, Level], head: str) -> int:
    channels = {name: level.channels for name, level in levels.items()}
    if len(set(channels.values())) > 1:
        raise ConfigError(
            f"{head} needs feature maps of equal channels, got {channels}; "
            "add `neck: {type: FPN}`"
        )
    return next(iter(channels.values()))


class Branches(nn.Module):
    """The convolutions, shared by all levels. Names are torchvision's."""

    def __init__(self, channels: int, num_classes: int, num_convs: int, norm: str, prior: float):
        super().__init__()
        self.classification_head = ClassBranch(channels, num_classes, num_convs, norm, prior)
        self.regression_head = BoxBranch(channels, num_convs, norm)

    def forward(self, levels: Sequence[Tensor]) -> Output:
        class_logits, distances, centerness_logits = [], [], []
        for level in levels:
            class_logits.append(cells_first(self.classification_head(level)))
            boxes, centerness = self.regression_head(level)
            distances.append(cells_first(boxes))
            centerness_logits.append(cells_first(centerness)[..., 0])
        return Output(
            torch.cat(class_logits, 1), torch.cat(distances, 1), torch.cat(centerness_logits, 1)
        )


class ClassBranch(nn.Module):
    def __init__(self, channels: int, num_classes: int, num_convs: int, norm: str, prior: float):
        super().__init__()
        self.conv = tower(channels, num_convs, norm)
        self.cls_logits = conv3x3(channels, num_classes)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, feature: Tensor) -> Tensor:
        return self.cls_logits(self.conv(feature))


class BoxBranch(nn.Module):
    def __init__(self, channels: int, num_convs: int, norm: str):
        super().__init__()
        self.conv = tower(channels, num_convs, norm)
        self.bbox_reg = conv3x3(channels, 4)
        self.bbox_ctrness = conv3x3(channels, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.conv(feature)
        return self.bbox_reg(feature).relu(), self.bbox_ctrness(feature)


def tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(conv3x3(channels, channels))
        if norm == "group":
            layers.append(group_norm(channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def cells_first(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C) in float32."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).float()
