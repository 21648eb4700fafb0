"""The simple feature pyramid of ViTDet (Li et al. 2022), for backbones with one stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from visionkit.config.schema import Count
from visionkit.errors import ConfigError, unknown
from visionkit.models.necks.fpn import ExtraLevels, extra_block, pyramid_levels
from visionkit.ops.layers import BatchNorm, group_norm, level_name
from visionkit.types import Features, Level


def layer_norm(channels: int) -> nn.Module:
    """Normalizes the channels of each cell of a map."""
    return LayerNorm2d(channels, eps=1e-6)


NormLayer = Callable[[int], nn.Module]
NORMS: dict[str, NormLayer] = {"layer": layer_norm, "batch": BatchNorm, "group": group_norm}
FINEST = 4  # stride of the finest map of a pyramid


class SimpleFPN(nn.Module):
    """A pyramid over one map of a plain vision transformer (Li et al. 2022, arXiv 2203.16527).

    From a map of stride 16 come `p2` to `p5`: by two transposed convolutions of stride 2 with a
    norm and a GELU between them, by one, unchanged, and by pooling; each then goes through a 1x1
    and a 3x3 convolution with a norm after it. From stride 14 come `s7`, `s14` and `s28`: no finer
    map has a whole stride.

    levels: the backbone's.
    channels: of every output.
    in_feature: name of the level to use; null: the last.
    extra_levels: beyond the coarsest, as of `FPN`.
    norm: after each convolution; `layer` normalizes the channels of each cell, as in the paper.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        levels: dict[str, Level],
        *,
        channels: Count = 256,
        in_feature: str | None = None,
        extra_levels: ExtraLevels = "pool",
        norm: Literal["layer", "batch", "group"] = "layer",
    ) -> None:
        super().__init__()
        self.input = [*levels][-1] if in_feature is None else in_feature
        if self.input not in levels:
            raise ConfigError(unknown(self.input, levels, f"in_feature: got {in_feature!r}"))
        width, stride = levels[self.input]
        normed = NORMS[norm]
        self.stages, strides = nn.ModuleList(), []
        for doublings in (2, 1, 0):
            finer = 2**doublings
            if stride % finer == 0 and (stride // finer >= FINEST or not doublings):
                up = _doubled(width, doublings, normed)
                self.stages.append(nn.Sequential(*up, *_out(width // finer, channels, normed)))
                strides.append(stride // finer)
        pool = nn.MaxPool2d(2, ceil_mode=True)
        self.stages.append(nn.Sequential(pool, *_out(width, channels, normed)))
        strides.append(2 * stride)
        own = {level_name(stride, "p"): Level(channels, stride) for stride in strides}
        self.levels = pyramid_levels(own, channels, extra_levels)
        self.extra = extra_block(extra_levels, channels)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """One (B, C, H, W) map of the backbone to (B, channels, H, W) maps by name."""
        maps = [stage(features[self.input]) for stage in self.stages]
        if self.extra is not None:
            maps, _ = self.extra(maps, maps, [])
        return dict(zip(self.levels, maps, strict=True))


def _doubled(width: int, doublings: int, norm: NormLayer) -> list[nn.Module]:
    """Layers that double the sides of a map so often, and halve its channels each time."""
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number:
            layers += [norm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return layers


def _out(width: int, channels: int, norm: NormLayer) -> list[nn.Module]:
    first = nn.Conv2d(width, channels, 1, bias=False)
    second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return [first, norm(channels), second, norm(channels)]
