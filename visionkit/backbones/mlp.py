"""The multilayer perceptron: a small picture as one row of numbers, through dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from visionkit.backbones.normalize import Normalize, Rgb
from visionkit.errors import DataError
from visionkit.types import Count, Fraction, Level

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


class MLP(nn.Module):
    """Fully connected layers on square pictures of one `size`: pixels in, one level `flat` out.

    Under a classification head it is the classic network for digits: dense layers, each with its
    activation and dropout, then the linear softmax classifier. `hidden: []` is softmax regression
    on the pixels. The level is a single cell, which neither a neck nor a head for boxes can use.

    size: height and width of every picture; set `data.image_size` to the same. DataError else.
    hidden: numbers of units of the layers.
    dropout: probability with which a hidden unit is dropped in training (Srivastava et al. 2014).
    gray: take the mean of the three channels, size * size inputs instead of 3 * size * size.
    mean, std: of the pixels, in 0..1; by default what goes in is -1..1, which is learned faster
        than 0..1.
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

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to (B, units, 1, 1); what lies beyond the pictures is cut off."""
        for h, w in sizes or [tuple(images.shape[-2:])]:
            if (h, w) != (self.size, self.size):
                raise DataError(
                    f"mlp.MLP: got a picture of {h}x{w} (height x width), but backbone.size is "
                    f"{self.size}: it takes only squares of that size. For square pictures set "
                    f"data.image_size={self.size}; for others use a convolutional backbone"
                )
        pixels = images[:, :, : self.size, : self.size] * self.normalize.scale
        pixels = pixels + self.normalize.shift  # (B, 3, size, size)
        if self.gray:
            pixels = pixels.mean(1)
        return {"flat": self.layers(pixels.flatten(1))[:, :, None, None]}
