"""One-stage instance segmentation: the detector `TaskAligned`, and masks by dynamic convolutions
(CondInst, Tian et al. 2020, arXiv 2003.05664).

A branch turns the finest level into a map of a few channels, the same for all objects. Each
location predicts the weights of three small convolutions, which draw its own object from that map
and from the place within the box. They are 1x1, so they are evaluated only at the cells of a fixed
grid in the box: no mask of the whole image is ever made, and all shapes are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Natural, NonNegative
from visionkit.metrics.coco.evaluator import CocoEvaluator
from visionkit.models.heads.dense import best_of_each_level, cells_first, locations_of
from visionkit.models.heads.rcnn.roi_heads import mask_targets, valid_rows
from visionkit.models.heads.task_aligned import Assigned, Output, TaskAligned
from visionkit.ops.boxes import box_iou, clip
from visionkit.ops.layers import conv_block, init_convs
from visionkit.ops.losses import mask_loss
from visionkit.types import (
    Batch,
    Dataset,
    Evaluator,
    Features,
    Level,
    Loss,
    Size,
)

OWN_BOX_IOU = 0.5  # a location learns its mask in its own box if that overlaps its object so far


class AlignedMask(TaskAligned):
    """`TaskAligned` with a mask for each object by dynamic convolutions (Tian et al. 2020).

    mask_stride: input pixels of a cell of the map that masks are drawn from, or the stride of the
        finest level if that is less.
    mask_channels: of that map, and of the dynamic convolutions.
    mask_convs: hidden convolutions of the branch that makes it, as wide as the levels.
    mask_size: cells of a side of the grid in each box.
    mask_samples: locations per image that learn a mask, at most: the best of each object first,
        then the second best, and so on.
    mask_weight: of the mask loss against the others.
    kwargs: the arguments of `TaskAligned`.
    """

    required_targets = ("boxes", "labels", "masks")
    main_metric = "segm/AP"
    row_outputs = ("parameters",)

    def __init__(
        self,
        levels: dict[str, Level],
        classes: Sequence[str],
        *,
        mask_stride: Count = 4,
        mask_channels: Count = 8,
        mask_convs: Natural = 2,
        mask_size: Count = 28,
        mask_samples: Count = 32,
        mask_weight: NonNegative = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(levels, classes, **kwargs)
        self.mask_size, self.mask_samples, self.mask_weight = mask_size, mask_samples, mask_weight
        self.mask_level, level = next(iter(levels.items()))
        finer = max(1, level.stride // mask_stride)
        self.map_stride = level.stride / finer
        hidden = [conv_block(self.channels, self.channels, "batch") for _ in range(mask_convs)]
        predict = nn.Conv2d(self.channels, mask_channels * finer**2, 3, padding=1)
        self.mask_branch = nn.Sequential(*hidden, predict, nn.PixelShuffle(finer))
        for module in hidden:
            init_convs(module, partial(nn.init.kaiming_normal_, nonlinearity="relu"))
        self.mask_widths = (mask_channels + 2, mask_channels, mask_channels, 1)
        self.controller = nn.Linear(self.channels, sum(layout(self.mask_widths)))
        init_controller(self.controller, self.mask_widths)

    def mask_features(self, features: Features) -> Tensor:
        """The map (B, C, h, w) that masks are drawn from, in float32."""
        return self.mask_branch(features[self.mask_level]).float()

    def parameters_of(self, hidden: Tensor) -> Tensor:
        """Weights (..., W) of the dynamic convolutions of locations, in float32."""
        return self.controller(hidden).float()

    def loss(self, features: Features, batch: Batch) -> dict[str, Loss]:
        """The losses of `TaskAligned`, and `mask`: binary cross-entropy plus dice loss (Milletari
        et al. 2016) over the grid in the box of each sampled location, weighted by its target
        score; the count is the sum of these. Objects whose mask is not known are not sampled.

        The box is that which the location predicts, as in predictions; or the object's, where
        they overlap too little.
        """
        locations = locations_of(self.levels, features)
        output = self.outputs(features)
        losses, learned = self.detection_losses(output, locations, batch)
        maps, hidden = self.mask_features(features), hidden_rows(output)
        loss = maps[:0].sum() + self.parameters_of(hidden[:, :0]).sum()
        total = loss.new_zeros(())
        for image, (assigned, target) in enumerate(zip(learned, batch.targets, strict=True)):
            if assigned is None:
                continue
            rows, weights = self.sampled(assigned, target["masks"])
            objects = assigned.objects[rows]
            truth = target["boxes"][objects]
            boxes = locations.boxes(output.distances[image, rows].detach(), rows)
            boxes = clip(boxes, target["size"])
            near = box_iou(boxes, truth).diagonal() >= OWN_BOX_IOU
            boxes = boxes.where(near[:, None], truth)
            parameters = self.parameters_of(hidden[image, rows])
            logits = self.mask_logits(maps[image, None], parameters[None], boxes[None])[0]
            half = 0.5  # to what RoIAlign takes for the place of a pixel, its center
            wanted = mask_targets([boxes - half], [objects], [target["masks"]], self.mask_size)
            loss = loss + (mask_loss(logits, wanted) * weights).sum()
            total = total + weights.sum()
        return losses | {"mask": Loss(self.mask_weight * loss, total)}

    def sampled(self, assigned: Assigned, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The locations (R,) of an image that learn a mask, and their target scores."""
        known = masks.flatten(1).any(1)
        rows = (assigned.objects >= 0).nonzero()[:, 0]
        rows = rows[known[assigned.objects[rows]]]
        weights = assigned.target_scores[rows].amax(1)
        order = weights.argsort(descending=True, stable=True)
        own = assigned.objects[rows[order], None] == torch.arange(len(known), device=rows.device)
        rank = (own.cumsum(0) * own).sum(1)  # of a location among those of its object
        order = order[rank.argsort(stable=True)[: self.mask_samples]]
        return rows[order], weights[order]

    def mask_logits(self, maps: Tensor, parameters: Tensor, boxes: Tensor) -> Tensor:
        """(B, M, s, s) at the cells of the grids in the boxes (B, M, 4), from the maps (B, C, h, w)
        and the weights (B, M, W)."""
        size = self.mask_size
        with torch.autocast(maps.device.type, enabled=False):
            points = sample_boxes(maps, boxes, size, self.map_stride)
            place = torch.linspace(1 / size - 1, 1 - 1 / size, size, device=maps.device)
            places = torch.stack([place.expand(size, -1), place[:, None].expand(-1, size)])
            points = torch.cat([points, places.expand(*boxes.shape[:2], -1, -1, -1)], 2)
            logits = dynamic_convs(
                points.flatten(0, 1).flatten(2), parameters.flatten(0, 1), self.mask_widths
            )
            return logits.view(*boxes.shape[:2], size, size)

    def forward(self, features: Features, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """As `TaskAligned.forward`; also `parameters` (B, M, W), the weights of each candidate's
        dynamic convolutions, and `maps` (B, C, h, w), which these are for."""
        locations, output = locations_of(self.levels, features), self.outputs(features)
        scores = output.class_logits.sigmoid()
        best = best_of_each_level(scores, output.distances, locations, self.pre_nms_top_n)
        hidden = hidden_rows(output)
        hidden = hidden.gather(1, best.places[..., None].expand(-1, -1, hidden.shape[2]))
        return {
            "boxes": clip(best.boxes, locations.image_size if sizes is None else sizes),
            "scores": best.scores,
            "labels": best.labels,
            "parameters": self.parameters_of(hidden),
            "maps": self.mask_features(features),
        }

    def postprocess(self, outputs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
        """The detections that stay, and `masks` (B, M, s, s): probabilities within each box."""
        found = super().postprocess(outputs, size)
        parameters, boxes = found.pop("parameters"), found["boxes"]
        valid = valid_rows(found["count"], boxes.shape[1])
        used = boxes.shape[1]
        if not torch.compiler.is_compiling():
            used = max(found["count"].tolist(), default=0)  # hardly ever all of them
        logits = self.mask_logits(outputs["maps"], parameters[:, :used], boxes[:, :used])
        probs = F.pad(logits.sigmoid(), (0, 0, 0, 0, 0, boxes.shape[1] - used))
        return found | {"masks": probs * valid[:, :, None, None]}

    def evaluator(self, dataset: Dataset) -> Evaluator:
        return CocoEvaluator(dataset, types=("bbox", "segm"))


def hidden_rows(output: Output) -> Tensor:
    """What the distances of all locations are predicted from, (B, P, C) in float32."""
    return torch.cat([cells_first(x) for x in output.hidden], 1)


def layout(widths: Sequence[int]) -> list[int]:
    """Numbers of weights and of biases of 1x1 convolutions from each of the widths to the next."""
    return [n for before, after in pairwise(widths) for n in (before * after, after)]


def init_controller(layer: nn.Linear, widths: Sequence[int]) -> None:
    """Begin with the same usual random weights for all locations: with those near zero, which a
    prediction would have, the convolutions would hardly learn."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    weights = layer.bias.detach().split(layout(widths))[::2]
    for weight, width in zip(weights, widths, strict=False):
        nn.init.normal_(weight, std=math.sqrt(2 / width))


def sample_boxes(maps: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """The maps (B, C, h, w), of cells of `stride` pixels, interpolated at the cells of a grid of
    `size` x `size` in each of the boxes (B, M, 4): (B, M, C, size, size).

    Bilinear, as `F.grid_sample` does it, but as products of matrices, which are faster in ONNX and
    whose gradients are deterministic on a GPU.
    """
    x1, y1, x2, y2 = boxes.unbind(2)
    rows = _shares(y1, y2, size, maps.shape[2], stride)  # (B, M, size, h)
    columns = _shares(x1, x2, size, maps.shape[3], stride)  # (B, M, size, w)
    lines = rows.flatten(1, 2) @ maps.transpose(1, 2).flatten(2)  # (B, M * size, C * w)
    lines = lines.unflatten(2, maps.shape[1::2]).unflatten(1, rows.shape[1:3])
    points = lines.flatten(2, 3) @ columns.mT  # (B, M, size * C, size)
    return points.unflatten(2, (size, maps.shape[1])).transpose(2, 3)


def _shares(low: Tensor, high: Tensor, size: int, cells: int, stride: float) -> Tensor:
    """The share (B, M, size, cells) of each cell of a map in each point of a side of the grids
    between `low` and `high` (B, M), in pixels."""
    share = (torch.arange(size, device=low.device) + 0.5) / size
    points = low[..., None] + share * (high - low)[..., None]
    # Not len() of a range, which would fix the size of an exported model.
    position = (points / stride - 0.5).clamp(min=0, max=cells - 1)[..., None]
    return (1 - (position - torch.arange(cells, device=low.device)).abs()).clamp(min=0)


def dynamic_convs(points: Tensor, parameters: Tensor, widths: Sequence[int]) -> Tensor:
    """1x1 convolutions from each of the widths to the next, with a ReLU between them, of R points
    (R, widths[0], N) with weights of their own (R, W): (R, widths[-1], N).

    In a row of W stand for each convolution the weights (out, in), then the biases.
    """
    weights = parameters.split(layout(widths), 1)
    for number, (before, after) in enumerate(pairwise(widths)):
        weight, bias = weights[2 * number : 2 * number + 2]
        weight = weight.unflatten(1, (after, before))
        points = torch.baddbmm(bias[:, :, None], weight, F.relu(points) if number else points)
    return points
