"""Path Aggregation Network (Liu et al. 2018): a pyramid that also goes from fine to coarse."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count
from visionkit.errors import ConfigError
from visionkit.models.necks.fpn import FPN, ExtraLevels, extra_block, pyramid_levels
from visionkit.ops.layers import NORM_LAYERS, HalvingConv, OptionalNorm
from visionkit.types import Features, Level


class PAN(nn.Module):
    """An `FPN`, and after it a bottom-up path (Liu et al. 2018, arXiv 1803.01534, section 3.1).

    The finest map stays as it is. Each coarser one gets the map before it, halved by a 3x3
    convolution of stride 2, and goes through a 3x3 convolution; both end with a ReLU. So what a
    fine map shows reaches a coarse one through few layers.

    levels: the backbone's, from fine to coarse.
    channels: of every output.
    in_features: names of the levels to use; null: all.
    extra_levels: beyond the coarsest, as of `FPN`, from the last map of the bottom-up path.
    norm: after each convolution.

    Level names are those of `FPN`.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        channels: Count = 256,
        in_features: list[str] | None = None,
        extra_levels: ExtraLevels = "pool",
        norm: OptionalNorm = "none",
    ) -> None:
        super().__init__()
        self.fpn = FPN(
            levels, channels=channels, in_features=in_features, extra_levels="none", norm=norm
        )
        self.levels = pyramid_levels(self.fpn.levels, channels, extra_levels)
        self.halve, self.out = nn.ModuleList(), nn.ModuleList()
        for (fine, before), (coarse, level) in pairwise(self.fpn.levels.items()):
            if level.stride % before.stride:
                raise ConfigError(
                    f"PAN: stride {level.stride} of {coarse} is not a multiple of {before.stride}, "
                    f"that of {fine}; choose others with in_features, or use FPN"
                )
            stride = level.stride // before.stride
            self.halve.append(_block(channels, norm, stride))
            self.out.append(_block(channels, norm))
        self.extra = extra_block(extra_levels, channels)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The backbone's (B, C, H, W) maps by name to (B, channels, H, W) maps by name."""
        finest, *coarser = self.fpn(features).values()
        maps = [finest]
        for x, halve, out in zip(coarser, self.halve, self.out, strict=True):
            fine = halve(maps[-1])
            if fine.shape[2:] != x.shape[2:]:  # of a backbone that does not round sides up
                fine = F.interpolate(fine, x.shape[2:])
            maps.append(out(fine + x))
        if self.extra is not None:
            maps, _ = self.extra(maps, maps, [])
        return dict(zip(self.levels, maps, strict=True))


def _block(channels: int, norm: OptionalNorm, stride: int = 1) -> nn.Sequential:
    layer = NORM_LAYERS[norm]
    conv = HalvingConv(channels, channels, 3, stride, padding=1, bias=layer is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # as in FPN
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, *([layer(channels)] if layer else []), nn.ReLU(inplace=True))
