"""Feature Pyramid Network (Lin et al. 2017): each level also gets what coarser levels found."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
)

from visionkit.config.schema import Count
from visionkit.errors import ConfigError
from visionkit.ops.layers import group_norm
from visionkit.types import Features, Level


class FPN(FeaturePyramidNetwork):
    """Top-down pyramid over a backbone's levels; parameters and results are torchvision's.

    levels: the backbone's, from fine to coarse.
    channels: of every output.
    in_features: names of the levels to use; null: all.
    extra_levels: beyond the coarsest: `none`; `pool`, one by subsampling (R-CNNs); `p6`, one by a
        convolution; `p6p7`, two by convolutions of the coarsest output (RetinaNet, FCOS).
    norm: after each convolution of the pyramid.

    Level `c3` comes out as `p3`; a level without such a name keeps its own. Extra levels are named
    by their stride: `p6` is 64.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        channels: Count = 256,
        in_features: list[str] | None = None,
        extra_levels: Literal["none", "pool", "p6", "p6p7"] = "pool",
        norm: Literal["none", "batch", "group"] = "none",
    ) -> None:
        if in_features is not None and not (in_features and levels.keys() >= {*in_features}):
            raise ConfigError(
                f"in_features: got {in_features}; expected some of {', '.join(levels)}"
            )
        wanted = levels if in_features is None else in_features
        chosen = {name: level for name, level in levels.items() if name in wanted}
        super().__init__(
            [level.channels for level in chosen.values()],
            channels,
            extra_blocks=_extra_block(extra_levels, channels),
            norm_layer={"none": None, "batch": nn.BatchNorm2d, "group": group_norm}[norm],
        )
        self._inputs = list(chosen)
        self.levels = {
            re.sub(r"^c(\d+)$", r"p\1", name): Level(channels, level.stride)
            for name, level in chosen.items()
        }
        for _ in range({"none": 0, "pool": 1, "p6": 1, "p6p7": 2}[extra_levels]):
            stride = 2 * max(level.stride for level in self.levels.values())
            self.levels[f"p{stride.bit_length() - 1}"] = Level(channels, stride)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to (B, channels, H, W) maps by name."""
        maps = super().forward({name: features[name] for name in self._inputs})
        return dict(zip(self.levels, maps.values(), strict=True))


def _extra_block(kind: str, channels: int) -> ExtraFPNBlock | None:
    if kind == "none":
        return None
    return LastLevelMaxPool() if kind == "pool" else _ExtraConvs(channels, kind == "p6p7")


class _ExtraConvs(ExtraFPNBlock):
    """One or two more levels, by convolutions of stride 2 over the coarsest output."""

    def __init__(self, channels: int, two: bool) -> None:
        super().__init__()
        for name in ("p6", "p7")[: 1 + two]:
            conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.get_parameter("bias"))
            self.add_module(name, conv)

    def forward(
        self, outputs: list[Tensor], inputs: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        for name, conv in self.named_children():
            x = outputs[-1]
            outputs = [*outputs, _convolve(conv, x if name == "p6" else x.relu())]
        return outputs, [*names, *(name for name, _ in self.named_children())]


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution, in float32 on a map of a single cell: in bfloat16 on a CPU, torch 2.14 leaves
    parts of the weight's gradient uninitialized there."""
    if x.shape[-2:] != (1, 1):
        return conv(x)
    with torch.autocast(x.device.type, enabled=False):
        return conv(x.float()).to(x.dtype)
