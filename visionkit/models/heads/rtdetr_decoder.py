"""The transformer decoder of RT-DETR: queries attend to each other and to the maps, and each
layer refines the box and the class of every query."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.models.heads.dense import prior_bias
from visionkit.ops.attention import DeformableAttention, FeedForward, Sampling, SelfAttention
from visionkit.ops.layers import cell_corners, constant_bias
from visionkit.types import Size

EPS = 1e-5  # keeps the logits of boxes finite
MARGIN = 0.01  # anchors with a coordinate nearer than this to 0 or 1 are not used
BASE = 0.05 / 8  # side of an anchor per stride of its level, as a share of the map


class Queries(NamedTuple):
    """What enters the decoder, with what the encoder predicts of each query."""

    content: Tensor  # (B, N, C), without a gradient
    boxes: Tensor  # (B, N, 4) center and extent in 0..1
    logits: Tensor  # (B, N, K)


class Memory(NamedTuple):
    """The cells of all levels, level by level and row by row."""

    cells: Tensor  # (B, P, C)
    sizes: list[Size]  # (h, w) of each level
    strides: list[int]


class MLP(nn.Module):
    """Linear layers with a ReLU between them."""

    def __init__(self, channels: int, hidden: int, out: int, num_layers: int) -> None:
        super().__init__()
        widths = [channels, *[hidden] * (num_layers - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.layers
        for layer in first:
            x = F.relu(layer(x))
        return last(x)


def box_mlp(channels: int) -> MLP:
    """Predicts the move of a box in the space of logits, at first none."""
    mlp = MLP(channels, channels, 4, 3)
    nn.init.zeros_(mlp.layers[-1].get_parameter("weight"))
    nn.init.zeros_(mlp.layers[-1].get_parameter("bias"))
    return mlp


def class_layer(channels: int, num_classes: int, prior: float) -> nn.Linear:
    layer = nn.Linear(channels, num_classes)
    nn.init.xavier_uniform_(layer.weight)
    constant_bias(layer, prior_bias(prior))
    return layer


class Decoder(nn.Module):
    """Layers that refine queries, each with its own predictors of class and box."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        num_layers: int,
        heads: int,
        hidden: int,
        points: Sequence[int],
        sampling: Sampling,
        prior: float,
    ) -> None:
        super().__init__()
        count = range(num_layers)
        self.layers = nn.ModuleList(
            DecoderLayer(channels, heads, hidden, points, sampling) for _ in count
        )
        self.query_pos_head = MLP(4, 2 * channels, channels, 2)
        self.class_embed = nn.ModuleList(class_layer(channels, num_classes, prior) for _ in count)
        self.bbox_embed = nn.ModuleList(box_mlp(channels) for _ in count)

    def forward(
        self, content: Tensor, boxes: Tensor, memory: Memory, allowed: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each layer the contents (B, N, C) and the boxes (B, N, 4) in 0..1, from those of the
        queries. `allowed` (B, N, N) bool: which queries attend to which; None: all to all."""
        contents, found = [], []
        for layer, move in zip(self.layers, self.bbox_embed, strict=True):
            boxes = boxes.detach()
            positions = self.query_pos_head(boxes)
            content = layer(content, positions, boxes, memory, allowed)
            boxes = (move(content).float() + box_logits(boxes)).sigmoid()
            contents.append(content)
            found.append(boxes)
        return contents, found


class DecoderLayer(nn.Module):
    """Attention among the queries, then to the feature maps, then a hidden layer."""

    def __init__(
        self, channels: int, heads: int, hidden: int, points: Sequence[int], sampling: Sampling
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, heads)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.encoder_attn = DeformableAttention(channels, heads, points, sampling)
        self.encoder_attn_layer_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden, nn.ReLU())
        self.final_layer_norm = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, positions: Tensor, boxes: Tensor, memory: Memory, allowed: Tensor | None
    ) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, positions, allowed))
        read = self.encoder_attn(x + positions, boxes, memory.cells, memory.sizes)
        x = self.encoder_attn_layer_norm(x + read)
        return self.final_layer_norm(x + self.mlp(x))


def box_logits(boxes: Tensor) -> Tensor:
    """The inverse of the sigmoid, of numbers in 0..1; EPS from 0 and 1 at least."""
    boxes = boxes.clamp(0, 1)
    return boxes.clamp(min=EPS).log() - (1 - boxes).clamp(min=EPS).log()


def anchors_of(memory: Memory) -> tuple[Tensor, Tensor]:
    """The logits (P, 4) of a box around each cell, and whether it is used (P, 1)."""
    boxes = []
    for (h, w), stride in zip(memory.sizes, memory.strides, strict=True):
        centers = cell_corners((h, w), (1.0, 1.0), memory.cells.device) + 0.5
        centers = centers / centers.new_tensor([w, h])
        boxes.append(torch.cat([centers, torch.full_like(centers, BASE * stride)], 1))
    anchors = torch.cat(boxes)
    used = ((anchors > MARGIN) & (anchors < 1 - MARGIN)).all(1, keepdim=True)
    logits = anchors.log() - (1 - anchors).log()
    return logits.masked_fill(~used, torch.finfo(logits.dtype).max), used
