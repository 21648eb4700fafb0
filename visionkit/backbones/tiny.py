"""A convolutional network as plain as it can be: convolution, activation, pooling, again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from visionkit.backbones.mlp import ACTIVATIONS, Activation
from visionkit.backbones.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, Rgb
from visionkit.errors import ConfigError
from visionkit.ops.norm import group_norm
from visionkit.types import Count, Level

NORMS = {"none": nn.Identity, "batch": nn.BatchNorm2d, "group": group_norm}
POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


class TinyCNN(nn.Module):
    """Stages of convolution, normalisation, activation and 2x2 pooling; levels c1, c2, ...

    Level `c1` has stride 2, and each further one twice that of the one before; sides of maps are
    rounded up. Meant for reading, and for pictures of 28 to 64 pixels.

    channels: of each stage.
    activation: after each convolution.
    kernel: side of the convolutions' windows; their padding keeps the size.
    norm: between convolution and activation; `batch` needs the fewest steps.
    pool: the largest or the mean of each 2x2 window.
    mean, std: of the pixels, in 0..1.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        channels: tuple[Count, ...] = (16, 32, 64),
        activation: Activation = "relu",
        kernel: Count = 3,
        norm: Literal["none", "batch", "group"] = "none",
        pool: Literal["max", "avg"] = "max",
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not channels:
            raise ConfigError("channels: got []; name the width of at least one stage")
        self.normalize = Normalize(mean, std)
        self.stages = nn.ModuleList()
        self.levels = {}
        before = 3
        for number, width in enumerate(channels, start=1):
            conv = nn.Conv2d(before, width, kernel, padding="same", bias=norm == "none")
            # By torch's default each stage without a norm would shrink the signal (He et al. 2015).
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            self.stages.append(
                nn.Sequential(
                    conv,
                    NORMS[norm](width),
                    ACTIVATIONS[activation](),
                    POOLS[pool](2, ceil_mode=True),
                )
            )
            self.levels[f"c{number}"] = Level(width, stride=2**number)
            before = width

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, H / stride, W / stride) map per level."""
        x = self.normalize(images, sizes, like=self.stages)
        features = {}
        for name, stage in zip(self.levels, self.stages, strict=True):
            x = stage(x)
            features[name] = x
        return features
