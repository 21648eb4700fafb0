"""Pooling that leaves out the padding of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def valid_cells(sizes: Sequence[tuple[int, int]], features: Tensor, stride: int) -> Tensor:
    """Which cells of `features` (B, C, h, w) see a part of their picture: (B, h, w) bool.

    `sizes` are the valid (h, w) of each image in input pixels, `stride` the input pixels per cell.
    """
    h, w = features.shape[-2:]
    cells = torch.tensor(sizes, device=features.device).add(stride - 1) // stride  # (B, 2)
    rows = torch.arange(h, device=features.device) < cells[:, :1]
    columns = torch.arange(w, device=features.device) < cells[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def masked_mean(features: Tensor, valid: Tensor) -> Tensor:
    """Mean of `features` (B, C, h, w) over the cells where `valid` (B, h, w): (B, C) float32."""
    total = (features.float() * valid[:, None]).sum((2, 3))
    return total / valid.sum((1, 2)).clamp(min=1)[:, None]
