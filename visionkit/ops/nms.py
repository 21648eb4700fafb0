"""Non-maximum suppression for a batch of images: of detections that overlap, the best one stays.

The result has as many rows for every image as is asked for, whatever is found, so that a model
with it can be exported.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvision_nms

from visionkit.ops.boxes import box_iou, rescale_boxes
from visionkit.ops.original import encode_masks
from visionkit.types import Batch, HeadPrediction, as_numpy

Among = Literal["class", "all"]
# Of 1 - IoU, squared: a box that overlaps by 0.9 has a weight of 1/e, one by 0.6 none to speak of.
# The paper's 0.025 is better after few epochs, and worse after many (docs/tasks/detection.md).
VOTE_SPREAD = 0.01


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou: float,
    among: Among,
    count: int,
    **others: Tensor,
) -> dict[str, Tensor]:
    """The best detections of each image that do not overlap, best first.

    Of two of the boxes (B, N, 4) that overlap by more than `iou`, the one with the lower score
    goes: with `class` only if they have the same label (B, N), with `all` whatever their labels
    are. A box with a negative score (B, N) is not a candidate.

    Returns `boxes` (B, M, 4), `scores` and `labels` (B, M), with M = min(N, count), and `count`
    (B,) int64, the detections of each image; of `others` (B, N, C) the same rows, (B, M, C). The
    rows behind them are zero.
    """
    order = nms(boxes, scores, None if among == "all" else labels, iou, count)
    padding = order < 0
    order = order.clamp(min=0)
    rows = {
        name: value.gather(1, order[:, :, None].expand(-1, -1, value.shape[2]))
        for name, value in {"boxes": boxes, **others}.items()
    }
    return {
        **{name: value.masked_fill(padding[:, :, None], 0) for name, value in rows.items()},
        "scores": scores.gather(1, order).masked_fill(padding, 0),
        "labels": labels.gather(1, order).masked_fill(padding, 0),
        "count": (~padding).sum(1),
    }


def vote(
    found: dict[str, Tensor], boxes: Tensor, scores: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """What `suppress` returns, each box (B, M, 4) as the mean of the candidates around it: score
    voting (Kim & Lee 2020, arXiv 2007.08103).

    Candidates are the `boxes` (B, N, 4) of the same label (B, N) with scores (B, N) from 0. Their
    weights are score x exp(-(1 - IoU)^2 / VOTE_SPREAD). The scores and labels stay as they are.
    """
    if not torch.compiler.is_compiling():  # an exported model has rows for all candidates
        used = (scores >= 0).any(0).nonzero()[:, 0]
        if not len(used):
            return found
        boxes, scores, labels = boxes[:, used], scores[:, used], labels[:, used]
    weights = torch.exp(-((1 - box_iou(found["boxes"], boxes)) ** 2) / VOTE_SPREAD)
    weights = weights * scores.clamp(min=0)[:, None]
    weights = weights * (found["labels"][:, :, None] == labels[:, None])
    total = weights.sum(2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    # Rounding must not lead out of the image.
    means = weights @ boxes / total
    means = means.clamp(boxes.amin(1, keepdim=True), boxes.amax(1, keepdim=True))
    voted = found["scores"][:, :, None] > 0  # also False in the rows behind the detections
    return found | {"boxes": means.where(voted, found["boxes"])}


def detections(found: dict[str, Tensor], batch: Batch) -> list[HeadPrediction]:
    """What `suppress` returns, as a prediction for each image, with boxes in original pixels.

    `masks` (B, M, s, s), the probabilities within each box, become COCO's compressed RLE.
    """
    predictions: list[HeadPrediction] = []
    for image, (count, target) in enumerate(
        zip(found["count"].tolist(), batch.targets, strict=True)
    ):
        boxes, scores, labels = (found[key][image, :count] for key in ("boxes", "scores", "labels"))
        boxes = rescale_boxes(boxes, target["size"], target["orig_size"])
        predictions.append({"boxes": boxes, "scores": scores, "labels": labels})
        if "masks" in found:
            arrays = as_numpy(found["masks"][image, :count]), as_numpy(boxes)
            predictions[-1]["masks"] = encode_masks(*arrays, target["orig_size"])
    return predictions


# One operator to torch.export, since a loop over images would fix the size of the batch.
@torch.library.custom_op("visionkit::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou: float, count: int) -> Tensor:
    """Indices (B, M) of the boxes (B, N, 4) that stay, best first; -1 behind them.

    Only boxes of one group (B, N) suppress each other; without groups all do.
    """
    order = torch.full_like(scores[:, :count], -1, dtype=torch.int64)
    for image in range(len(boxes)):
        candidates = torch.where(scores[image] >= 0)[0]
        own_boxes, own_scores = boxes[image, candidates], scores[image, candidates]
        if groups is None:
            best = torchvision_nms(own_boxes, own_scores, iou)[:count]
        else:
            best = batched_nms(own_boxes, own_scores, groups[image, candidates], iou)[:count]
        order[image, : len(best)] = candidates[best]
    return order


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou: float, count: int) -> Tensor:
    rows = torch.sym_min(count, scores.shape[1])  # a slice would take the smaller for all sizes
    return scores.new_empty((scores.shape[0], rows), dtype=torch.int64)
