"""Our own backbones, for training from scratch: a light ResNet, and for small images a plain
convolutional network and a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction, Natural
from visionkit.errors import ConfigError, DataError
from visionkit.models.backbones.layers import freeze_layers, keep_frozen
from visionkit.models.backbones.norm import IMAGENET_MEAN, IMAGENET_STD, Normalize, Rgb
from visionkit.ops.layers import group_norm
from visionkit.types import Level, Size

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "none"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}
SIDE = 28  # pixels of the images of digits
POOLS: dict[str, Callable[..., nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


class Stages(nn.Module):
    """Base of backbones that are a stem and then `stages`, one for each of the `levels`."""

    levels: dict[str, Level]

    def __init__(self, stem: nn.Module, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = stem
        self.stages = nn.ModuleList()
        self.levels = {}

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, H / stride, W / stride) map per level."""
        x = self.stem(self.normalize(images, sizes, like=self.stages))
        features = {}
        for name, stage in zip(self.levels, self.stages, strict=True):
            x = stage(x)
            features[name] = x
        return features

    def _freeze(self, freeze_at: int) -> None:
        """Stop training the first parts, of which a stem with parameters is one."""
        parts = {"stem": self.stem, **{f"stages.{n}": part for n, part in enumerate(self.stages)}}
        names = [[f"{key}.{name}" for name, _ in p.named_parameters()] for key, p in parts.items()]
        freeze_layers(self, [part for part in names if part], freeze_at)

    def train(self, mode: bool = True) -> Stages:
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        keep_frozen(self)
        return self


class TinyCNN(Stages):
    """Stages of convolution, normalization, activation and 2x2 pooling; levels c1, c2, ...

    Level `c1` has stride 2, and each further level doubles it; sides of maps are rounded up. For
    images of 28 to 64 pixels.

    channels: of each stage.
    activation: after each convolution.
    kernel: side of the convolutions' windows; their padding keeps the size.
    norm: between convolution and activation; `batch` needs the fewest steps.
    pool: the largest or the mean of each 2x2 window.
    freeze_at: number of leading stages that do not train, neither parameters nor statistics.
    mean, std: of the pixels, in 0..1.
    """

    def __init__(
        self,
        *,
        channels: tuple[Count, ...] = (16, 32, 64),
        activation: Activation = "relu",
        kernel: Count = 3,
        norm: Literal["none", "batch", "group"] = "none",
        pool: Literal["max", "avg"] = "max",
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        if not channels:
            raise ConfigError("channels: got []; expected the width of at least one stage")
        super().__init__(nn.Identity(), mean, std)
        before = 3
        for number, width in enumerate(channels, start=1):
            conv = nn.Conv2d(before, width, kernel, padding="same", bias=norm == "none")
            # By torch's default each stage without a norm would shrink the signal (He et al. 2015).
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            after = NORMS[norm](width), ACTIVATIONS[activation](), POOLS[pool](2, ceil_mode=True)
            self.stages.append(nn.Sequential(conv, *after))
            self.levels[f"c{number}"] = Level(width, stride=2**number)
            before = width
        self._freeze(freeze_at)


class MLP(nn.Module):
    """A multilayer perceptron on square images of one `size`; one level `flat` of a single cell.

    Each layer is dense, with activation and dropout. With a classification head this is the classic
    network for digits, and `hidden: []` is softmax regression on the pixels. A neck or a head for
    boxes cannot use the level.

    size: height and width of every image; set `data.image_size` to the same. DataError otherwise.
    hidden: numbers of units of the layers.
    dropout: probability with which a hidden unit is dropped in training (Srivastava et al. 2014).
    gray: use the mean of the three channels: size * size inputs instead of 3 * size * size.
    mean, std: of the pixels, in 0..1; the default gives inputs in -1..1, which train faster than
        0..1.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        size: Count = SIDE,
        hidden: tuple[Count, ...] = (512,),
        dropout: Fraction = 0.2,
        activation: Activation = "relu",
        gray: bool = True,
        mean: Rgb = (0.5, 0.5, 0.5),
        std: Rgb = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.size, self.gray = size, gray
        self.normalize = Normalize(mean, std)
        self.layers = nn.Sequential()
        width = size * size if gray else 3 * size * size
        for units in hidden:
            self.layers.append(nn.Linear(width, units))
            self.layers.append(ACTIVATIONS[activation]())
            self.layers.append(nn.Dropout(dropout))
            width = units
        self.levels = {"flat": Level(channels=width, stride=size)}

    @classmethod
    def largest_side(cls, *, size: int = SIDE, **others: Any) -> int:
        """The only side of images that such a backbone takes."""
        return size

    smallest_side = largest_side

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to (B, units, 1, 1); padding is cut off. In an exported model,
        where `sizes` is a tensor, so is all beyond `size`."""
        checked = (
            () if isinstance(sizes, Tensor) else sizes or [(images.shape[-2], images.shape[-1])]
        )
        for h, w in checked:
            if (h, w) != (self.size, self.size):
                raise DataError(
                    f"MLP: got an image of {h}x{w} (height x width), but backbone.size is "
                    f"{self.size}: it takes only squares of that size. For square images set "
                    f"data.image_size={self.size}; for others use a convolutional backbone"
                )
        pixels = images[:, :, : self.size, : self.size] * self.normalize.scale
        pixels = pixels + self.normalize.shift  # (B, 3, size, size)
        if self.gray:
            pixels = pixels.mean(1)
        return {"flat": self.layers(pixels.flatten(1))[:, :, None, None]}


class LightResNet(Stages):
    """A ResNet-D of any width and depth (He et al. 2016; He et al. 2019, arXiv 1812.01187).

    The stem is two 3x3 convolutions of stride 2. Stages of basic blocks follow, each after the
    first at half the resolution. Levels are `c2` (stride 4), `c3` (8), ...; sides of maps are
    rounded up. A shortcut that changes the resolution is a mean over 2x2 cells. Each block starts
    as the identity (Goyal et al. 2017, section 5.1). The default has 3.0 million parameters and
    costs a quarter of a ResNet-18.

    widths: channels of each stage; the stem has half of the first, then the first.
    depths: blocks in each stage.
    freeze_at: number of leading parts that do not train, neither parameters nor statistics: 1 is
        the stem, 2 adds the first stage.
    mean, std: of the pixels, in 0..1.
    """

    def __init__(
        self,
        *,
        widths: tuple[Count, ...] = (32, 64, 128, 256),
        depths: tuple[Count, ...] = (1, 2, 2, 2),
        freeze_at: Natural = 0,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        if not widths or len(widths) != len(depths):
            raise ConfigError(
                f"widths, depths: got {list(widths)} and {list(depths)}; expected one number for "
                "each stage in both"
            )
        before, half = widths[0], max(1, widths[0] // 2)
        stem = nn.Sequential(
            _conv_norm(3, half, stride=2),
            nn.ReLU(inplace=True),
            _conv_norm(half, before, stride=2),
            nn.ReLU(inplace=True),
        )
        super().__init__(stem, mean, std)
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [Block(before, width, stride=2 if number else 1)]
            blocks += [Block(width, width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            self.levels[f"c{number + 2}"] = Level(width, stride=2 ** (number + 2))
            before = width
        self._freeze(freeze_at)


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
