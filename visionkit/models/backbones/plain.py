"""Two plain backbones for small images: a convolutional network and a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from visionkit.config.schema import Count, Fraction
from visionkit.errors import ConfigError, DataError
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
POOLS: dict[str, Callable[..., nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


class TinyCNN(nn.Module):
    """Stages of convolution, normalization, activation and 2x2 pooling; levels c1, c2, ...

    Level `c1` has stride 2, and each further level doubles it; sides of maps are rounded up. For
    images of 28 to 64 pixels.

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
            raise ConfigError("channels: got []; expected the width of at least one stage")
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

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, H / stride, W / stride) map per level."""
        x = self.normalize(images, sizes, like=self.stages)
        features = {}
        for name, stage in zip(self.levels, self.stages, strict=True):
            x = stage(x)
            features[name] = x
        return features


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
        size: Count = 28,
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

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to (B, units, 1, 1); padding is cut off."""
        for h, w in sizes or [(images.shape[-2], images.shape[-1])]:
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
