"""Attention of queries to each other, and to a few places of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.types import Size

Sampling = Literal["bilinear", "nearest"]


class SelfAttention(nn.Module):
    """Attention with several heads (Vaswani et al. 2017); positions are not part of the values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.o_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`x` (B, N, C), with `positions` that broadcast to it, to (B, N, C). `allowed` (B, N, N)
        bool says which rows attend to which; each must be allowed at least one."""
        placed = x + positions.to(x.dtype)
        query, key, value = (
            project(of).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, of in ((self.q_proj, placed), (self.k_proj, placed), (self.v_proj, x))
        )
        mask = None if allowed is None else allowed[:, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A hidden layer and back, for each row."""

    def __init__(self, channels: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(channels, hidden), nn.Linear(hidden, channels), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DeformableAttention(nn.Module):
    """Attention of each query to a few places near its box, on all levels (Zhu et al. 2021, arXiv
    2010.04159).

    points: how many places a head reads on each level (Lv et al. 2024, arXiv 2407.17140).
    sampling: values between cells are `bilinear`, or those of the `nearest` cell (the discrete
        sampling of Lv et al. 2024); then the places do not learn.
    """

    def __init__(
        self, channels: int, heads: int, points: Sequence[int], sampling: Sampling = "bilinear"
    ) -> None:
        super().__init__()
        self.heads, self.points, self.sampling = heads, list(points), sampling
        total = heads * sum(points)
        self.sampling_offsets = nn.Linear(channels, 2 * total)
        self.attention_weights = nn.Linear(channels, total)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        scale = torch.cat([torch.full((count,), 0.5 / count) for count in points])
        self.register_buffer("scale", scale[:, None], persistent=False)
        self._init()

    scale: Tensor  # (P, 1)

    def _init(self) -> None:
        """The heads look into different directions, each point one step further than the last."""
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.attention_weights, self.sampling_offsets):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], 1)
        directions = directions / directions.abs().amax(1, keepdim=True)  # (heads, 2)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        if self.sampling == "nearest":
            self.sampling_offsets.requires_grad_(False)

    def forward(self, x: Tensor, boxes: Tensor, values: Tensor, sizes: Sequence[Size]) -> Tensor:
        """From queries `x` (B, N, C) with `boxes` (B, N, 4), center and extent in 0..1 of the map,
        and the cells `values` (B, sum of h * w, C) of levels of these (h, w): (B, N, C)."""
        offsets = self.sampling_offsets(x).float().unflatten(2, (self.heads, -1, 2))
        places = boxes[:, :, None, None, :2] + offsets * self.scale * boxes[:, :, None, None, 2:]
        places = places.transpose(1, 2).flatten(0, 1).split(self.points, 2)  # (B * heads, N, p, 2)
        weights = self.attention_weights(x).float().unflatten(2, (self.heads, -1)).softmax(-1)
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * heads, 1, N, P)
        # In bfloat16 a place would be known to a quarter of a cell alone.
        values = self.value_proj(values).float().transpose(1, 2)  # (B, C, cells)
        levels = (
            values.unflatten(1, (self.heads, -1)).flatten(0, 1).split([h * w for h, w in sizes], 2)
        )
        read = _bilinear if self.sampling == "bilinear" else _nearest
        found = [
            read(level.unflatten(2, size), place)
            for level, size, place in zip(levels, sizes, places, strict=True)
        ]
        merged = (torch.cat(found, 3) * weights).sum(3)  # (B * heads, C / heads, N)
        return self.output_proj(merged.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2))


def _bilinear(level: Tensor, places: Tensor) -> Tensor:
    """Values (R, C, N, p) of maps (R, C, h, w) at x and y in 0..1 (R, N, p, 2); 0 outside."""
    return F.grid_sample(level, 2 * places - 1, align_corners=False)


def _nearest(level: Tensor, places: Tensor) -> Tensor:
    """As `_bilinear`, of the nearest cell, also outside."""
    h, w = level.shape[-2:]
    x = (places[..., 0] * w + 0.5).long().clamp(0, w - 1)
    y = (places[..., 1] * h + 0.5).long().clamp(0, h - 1)
    index = (y * w + x).flatten(1)[:, None].expand(-1, level.shape[1], -1)  # (R, C, N * p)
    return level.flatten(2).gather(2, index).unflatten(2, places.shape[1:3])
