"""Feature Pyramid Network (Lin et al. 2017): every level gets what the coarser ones know."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from visionkit.errors import ConfigError
from visionkit.ops.norm import group_norm
from visionkit.types import Count, Level


class FPN(FeaturePyramidNetwork):
    """Top-down pyramid over a backbone's levels; parameters and results are torchvision's.

    - `levels`: the backbone's, from fine to coarse; `inputs` picks some of them by name.
    - `channels` of every output.
    - `extra` levels beyond the coarsest: `none`; `pool`, one by subsampling (R-CNNs); `p6`, one by
      a convolution; `p6p7`, two by convolutions of the coarsest output (RetinaNet, FCOS).
    - `norm` after each convolution of the pyramid.

    Level `c3` comes out as `p3`; a level without such a name keeps its own. Extra levels are named
    by their stride: `p6` is 64.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        channels: Count = 256,
        inputs: list[str] | None = None,
        extra: Literal["none", "pool", "p6", "p6p7"] = "pool",
        norm: Literal["none", "batch", "group"] = "none",
    ) -> None:
        unknown = sorted(set(inputs or ()) - set(levels))
        if unknown or inputs == []:
            raise ConfigError(f"inputs: got {inputs}; the backbone has {', '.join(levels)}")
        chosen = {name: levels[name] for name in levels if inputs is None or name in inputs}
        super().__init__(
            [level.channels for level in chosen.values()],
            channels,
            extra_blocks=_extra_block(extra, channels),
            norm_layer={"none": None, "batch": nn.BatchNorm2d, "group": group_norm}[norm],
        )
        self._inputs = list(chosen)
        self.levels = {
            re.sub(r"^c(\d+)$", r"p\1", name): Level(channels, level.stride)
            for name, level in chosen.items()
        }
        for _ in range({"none": 0, "pool": 1, "p6": 1, "p6p7": 2}[extra]):
            stride = 2 * max(level.stride for level in self.levels.values())
            self.levels[f"p{stride.bit_length() - 1}"] = Level(channels, stride)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to (B, channels, H, W) maps by name."""
        maps = super().forward({name: features[name] for name in self._inputs})
        return dict(zip(self.levels, maps.values(), strict=True))


def _extra_block(extra: str, channels: int) -> ExtraFPNBlock | None:
    if extra == "pool":
        return LastLevelMaxPool()
    if extra == "p6":
        return _LastLevelP6(channels)
    if extra == "p6p7":
        return LastLevelP6P7(channels, channels)
    return None


class _LastLevelP6(ExtraFPNBlock):
    """One more level by a convolution of stride 2 over the coarsest output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        nn.init.kaiming_uniform_(self.p6.weight, a=1)
        nn.init.zeros_(self.p6.bias)

    def forward(
        self, outputs: list[Tensor], inputs: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        return [*outputs, self.p6(outputs[-1])], [*names, "p6"]
