"""Which cells detect which object, by how well they do so already: task-aligned assignment."""

from __future__ import annotations

import torch
from torch import Tensor

from visionkit.boxes import pairwise_iou
from visionkit.heads.fcos_matching import Points

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
    """The object that each cell of a picture has to detect, or -1, and its target score.

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
    overlaps = pairwise_iou(objects, boxes)
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
