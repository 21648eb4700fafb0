"""Locations: the points, one for each cell, at which heads without anchors detect."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visionkit.types import Level


class Locations(NamedTuple):
    """The P locations of all levels, one level after the other, in input pixels."""

    centers: Tensor  # (P, 2): x, y
    strides: Tensor  # (P,): side of a cell
    per_level: list[int]
    image_size: tuple[int, int]  # (h, w) of the batch with its padding

    def boxes(self, distances: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Boxes (..., 4) at `distances` (..., 4), in cells, from the locations `index` (...)."""
        centers = self.centers[index]
        pixels = distances * self.strides[index][..., None]
        return torch.cat([centers - pixels[..., :2], centers + pixels[..., 2:]], -1)

    def contained(self, boxes: Tensor) -> Tensor:
        """Whether each location lies within each of the boxes (..., N, 4): (..., N, P) bool."""
        x, y = self.centers.T
        x1, y1, x2, y2 = boxes[..., None].unbind(-2)
        return torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y)) > 0


def padded_size(levels: dict[str, Level], features: dict[str, Tensor]) -> tuple[int, int]:
    """The (h, w) of the batch with its padding, a multiple of the finest level's stride."""
    finest, *_ = levels
    h, w = features[finest].shape[-2:]
    return h * levels[finest].stride, w * levels[finest].stride


def locations_of(levels: dict[str, Level], features: dict[str, Tensor]) -> Locations:
    """The locations at which heads without anchors detect in `features` of these levels."""
    image_size = padded_size(levels, features)
    grids = [grid(features[name], level.stride, image_size) for name, level in levels.items()]
    strides = [
        centers.new_full((len(centers),), level.stride)
        for centers, level in zip(grids, levels.values(), strict=True)
    ]
    return Locations(torch.cat(grids), torch.cat(strides), [*map(len, grids)], image_size)


def grid(feature: Tensor, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Centers (h * w, 2), x and y in input pixels, of the cells of `feature` (B, C, h, w)."""
    h, w = feature.shape[-2:]
    # Levels coarser than 32 rarely divide the padded image. Like torchvision, whose weights
    # were trained so, their locations are spread evenly over it.
    step_y, step_x = (stride, stride) if stride <= 32 else (image_size[0] // h, image_size[1] // w)
    y = torch.arange(h, device=feature.device, dtype=torch.float32) * step_y
    x = torch.arange(w, device=feature.device, dtype=torch.float32) * step_x
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], 2).reshape(-1, 2)
