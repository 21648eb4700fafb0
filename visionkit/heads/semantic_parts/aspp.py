"""Convolutions that read a feature map at several scales at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.ops.norm import group_norm
from visionkit.ops.pooling import masked_mean

Norm = Literal["batch", "group"]


class PictureNorm(nn.BatchNorm2d):
    """BatchNorm of one value for each picture, (B, C, 1, 1): a batch of one has no statistics of
    its own and is normalized by the running ones."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def conv_norm_relu(
    channels: int, out: int, norm: Norm, *, kernel: int = 3, dilation: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size of its map, a norm and a ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(out) if norm == "batch" else group_norm(out), nn.ReLU()]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): a 1x1 convolution, one 3x3 convolution
    for each dilation in `rates`, and the mean of the whole picture, joined by a 1x1 convolution.

    Parameter names are torchvision's. (B, channels, h, w) to (B, out, h, w).
    """

    def __init__(
        self, channels: int, out: int, *, rates: Sequence[int], dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        pooled = [
            nn.Identity(),  # the pooling, done in `forward`; it keeps the names of what follows
            nn.Conv2d(channels, out, 1, bias=False),
            PictureNorm(out) if norm == "batch" else group_norm(out),
            nn.ReLU(),
        ]
        branches = [
            conv_norm_relu(channels, out, norm, kernel=1),
            *(conv_norm_relu(channels, out, norm, dilation=rate) for rate in rates),
            pooled,
        ]
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.project = nn.Sequential(
            *conv_norm_relu(len(branches) * out, out, norm, kernel=1), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`valid` (B, h, w): the cells of `x` that are no padding, of which the mean is taken."""
        *local, pooled = self.convs
        mean = pooled(masked_mean(x, valid)[:, :, None, None].to(x.dtype))
        maps = [conv(x) for conv in local]
        return self.project(torch.cat([*maps, mean.expand_as(maps[0])], dim=1))
