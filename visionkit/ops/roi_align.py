"""RoIAlign (He et al. 2017) over the levels of a pyramid (Lin et al. 2017).

On a CPU, torchvision's operator runs its backward on one thread and reads memory across channels.
Here every output bin is a weighted sum of feature cells, each a row of channels: one embedding bag
for all boxes, levels and images, equal to 1e-5 and many times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.autograd.function import once_differentiable

from visionkit.ops.boxes import area


def roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
) -> Tensor:
    """Features of each box on a grid: (R, C, P, P).

    `features`: a map (B, C, h, w) for each level, fine to coarse, each with its stride in
    `strides`; a box is read from the level that suits its size. `boxes` (R, 4) in input pixels,
    each of the image with the index in `image` (R,). `sampling_ratio`: samples per bin and
    direction, at least 1. The result has the features' dtype; gradients reach the features only,
    and are summed in float32.
    """
    boxes = boxes.detach().float()
    level = pyramid_level(boxes, strides)
    bags = features[0].device.type == "cpu" and not torch.compiler.is_compiling()
    pool = _pool_bags if bags else _pool_by_level
    return pool(features, Rois(boxes, image, level), strides, output_size, sampling_ratio)


class Rois(NamedTuple):
    """R boxes to pool."""

    boxes: Tensor  # (R, 4) in input pixels
    image: Tensor  # (R,) the index of the image of each
    level: Tensor  # (R,) the index of the level that it is read from


def flatten_boxes(boxes: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) of all images, and the index (R,) of the image of each, from the boxes (N, 4)
    of each image or a tensor (B, N, 4)."""
    if isinstance(boxes, Tensor):
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
        return boxes.flatten(0, 1), image.expand(boxes.shape[:2]).flatten()
    merged = torch.cat(list(boxes))
    counts = torch.tensor([len(b) for b in boxes], device=merged.device)
    return merged, torch.repeat_interleave(counts)


def pyramid_level(
    boxes: Tensor, strides: Sequence[int], canonical_size: int = 224, canonical_stride: int = 16
) -> Tensor:
    """Index (R,) of the level to read each box from (Lin et al. 2017, equation 1).

    A box of `canonical_size` belongs to the level of `canonical_stride`, one of half the size to
    the level of half the stride. Where no level has that stride, the next finer one serves.
    """
    octaves = [round(math.log2(stride)) for stride in strides]
    first, last = octaves[0], octaves[-1]
    # Of levels with equal stride the first serves, as in torchvision.
    serves = [
        octaves.index(max(o for o in octaves if o <= wanted)) for wanted in range(first, last + 1)
    ]
    rounding = 1e-6
    octave = math.log2(canonical_stride) + torch.log2(area(boxes).sqrt() / canonical_size)
    wanted = torch.floor(octave + rounding).clamp(first, last).long() - first
    return torch.tensor(serves, device=boxes.device)[wanted]


def _pool_by_level(
    features: Sequence[Tensor], rois: Rois, strides: Sequence[int], size: int, sampling_ratio: int
) -> Tensor:
    """With torchvision's operator: it has fast kernels for GPUs (not in bfloat16), and exports."""
    channels = features[0].shape[1]
    boxes = rois.boxes
    pooled = boxes.new_zeros(boxes.shape[0], channels, size, size)
    placed = torch.cat([rois.image[:, None].to(boxes.dtype), boxes], dim=1)
    for index, (cells, stride) in enumerate(zip(features, strides, strict=True)):
        here = torch.where(rois.level == index)[0]
        values = torchvision.ops.roi_align(
            cells.float(), placed[here], size, 1 / stride, sampling_ratio
        )
        pooled = pooled.index_copy(0, here, values)
    return pooled.to(features[0].dtype)


def _pool_bags(
    features: Sequence[Tensor], rois: Rois, strides: Sequence[int], size: int, sampling_ratio: int
) -> Tensor:
    """As sums over bags of table rows. The indices take less memory than the result."""
    channels = features[0].shape[1]
    table = torch.cat([f.permute(0, 2, 3, 1).reshape(-1, channels) for f in features])
    bags = _bags(features, rois, strides, size, sampling_ratio)
    sums = weighted_sums(table, *bags)  # (R * P * P, C)
    return sums.view(len(rois.boxes), size, size, channels).permute(0, 3, 1, 2)


