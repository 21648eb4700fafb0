"""A residual network of any size, for training from scratch on few images or few cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count
from visionkit.errors import ConfigError
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Normalize, Rgb
from visionkit.types import Level, Size


class LightResNet(nn.Module):
    """A ResNet-D of any width and depth (He et al. 2016; He et al. 2019, arXiv 1812.01187).

    The stem is two 3x3 convolutions of stride 2. Stages of basic blocks follow, each after the
    first at half the resolution. Levels are `c2` (stride 4), `c3` (8), ...; sides of maps are
    rounded up. A shortcut that changes the resolution is a mean over 2x2 cells. Each block starts
    as the identity (Goyal et al. 2017, section 5.1). The default has 3.0 million parameters and
    costs a quarter of a ResNet-18.

    widths: channels of each stage; the stem has half of the first, then the first.
    depths: blocks in each stage.
    mean, std: of the pixels, in 0..1.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        widths: tuple[Count, ...] = (32, 64, 128, 256),
        depths: tuple[Count, ...] = (1, 2, 2, 2),
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise ConfigError(
                f"widths, depths: got {list(widths)} and {list(depths)}; expected one number for "
                "each stage in both"
            )
        self.normalize = Normalize(mean, std)
        before, half = widths[0], max(1, widths[0] // 2)
        self.stem = nn.Sequential(
            _conv_norm(3, half, stride=2),
            nn.ReLU(inplace=True),
            _conv_norm(half, before, stride=2),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        self.levels = {}
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [Block(before, width, stride=2 if number else 1)]
            blocks += [Block(width, width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            self.levels[f"c{number + 2}"] = Level(width, stride=2 ** (number + 2))
            before = width

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, H / stride, W / stride) map per level."""
        x = self.stem(self.normalize(images, sizes, like=self.stages))
        features = {}
        for name, stage in zip(self.levels, self.stages, strict=True):
            x = stage(x)
            features[name] = x
        return features


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv_norm(in_channels, out_channels, stride=stride)
        self.second = _conv_norm(out_channels, out_channels)
        nn.init.zeros_(self.second.get_parameter("1.weight"))
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if in_channels != out_channels:
            self.shortcut.append(_conv_norm(in_channels, out_channels, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(x), inplace=True))
        return F.relu(inner + self.shortcut(x), inplace=True)


def _conv_norm(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
