"""The cells of FCOS: where they lie, and which object each of them has to detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visionkit.boxes import area
from visionkit.types import Level, Target


class Points(NamedTuple):
    """Where the cells of all levels lie, one level after the other, in input pixels."""

    centers: Tensor  # (P, 2): x, y
    sizes: Tensor  # (P,): side of a cell
    smallest: Tensor  # (P,): the cell takes objects whose farthest side is farther off than this
    largest: Tensor  # (P,): and nearer than this


class Truth(NamedTuple):
    """The objects of a batch, padded with empty boxes to one number N >= 1."""

    boxes: Tensor  # (B, N, 4)
    labels: Tensor  # (B, N)
    iscrowd: Tensor  # (B, N)
    labelled: Tensor | None  # (B, K) bool; None: all classes everywhere

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
        labelled = [target["labelled"] for target in targets if "labelled" in target]
        if labelled:
            every = torch.ones_like(labelled[0])
            labelled = [target.get("labelled", every) for target in targets]
        return cls(*padded, torch.stack(labelled) if labelled else None)


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
        centers, sizes, smallest, largest = (column[None, :, None] for column in some)
        x, y = centers.unbind(-1)  # (1, chunk, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (B, chunk, N)
        nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
        farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
        off_center = torch.maximum((x - center_x).abs(), (y - center_y).abs())
        inside = nearest > 0
        takes = inside & ~iscrowd & (off_center < radius * sizes)
        takes &= (farthest > smallest) & (farthest < largest)
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
    """The cells of the `features` of `levels`, over pictures padded to `image_size` (h, w)."""
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
    # Levels coarser than 32 rarely divide the padded picture. Like torchvision, whose weights
    # were trained so, their cells are spread evenly over it.
    step_y, step_x = (stride, stride) if stride <= 32 else (image_size[0] // h, image_size[1] // w)
    y = torch.arange(h, device=feature.device, dtype=torch.float32) * step_y
    x = torch.arange(w, device=feature.device, dtype=torch.float32) * step_x
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], 2).reshape(-1, 2)
