"""The hybrid encoder of RT-DETR (Zhao et al. 2023, arXiv 2304.08069): attention within the coarsest
level, and convolutions that fuse the levels.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Natural, Positive
from visionkit.errors import ConfigError
from visionkit.models.necks.fpn import chosen_levels
from visionkit.ops.attention import FeedForward, SelfAttention
from visionkit.ops.layers import BatchNorm, HalvingConv
from visionkit.types import Features, Level

TEMPERATURE = 10000.0  # of the position embedding (Vaswani et al. 2017)


class HybridEncoder(nn.Module):
    """The hybrid encoder of RT-DETR: its levels see each other, the coarsest also all of the image.

    Cells of the coarsest level attend to each other (AIFI in the paper); then the levels are fused
    from coarse to fine and back (CCFF). The attention sees all cells, those of padding too: use
    images of one size, `data.image_size: 640x640`. Parameter names but for the first, and results
    are those of the package transformers.

    levels: the backbone's, from fine to coarse.
    channels: of every output.
    in_features: names of the levels to use; null: those of stride 8 and coarser.
    expansion: width of the blocks that fuse two levels, as a multiple of `channels`.
    num_blocks: convolutions of such a block.
    attention_layers, attention_heads, feed_forward: transformer layers on the coarsest level, the
        heads of each, and the width of its hidden layer.

    Level `c3` comes out as `p3`; a level without such a name keeps its own.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        channels: Count = 256,
        in_features: list[str] | None = None,
        expansion: Positive = 1.0,
        num_blocks: Count = 3,
        attention_layers: Natural = 1,
        attention_heads: Count = 8,
        feed_forward: Count = 1024,
    ) -> None:
        super().__init__()
        if channels % 4 or channels % attention_heads:
            raise ConfigError(
                f"channels: got {channels} with attention_heads={attention_heads}; expected a "
                "multiple of 4 and of the heads"
            )
        usual = [name for name, level in levels.items() if level.stride >= 8] or None
        chosen = chosen_levels(levels, in_features or usual)
        self._inputs = list(chosen)
        self.levels = {
            re.sub(r"^c(\d+)$", r"p\1", name): Level(channels, level.stride)
            for name, level in chosen.items()
        }
        self.encoder_input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level.channels, channels, 1, bias=False), BatchNorm(channels))
            for level in chosen.values()
        )
        self.layers = nn.ModuleList(
            EncoderLayer(channels, attention_heads, feed_forward) for _ in range(attention_layers)
        )
        steps, width = range(len(chosen) - 1), round(expansion * channels)
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, channels, 1) for _ in steps)
        self.fpn_blocks = nn.ModuleList(CSPRep(channels, width, num_blocks) for _ in steps)
        self.downsample_convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, stride=2) for _ in steps
        )
        self.pan_blocks = nn.ModuleList(CSPRep(channels, width, num_blocks) for _ in steps)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to (B, channels, H, W) maps by name."""
        maps = [
            project(features[name])
            for name, project in zip(self._inputs, self.encoder_input_proj, strict=True)
        ]
        maps[-1] = self._attend(maps[-1])
        down = [maps.pop()]  # from coarse to fine
        for lateral, block in zip(self.lateral_convs, self.fpn_blocks, strict=True):
            down[-1] = lateral(down[-1])
            finer = maps.pop()
            upper = F.interpolate(down[-1], size=finer.shape[-2:])
            down.append(block(torch.cat([upper, finer], 1)))
        up = [down.pop()]
        for halve, block in zip(self.downsample_convs, self.pan_blocks, strict=True):
            coarser = down.pop()
            h, w = coarser.shape[-2:]  # some backbones round down
            up.append(block(torch.cat([halve(up[-1])[..., :h, :w], coarser], 1)))
        return dict(zip(self.levels, up, strict=True))

    def _attend(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        h, w = x.shape[-2:]
        cells = x.flatten(2).transpose(1, 2)  # (B, h * w, C)
        positions = position_embedding(h, w, x.shape[1], x.device)
        for layer in self.layers:
            cells = layer(cells, positions)
        return cells.transpose(1, 2).unflatten(2, (h, w)).to(x.dtype)


def position_embedding(h: int, w: int, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines (h * w, channels) of the row, then of the column of each cell."""
    steps = torch.arange(channels // 4, device=device) / (channels // 4)
    frequencies = TEMPERATURE**-steps
    rows = torch.arange(h, device=device)[:, None] * frequencies  # (h, C / 4)
    columns = torch.arange(w, device=device)[:, None] * frequencies
    waves = [wave[:, None].expand(-1, w, -1) for wave in (rows.sin(), rows.cos())]
    waves += [wave.expand(h, -1, -1) for wave in (columns.sin(), columns.cos())]
    return torch.cat(waves, 2).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Attention of all cells to each other, and a hidden layer (Vaswani et al. 2017)."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, heads)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden, nn.GELU())
        self.final_layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` (B, N, C) with the embedding of each place (N, C): (B, N, C)."""
        x = self.self_attn_layer_norm(x + self.self_attn(x, positions))
        return self.final_layer_norm(x + self.mlp(x))


class ConvNorm(nn.Module):
    """A convolution, a norm, and SiLU unless `act` is false."""

    def __init__(
        self, channels: int, out: int, kernel: int, *, stride: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        conv: Any = HalvingConv if stride == 2 else nn.Conv2d
        self.conv = conv(channels, out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(out)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class RepVGG(nn.Module):
    """A 3x3 and a 1x1 convolution side by side (Ding et al. 2021, arXiv 2101.03697)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, act=False)
        self.conv2 = ConvNorm(channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv1(x) + self.conv2(x))


class CSPRep(nn.Module):
    """RepVGG blocks next to a shortcut: (B, 2 * channels, h, w) to (B, channels, h, w)."""

    def __init__(self, channels: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(2 * channels, width, 1)
        self.conv2 = ConvNorm(2 * channels, width, 1)
        self.bottlenecks = nn.Sequential(*(RepVGG(width) for _ in range(num_blocks)))
        narrow = width != channels
        self.conv3 = ConvNorm(width, channels, 1) if narrow else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
