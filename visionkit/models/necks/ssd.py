"""The extra feature layers of SSD (Liu et al. 2016, arXiv 1512.02325) and SSDLite (Sandler et al.
2018, 1801.04381), which halve the coarsest map again and again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Natural, Positive
from visionkit.errors import ConfigError
from visionkit.models.necks.fpn import chosen_levels
from visionkit.ops.layers import HalvingConv, init_convs, init_lite, lite_conv
from visionkit.types import Features, Level

SIDE = 300  # pixels of the images for which SSD drops the padding of its last layers
LARGEST = 448  # pixels; from there on such layers leave more cells than their strides say


class SSDExtra(nn.Module):
    """Levels beyond a backbone's: e1, e2, ..., each of half the size of the one before.

    Each comes from a 1x1 convolution to half its channels and a 3x3 convolution of stride 2. The
    levels of the backbone keep their names. Parameters and results are those of torchvision's
    SSD300 and SSDLite.

    levels: the backbone's, from fine to coarse.
    in_features: names of the levels to use; null: all.
    channels: of each extra level.
    lite: whether the 3x3 convolutions are depthwise, with batch norms and ReLU6, as in SSDLite.
    unpadded: how many of the last levels come from a convolution of stride 1 without padding: 2 in
        SSD300. For images of about 300 pixels alone.
    conv7: channels of a dilated and a 1x1 convolution that change the coarsest level of the
        backbone, conv6 and conv7 of SSD's VGG-16: 1024 there; null: none.
    rescale: length to which each cell of the finest level is scaled at the start, by factors for
        each channel that are learned (Liu et al. 2015, 1506.04579): 20 in SSD; null: unchanged.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        in_features: list[str] | None = None,
        channels: tuple[Count, ...] = (512, 256, 256, 256),
        lite: bool = False,
        unpadded: Natural = 0,
        conv7: Count | None = None,
        rescale: Positive | None = None,
    ) -> None:
        super().__init__()
        self.levels = chosen_levels(levels, in_features)
        self._inputs = list(self.levels)
        if unpadded > len(channels) or (unpadded and lite):
            wanted = "0 with lite" if lite else f"at most {len(channels)}, the number of channels"
            raise ConfigError(f"unpadded: got {unpadded}; expected {wanted}")
        self.unpadded, finest, coarsest = unpadded, self._inputs[0], self._inputs[-1]
        self.scale_weight = None
        if rescale is not None:
            start = torch.full((self.levels[finest].channels,), float(rescale))
            self.scale_weight = nn.Parameter(start)
        width, stride = self.levels[coarsest]
        self.conv7 = None
        if conv7 is not None:
            self.conv7 = _conv7(width, conv7)
            width = conv7
            self.levels[coarsest] = Level(width, stride)
        self.extra = nn.ModuleList()
        for number, out in enumerate(channels, start=1):
            padded = number <= len(channels) - unpadded
            self.extra.append(_lite_block(width, out) if lite else _Block(width, out, padded))
            width, stride = out, 2 * stride if padded else _unpadded_stride(stride)
            self.levels[f"e{number}"] = Level(width, stride)

    @classmethod
    def largest_side(cls, *, unpadded: int = 0, **others: Any) -> int | None:
        """The largest side of images for such a neck, None for any."""
        return LARGEST if unpadded else None

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to maps by name, with the extra ones."""
        maps = [features[name] for name in self._inputs]
        finest = maps[0]
        self._check_size(finest)
        if self.conv7 is not None:
            maps[-1] = self.conv7(maps[-1])
        for block in self.extra:
            maps.append(block(maps[-1]))
        if self.scale_weight is not None:
            unit = F.normalize(finest.float())
            maps[0] = (self.scale_weight[:, None, None] * unit).to(finest.dtype)
        return dict(zip(self.levels, maps, strict=True))

    def _check_size(self, finest: Tensor) -> None:
        side = max(finest.shape[-2:]) * self.levels[self._inputs[0]].stride
        if self.unpadded and side > LARGEST:
            raise ConfigError(
                f"neck.unpadded: got {self.unpadded} and images of {side} pixels; expected at most "
                f"{LARGEST}: use data.image_size={SIDE}x{SIDE}, or neck.unpadded=0"
            )


def _unpadded_stride(stride: int) -> int:
    """The stride of a level after one more convolution without padding, at `SIDE` pixels."""
    cells = max(1, -(-SIDE // stride) - 2)
    return max(stride, SIDE // cells)


def _conv7(channels: int, out: int) -> nn.Module:
    """A pooling that keeps the size and two convolutions, the first with holes, in place of VGG's
    fifth pooling and its first two dense layers."""
    block = nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(channels, out, 3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 1),
        nn.ReLU(inplace=True),
    )
    return init_convs(block, nn.init.xavier_uniform_)


class _Block(nn.Sequential):
    """To half the channels, and to half the size, or without padding to two cells less. There a map
    of fewer than three cells gets zeros around it."""

    def __init__(self, channels: int, out: int, padded: bool) -> None:
        narrow = max(1, out // 2)
        halve = HalvingConv(narrow, out, 3, stride=2, padding=1)
        last = halve if padded else nn.Conv2d(narrow, out, 3)
        super().__init__(
            nn.Conv2d(channels, narrow, 1), nn.ReLU(inplace=True), last, nn.ReLU(inplace=True)
        )
        self.padded = padded
        init_convs(self, nn.init.xavier_uniform_)

    def forward(self, x: Tensor) -> Tensor:
        if not self.padded:
            missing_h, missing_w = (max(0, 3 - side) for side in x.shape[-2:])
            x = F.pad(x, (0, missing_w, 0, missing_h))
        return super().forward(x)


def _lite_block(channels: int, out: int) -> nn.Module:
    """To half the channels, depthwise to half the size, and to the channels of the level."""
    narrow = max(1, out // 2)
    block = nn.Sequential(
        lite_conv(channels, narrow),
        lite_conv(narrow, narrow, kernel=3, stride=2, depthwise=True),
        lite_conv(narrow, out),
    )
    return init_lite(block)
