"""Box arithmetic. Boxes are xyxy, in any pixels; image sizes are (h, w)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]
OFFSET_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # makes the offsets' spread about 1

# No box is more than 1000/16 times as long as its anchor: keeps exp() finite.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode(boxes: Tensor, anchors: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Offsets (..., 4) that lead from anchors to boxes: dx, dy, dw, dh (Girshick et al. 2014).

    Shapes broadcast. Both need a positive width and height. `weights` scale the four offsets.
    """
    center, extent = _center_and_extent(anchors)
    to_center, to_extent = _center_and_extent(boxes)
    of_center, of_extent = boxes.new_tensor(weights).split(2)
    shift = of_center * (to_center - center) / extent
    return torch.cat([shift, of_extent * torch.log(to_extent / extent)], dim=-1)


def decode(offsets: Tensor, anchors: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The boxes (..., 4) at `offsets` from `anchors`: the inverse of `encode`. Shapes broadcast."""
    center, extent = _center_and_extent(anchors)
    shift, log_scale = (offsets / offsets.new_tensor(weights)).split(2, -1)
    center = shift * extent + center
    half = 0.5 * (torch.exp(log_scale.clamp(max=MAX_LOG_SCALE)) * extent)
    return torch.cat([center - half, center + half], dim=-1)


def _center_and_extent(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The centers and the widths and heights (..., 2) of boxes (..., 4)."""
    extent = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * extent, extent


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Boxes (..., 4) clipped to an image of size (h, w); boxes (B, N, 4) to sizes (B, 2)."""
    h, w = size[:, None].unbind(-1) if isinstance(size, Tensor) else size
    x1, y1, x2, y2 = boxes.clamp(min=0).unbind(-1)
    corners = [x1.clamp(max=w), y1.clamp(max=h), x2.clamp(max=w), y2.clamp(max=h)]
    return torch.stack(corners, dim=-1)


def rescale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) of an image with `size` (h, w), in the pixels of that image at `new_size`."""
    scale_y, scale_x = (new / old for old, new in zip(size, new_size, strict=True))
    return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])


def corners_of(boxes_cxcywh: Tensor) -> Tensor:
    """Boxes (..., 4) from their center, width and height (..., 4)."""
    center, half = boxes_cxcywh[..., :2], 0.5 * boxes_cxcywh[..., 2:]
    return torch.cat([center - half, center + half], dim=-1)


def centers_of(boxes: Tensor) -> Tensor:
    """The center, width and height (..., 4) of boxes (..., 4)."""
    return torch.cat(_center_and_extent(boxes), dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Width times height (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_intersection(boxes_N4: Tensor, boxes_M4: Tensor) -> Tensor:
    """Common area (..., N, M) of every box of the first (..., N, 4) with every box of the second
    (..., M, 4)."""
    # One coordinate at a time: contiguous (N, M) rows are several times faster than (N, M, 2).
    x1, y1, x2, y2 = boxes_N4[..., None].unbind(-2)
    to_x1, to_y1, to_x2, to_y2 = boxes_M4[..., None, :, :].unbind(-1)
    width = torch.minimum(x2, to_x2).sub_(torch.maximum(x1, to_x1)).clamp_(min=0)
    height = torch.minimum(y2, to_y2).sub_(torch.maximum(y1, to_y1)).clamp_(min=0)
    return width.mul_(height)


def box_iou(boxes_N4: Tensor, boxes_M4: Tensor) -> Tensor:
    """Intersection over union (..., N, M), in 0..1, of boxes (..., N, 4) and (..., M, 4); 0 where
    both boxes are empty."""
    shared = pairwise_intersection(boxes_N4, boxes_M4)
    union = area(boxes_N4)[..., None] + area(boxes_M4)[..., None, :] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (...), in 0..1, of boxes (..., 4) with those at their place."""
    extent = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(
        boxes[..., :2], others[..., :2]
    )
    shared = extent.clamp(min=0).prod(-1)
    union = area(boxes) + area(others) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def box_ioa(boxes_N4: Tensor, regions_M4: Tensor) -> Tensor:
    """Share (N, M) of each box's own area that lies within each region, in 0..1."""
    own_area = area(boxes_N4)[:, None]
    shared = pairwise_intersection(boxes_N4, regions_M4)
    return shared / own_area.clamp(min=torch.finfo(own_area.dtype).tiny)
