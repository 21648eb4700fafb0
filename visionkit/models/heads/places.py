"""Places: the anchors, or the locations, at which a head detects on every cell of every level.

Anchors are boxes of fixed sizes and ratios (Ren et al. 2015). Locations are points, one for each
cell, for heads without anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visionkit.errors import ConfigError
from visionkit.ops.boxes import decode
from visionkit.types import Level


class Anchors(NamedTuple):
    """The P anchors of all levels: level by level, row by row, cell by cell."""

    corners: Tensor  # (P, 4) in input pixels
    per_level: list[int]
    image_size: tuple[int, int]  # (h, w) of the batch with its padding

    def boxes(self, offsets: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Boxes (..., 4) at `offsets` (..., 4) from the anchors `index` (...)."""
        return decode(offsets, self.corners[index])


class AnchorGenerator(nn.Module):
    """The same few boxes around the corner of every cell of every level.

    sizes: for each level, the square roots of the anchors' areas, in input pixels; by default one
        size, eight times the stride. Every level has equally many, since they share one predictor.
    ratios: height divided by width. Each size comes in each ratio.
    """

    shapes: Tensor

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
                f"anchor_sizes: got lists of {lengths} sizes; expected equally many for each of "
                f"the {len(levels)} levels {[*levels]}"
            )
        self.per_cell = lengths[0] * len(ratios)
        if not self.per_cell:
            raise ConfigError("anchor_sizes, anchor_ratios: give at least one of each")
        self.levels = levels
        shapes = torch.stack([_shapes(level_sizes, ratios) for level_sizes in sizes])
        self.register_buffer("shapes", shapes, persistent=False)  # (levels, A, 4)

    def forward(self, features: dict[str, Tensor]) -> Anchors:
        image_size = padded_size(self.levels, features)
        corners = [
            _at_every_cell(shapes, features[name].shape[-2:], image_size)
            for name, shapes in zip(self.levels, self.shapes, strict=True)
        ]
        return Anchors(torch.cat(corners), [*map(len, corners)], image_size)


def _shapes(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors (A, 4) around the origin, in whole pixels, ratio by ratio."""
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    scale = torch.tensor(sizes, dtype=torch.float32)
    w, h = (scale * (1 / root)).flatten(), (scale * root).flatten()
    return (torch.stack([-w, -h, w, h], dim=1) / 2).round()


def _at_every_cell(shapes: Tensor, grid: Sequence[int], image_size: tuple[int, int]) -> Tensor:
    # Not the level's stride: it differs where a level is padded, and torchvision does so too.
    stride_y, stride_x = (pixels // cells for pixels, cells in zip(image_size, grid, strict=True))
    y = torch.arange(grid[0], device=shapes.device) * stride_y
    x = torch.arange(grid[1], device=shapes.device) * stride_x
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1)  # (h, w, 4)
    return (corners[:, :, None] + shapes).view(-1, 4)


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


def padded_size(levels: dict[str, Level], features: dict[str, Tensor]) -> tuple[int, int]:
    """The (h, w) of the batch with its padding, a multiple of the finest level's stride."""
    finest, *_ = levels
    h, w = features[finest].shape[-2:]
    return h * levels[finest].stride, w * levels[finest].stride
