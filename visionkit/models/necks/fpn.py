"""Feature Pyramid Network (Lin et al. 2017): each level also gets what coarser levels found."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
)

from visionkit.config.schema import Count
from visionkit.errors import ConfigError
from visionkit.ops.layers import NORM_LAYERS, HalvingConv, OptionalNorm, level_name
from visionkit.types import Features, Level

ExtraLevels = Literal["none", "pool", "p6", "p6p7"]


class FPN(FeaturePyramidNetwork):
    """Top-down pyramid over a backbone's levels; parameters and results are torchvision's.

    levels: the backbone's, from fine to coarse.
    channels: of every output.
    in_features: names of the levels to use; null: all.
    extra_levels: beyond the coarsest: `none`; `pool`, one by subsampling (R-CNNs); `p6`, one by a
        convolution; `p6p7`, two by convolutions (RetinaNet, FCOS).
    extra_from: what these convolutions read: the coarsest map of the `pyramid`, or that of the
        `backbone`.
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
        extra_levels: ExtraLevels = "pool",
        extra_from: Literal["pyramid", "backbone"] = "pyramid",
        norm: OptionalNorm = "none",
    ) -> None:
        if extra_from == "backbone" and extra_levels in ("none", "pool"):
            raise ConfigError(
                f"extra_from: got 'backbone' with extra_levels={extra_levels!r}, which has no "
                "convolution; give extra_levels p6 or p6p7, or remove extra_from"
            )
        chosen = chosen_levels(levels, in_features)
        widths = [level.channels for level in chosen.values()]
        extra = extra_block(
            extra_levels, channels, widths[-1] if extra_from == "backbone" else None
        )
        super().__init__(widths, channels, extra_blocks=extra, norm_layer=NORM_LAYERS[norm])
        self._inputs = list(chosen)
        self.levels = pyramid_levels(chosen, channels, extra_levels)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to (B, channels, H, W) maps by name."""
        maps = super().forward({name: features[name] for name in self._inputs})
        return dict(zip(self.levels, maps.values(), strict=True))


def chosen_levels(levels: dict[str, Level], names: list[str] | None) -> dict[str, Level]:
    """The levels of these names, all for None. ConfigError if there is none of such a name."""
    if names is not None and not (names and levels.keys() >= {*names}):
        what = f"in_features: got {names}; expected some of {', '.join(levels)}"
        single = ", the only level of the backbone; `neck: {type: SimpleFPN}` makes several of one"
        raise ConfigError(what + (single if len(levels) == 1 else ", the levels of the backbone"))
    return {name: level for name, level in levels.items() if names is None or name in names}


def extra_block(
    extra_levels: ExtraLevels, channels: int, from_backbone: int | None = None
) -> ExtraFPNBlock | None:
    """What makes the levels beyond the coarsest, `FPN` says how; `from_backbone` is the width of
    the backbone's map if the convolutions read that one."""
    if extra_levels == "none":
        return None
    if extra_levels == "pool":
        return LastLevelMaxPool()
    return _ExtraConvs(channels, two=extra_levels == "p6p7", from_backbone=from_backbone)


def pyramid_levels(
    inputs: dict[str, Level], channels: int, extra_levels: ExtraLevels
) -> dict[str, Level]:
    """The levels of a pyramid over these inputs, one for each and then the extra ones."""
    levels = {
        re.sub(r"^c(\d+)$", r"p\1", name): Level(channels, level.stride)
        for name, level in inputs.items()
    }
    for _ in range({"none": 0, "pool": 1, "p6": 1, "p6p7": 2}[extra_levels]):
        stride = 2 * max(level.stride for level in levels.values())
        levels[level_name(stride, "p")] = Level(channels, stride)
    return levels


class _ExtraConvs(ExtraFPNBlock):
    """One or two more levels, by convolutions of stride 2 over the coarsest map of the pyramid, or
    over that of the backbone, which has `from_backbone` channels."""

    def __init__(self, channels: int, *, two: bool, from_backbone: int | None) -> None:
        super().__init__()
        self.from_backbone = from_backbone
        for name in ("p6", "p7")[: 1 + two]:
            before = from_backbone or channels if name == "p6" else channels
            conv = HalvingConv(before, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.get_parameter("bias"))
            self.add_module(name, conv)

    def forward(
        self, outputs: list[Tensor], inputs: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        x = inputs[-1] if self.from_backbone else outputs[-1]
        for conv in self.children():
            outputs = [*outputs, conv(x)]
            x = outputs[-1].relu()
        return outputs, [*names, *(name for name, _ in self.named_children())]