def _bags(
    features: Sequence[Tensor], rois: Rois, strides: Sequence[int], size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For every bin the cells to add up: table rows (N,) and their weights (N,), bin by bin, and
    how many each of the R * P * P bins has."""
    sizes = torch.tensor([f.shape[-2:] for f in features])
    lengths = len(features[0]) * sizes.prod(1)
    starts = lengths.cumsum(0) - lengths
    h, w = sizes[rois.level].unbind(1)
    scale = (1 / torch.tensor(strides, dtype=torch.float32))[rois.level]
    x1, y1, x2, y2 = (rois.boxes * scale[:, None]).unbind(1)

    rows, row_weights = _taps(y1, y2, h, size, sampling_ratio)  # (R, P, T)
    columns, column_weights = _taps(x1, x2, w, size, sampling_ratio)
    first = starts[rois.level] + rois.image * h * w
    rows = first[:, None, None] + rows * w[:, None, None]
    cells = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, P, P, T, T)
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    counts = (weights > 0).sum((3, 4)).flatten()
    used = weights.flatten().nonzero()[:, 0]
    return cells.flatten()[used], weights.flatten()[used], counts


def _taps(
    low: Tensor, high: Tensor, length: Tensor, output_size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Along one axis: the cells that each bin averages, and their weights, both (R, P, T).

    Samples interpolate between two cells, so a bin has T = 2 * sampling_ratio taps. Those on the
    same cell become one; the others have weight zero then, as has a sample more than one cell
    outside the map.
    """
    bin_size = ((high - low).clamp(min=1) / output_size)[:, None]
    sample = torch.arange(output_size * sampling_ratio)
    bin_index, within = sample // sampling_ratio, sample % sampling_ratio + 0.5
    position = low[:, None] + bin_index * bin_size + within * bin_size / sampling_ratio
    length = length[:, None]
    inside = (position >= -1) & (position <= length)
    position = torch.minimum(position.clamp(min=0), length - 1)
    near = position.long()
    far = torch.minimum(near + 1, length - 1)
    far_weight = position - near
    share = inside / sampling_ratio
    cells = torch.stack([near, far], dim=-1)
    weights = torch.stack([(1 - far_weight) * share, far_weight * share], dim=-1)
    shape = (len(low), output_size, 2 * sampling_ratio)
    return cells.view(shape), _merged(cells.view(shape), weights.view(shape))


def _merged(cells: Tensor, weights: Tensor) -> Tensor:
    """The weights (R, P, T), those of equal cells of a bin gathered at the first of them."""
    merged = list(weights.unbind(2))
    for later in range(1, len(merged)):
        for earlier in range(later):
            moved = torch.where(cells[..., later] == cells[..., earlier], merged[later], 0)
            merged[earlier] = merged[earlier] + moved
            merged[later] = merged[later] - moved
    return torch.stack(merged, dim=2)


def weighted_sums(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Sums (B, C) of rows of `table` (T, C), in its dtype; added up in float32.

    `rows` (N,) int64 and their `weights` (N,) stand bag by bag; `counts` (B,) int64 says how many
    each bag has. Gradients reach the table only.
    """
    return _WeightedSums.apply(table, rows, weights.to(table.dtype), counts)


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, counts)
        ctx.num_rows = len(table)
        return _sums(table, rows, weights, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, counts = ctx.saved_tensors
        order = _stable_order(rows)
        bags = torch.repeat_interleave(counts)[order]
        per_row = torch.bincount(rows, minlength=ctx.num_rows)
        return _sums(gradient.contiguous(), bags, weights[order], per_row), None, None, None


def _sums(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    if not len(rows):
        return table.new_zeros(len(counts), table.shape[1])
    starts = counts.cumsum(0) - counts
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _stable_order(rows: Tensor) -> Tensor:
    """The order (N,) that sorts non-negative `rows` (N,) int64, equal ones as they are.

    numpy sorts 16-bit numbers by radix, several times faster than torch sorts any.
    """
    keys = rows.numpy()
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if len(keys) and keys.max() >= 2**16:
        high = (keys >> 16).astype(np.uint16)  # enough for 2**32 rows
        order = order[np.argsort(high[order], kind="stable")]
    return torch.from_numpy(order)
