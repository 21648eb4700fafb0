"""Region proposal network: where there may be an object, of whatever class (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from visionkit.errors import ConfigError
from visionkit.models.heads.rcnn.matching import GroundTruth, MatcherSampler
from visionkit.ops.boxes import clip, decode, encode
from visionkit.types import Level, Loss

# --- Anchors: the boxes from which region proposals are measured (Ren et al. 2015).


class AnchorGenerator(nn.Module):
    """The same few boxes around the corner of every cell of every level.

    sizes: for each level, the square roots of the anchors' areas, in input pixels; by default one
        size, eight times the stride. Every level has equally many, since they share one predictor.
    ratios: height divided by width. Each size comes in each ratio.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        sizes: Sequence[Sequence[float]] | None,
        ratios: Sequence[float],
    ) -> None:
        super().__init__()
        if sizes is None:
            sizes = [[8 * level.stride] for level in levels.values()]
        lengths = [len(level_sizes) for level_sizes in sizes]
        if len(lengths) != len(levels) or len(set(lengths)) != 1:
            raise ConfigError(
                f"anchor_sizes: got lists of {lengths} sizes; give equally many for each of the "
                f"{len(levels)} levels {[*levels]}"
            )
        self.per_cell = lengths[0] * len(ratios)
        if not self.per_cell:
            raise ConfigError("anchor_sizes, anchor_ratios: give at least one of each")
        shapes = torch.stack([_shapes(level_sizes, ratios) for level_sizes in sizes])
        self.register_buffer("shapes", shapes, persistent=False)  # (levels, A, 4)

    def forward(self, pyramid: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """All anchors (N, 4), level by level, row by row, for images padded to `image_size`."""
        return torch.cat(
            [
                _at_every_cell(shapes, cells.shape[-2:], image_size)
                for shapes, cells in zip(self.shapes, pyramid, strict=True)
            ]
        )


def _shapes(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors (A, 4) around the origin, in whole pixels, ratio by ratio."""
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    scale = torch.tensor(sizes, dtype=torch.float32)
    w, h = (scale * (1 / root)).flatten(), (scale * root).flatten()
    return (torch.stack([-w, -h, w, h], dim=1) / 2).round()


def _at_every_cell(shapes: Tensor, grid: Sequence[int], image_size: tuple[int, int]) -> Tensor:
    stride_y, stride_x = (pixels // cells for pixels, cells in zip(image_size, grid, strict=True))
    y = torch.arange(grid[0], device=shapes.device) * stride_y
    x = torch.arange(grid[1], device=shapes.device) * stride_x
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1)  # (h, w, 4)
    return (corners[:, :, None] + shapes).view(-1, 4)


MIN_EXTENT = 1e-3  # pixels; proposals that are thinner than that are dropped


class RPNOutput(NamedTuple):
    """What the network says about every anchor."""

    logits: Tensor  # (B, N)
    offsets: Tensor  # (B, N, 4)
    anchors: Tensor  # (N, 4)
    per_level: list[int]  # how many of the N belong to each level


class Counts(NamedTuple):
    """Most proposals per level before non-maximum suppression, and per image after it."""

    pre_nms: int
    post_nms: int


class RPNHead(nn.Module):
    """Convolutions that all levels share: for each of A anchors per cell a logit and offsets."""

    def __init__(self, channels: int, anchors_per_cell: int, convs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
                for _ in range(convs)
            )
        )
        self.cls_logits = nn.Conv2d(channels, anchors_per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors_per_cell, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, C, h, w): logits (B, h * w * A) and offsets (B, h * w * A, 4)."""
        hidden = self.conv(cells)
        logits = self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.bbox_pred(hidden).permute(0, 2, 3, 1).flatten(1)
        return logits, offsets.unflatten(1, (-1, 4))


class RPN(nn.Module):
    """Scores every anchor, and proposes the best that do not repeat each other.

    train, test: how many proposals, for the second stage to learn from and for predictions.
    nms_iou: of two proposals of one level that overlap more than that, the worse goes.
    score_threshold: the least probability of an object.
    """

    def __init__(
        self,
        levels: dict[str, Level],
        anchors: AnchorGenerator,
        sampler: MatcherSampler,
        *,
        convs: int,
        train: Counts,
        test: Counts,
        nms_iou: float,
        score_threshold: float,
    ) -> None:
        super().__init__()
        self.levels = list(levels)
        self.anchors = anchors
        self.head = RPNHead(levels[self.levels[0]].channels, anchors.per_cell, convs)
        self.sampler = sampler
        self.train_counts, self.test_counts = train, test
        self.nms_iou = nms_iou
        self.score_threshold = score_threshold

    def forward(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> RPNOutput:
        """`image_size` is the (h, w) of the batch with its padding."""
        pyramid = [features[name] for name in self.levels]
        logits, offsets = zip(*(self.head(cells) for cells in pyramid), strict=True)
        return RPNOutput(
            torch.cat(logits, 1),
            torch.cat(offsets, 1),
            self.anchors(pyramid, image_size),
            [level.shape[1] for level in logits],
        )

    @torch.no_grad()
    def propose(
        self, candidates: RPNOutput, sizes: Sequence[tuple[int, int]], counts: Counts
    ) -> list[Tensor]:
        """For each image boxes (N, 4) within its valid size, the best first."""
        boxes, logits, levels = _best_of_each_level(candidates, counts.pre_nms)
        return [
            self._without_repetitions(clip(image_boxes, size), scores, levels)[: counts.post_nms]
            for image_boxes, scores, size in zip(boxes, logits.sigmoid(), sizes, strict=True)
        ]

    def _without_repetitions(self, boxes: Tensor, scores: Tensor, levels: Tensor) -> Tensor:
        extent = boxes[:, 2:] - boxes[:, :2]
        keep = (extent >= MIN_EXTENT).all(1) & (scores >= self.score_threshold)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        return boxes[batched_nms(boxes, scores, levels, self.nms_iou)]

    def loss(self, candidates: RPNOutput, objects: Sequence[GroundTruth]) -> dict[str, Loss]:
        """`objectness` and `rpn_box`, each divided by the number of anchors drawn.

        Where some classes are not labeled, an anchor that is taken for an object and matches
        none may be one of theirs; it is not taught that it shows background.
        """
        anchors = candidates.anchors
        logits, truths, offsets, goals = [], [], [], []
        for index, image_objects in enumerate(objects):
            unsure = candidates.logits[index] > 0 if image_objects.partially_labeled else None
            matched, positive, negative = self.sampler(anchors, image_objects, unsure)
            logits.append(candidates.logits[index, torch.cat([positive, negative])])
            truths.append(torch.ones(len(positive), device=anchors.device))
            truths.append(torch.zeros(len(negative), device=anchors.device))
            offsets.append(candidates.offsets[index, positive])
            goals.append(encode(image_objects.boxes[matched[positive]], anchors[positive]))
        truth = torch.cat(truths)
        sampled = truth.new_full((), len(truth))
        objectness = F.binary_cross_entropy_with_logits(
            torch.cat(logits).float(), truth, reduction="sum"
        )
        box = F.smooth_l1_loss(
            torch.cat(offsets).float(), torch.cat(goals), beta=1 / 9, reduction="sum"
        )
        return {"objectness": Loss(objectness, sampled), "rpn_box": Loss(box, sampled)}


def _best_of_each_level(candidates: RPNOutput, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, n, 4), logits (B, n) and level indices (n,) of the highest logits per level."""
    parts = zip(
        candidates.logits.float().split(candidates.per_level, 1),
        candidates.offsets.float().split(candidates.per_level, 1),
        candidates.anchors.split(candidates.per_level),
        strict=True,
    )
    boxes, logits, levels = [], [], []
    for index, (level_logits, offsets, anchors) in enumerate(parts):
        best, where = level_logits.topk(min(count, len(anchors)), dim=1)
        offsets = offsets.gather(1, where[:, :, None].expand(-1, -1, 4))
        boxes.append(decode(offsets, anchors[where]))
        logits.append(best)
        levels.append(torch.full_like(where[0], index))
    return torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(levels)
