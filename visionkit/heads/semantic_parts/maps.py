"""From logits on a coarse grid to class maps in the pixels of the original picture."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.types import Batch

CHUNK = 2**23  # logits held at full resolution at a time: 32 MB


def valid_cells(logits: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The cells (K, ch, cw) of a picture's `logits` (K, hl, wl) that see a part of it.

    `size` is the picture's valid (h, w), `padded` that of the whole batch, which the grid covers.
    """
    hl, wl = logits.shape[-2:]
    return logits[:, : math.ceil(size[0] * hl / padded[0]), : math.ceil(size[1] * wl / padded[1])]


def at_pixels(logits: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """`logits` (K, hl, wl) at the valid pixels of the picture: (K, h, w) float32, bilinear.

    Cells that see only padding take no part: at the edge the outermost valid cell counts alone.
    """
    cells = valid_cells(logits, size, padded)
    covered = [
        math.ceil(count * whole / grid)
        for count, whole, grid in zip(cells.shape[-2:], padded, logits.shape[-2:], strict=True)
    ]
    full = F.interpolate(cells[None].float(), covered, mode="bilinear", align_corners=False)[0]
    return full[:, : size[0], : size[1]]


def class_map(
    logits: Tensor, size: tuple[int, int], padded: tuple[int, int], orig_size: tuple[int, int]
) -> Tensor:
    """The most probable class of each original pixel, (h, w) uint8, of `logits` (K, hl, wl).

    One bilinear step from the grid to `orig_size`, some rows at a time, so that the logits of a
    large picture are never all held at full resolution.
    """
    cells = valid_cells(logits, size, padded).float()
    rows, columns = (
        # In the units of grid_sample: -1 and 1 are the outer edges of the valid cells.
        _centers(orig, whole * count / (side * grid), count, cells.device)
        for orig, side, whole, grid, count in zip(
            orig_size, size, padded, logits.shape[-2:], cells.shape[-2:], strict=True
        )
    )
    found = []
    for part in rows.split(max(1, CHUNK // (len(cells) * orig_size[1]))):
        places = torch.stack(torch.meshgrid(part, columns, indexing="ij")[::-1], dim=-1)
        full = F.grid_sample(cells[None], places[None], align_corners=False)[0]
        found.append(full.argmax(0).to(torch.uint8))
    return torch.cat(found)


def _centers(pixels: int, covered: float, cells: int, device: torch.device) -> Tensor:
    """Centers of `pixels` pixels within cells that reach `covered` times as far as the pixels."""
    centers = (torch.arange(pixels, device=device) + 0.5) * (2 / (pixels * covered)) - 1
    edge = 1 - 1 / cells  # the center of the outermost cell, beyond which its value stays
    return centers.clamp(-edge, edge)


def class_maps(logits: Tensor, batch: Batch) -> list[dict[str, Any]]:
    """Each picture's `semantic` (h, w) uint8 at its `orig_size`, of `logits` (B, K, hl, wl)."""
    padded = tuple(batch.images.shape[-2:])
    return [
        {"semantic": class_map(picture, target["size"], padded, target["orig_size"])}
        for picture, target in zip(logits, batch.targets, strict=True)
    ]
