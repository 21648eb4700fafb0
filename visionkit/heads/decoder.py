"""From a small map of features back to pixels: an encoder seen in a mirror."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.ops.norm import group_norm
from visionkit.types import Level

NARROWEST = 16  # channels at full size, where each costs most and 3 come out


class Decoder(nn.Module):
    """(B, in_channels, h, w) to logits (B, 3, h * stride, w * stride).

    One block (3x3 convolution, group norm, ReLU) at the stride of the input, then one for each
    doubling of the sides, then a 3x3 convolution to RGB. Nothing is handed over from the encoder:
    all that the pictures keep went through the input.

    Doubling repeats the cells and convolves them. A transposed convolution would cover pixels
    unevenly and leave a checkerboard (Odena et al. 2016).

    widths: channels of the blocks, the coarsest first; the stride is 2 ** (len(widths) - 1).
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in widths:
            self.blocks.append(_block(in_channels, width))
            in_channels = width
        self.rgb = nn.Conv2d(in_channels, 3, 3, padding=1)
        # Nearly medium gray to begin with; exactly so would give no gradient to anything before.
        nn.init.normal_(self.rgb.weight, std=0.01)
        nn.init.zeros_(self.rgb.bias)

    def forward(self, cells: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            cells = block(F.interpolate(cells, scale_factor=2) if index else cells)
        return self.rgb(cells).float()


def mirrored_widths(levels: dict[str, Level], stride: int, widest: int) -> list[int]:
    """Channels of a decoder's blocks at the strides s, s/2, ..., 1, with s a power of two.

    They are the channels of the level of that stride, half the width before where there is none,
    and never above `widest`.
    """
    by_stride = {level.stride: level.channels for level in levels.values()}
    widths: list[int] = []
    while stride:
        halved = max(NARROWEST, widths[-1] // 2) if widths else widest
        widths.append(min(by_stride.get(stride, halved), widest))
        stride //= 2
    return widths


def _block(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        group_norm(channels),
        nn.ReLU(),
    )
