"""Random transforms of training images with their labels, and the network's input size.

A transform is called as `transform(sample, rng, image_size)`; all its randomness comes from `rng`.
A transform with `resizes = True` resizes the image to the network's size itself. If a list has
none, the image is resized before the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import Fraction, NonNegative, Positive, Range
from visionkit.data.image_io import to_pixels
from visionkit.data.resize import ImageSize, fit
from visionkit.data.sample import Sample
from visionkit.errors import ArgumentError, ConfigError
from visionkit.types import Target, Transform

__all__ = [  # what `type:` can name under `transforms`
    "ColorJitter",
    "Grayscale",
    "HorizontalFlip",
    "RandomCrop",
    "RandomResizedCrop",
    "ScaleJitter",
    "VerticalFlip",
]

Turn: TypeAlias = Annotated[float, Range(low=0, high=0.5)]


def window(size: tuple[int, int], image_size: ImageSize) -> tuple[int, int]:
    """The largest (h, w) in the network of a random crop of an image of `size`."""
    if isinstance(image_size, int):
        return image_size, image_size
    return fit(size, image_size)


class Compose:
    """Transforms as one function of an image and its target, for a dataset that is not visionkit's.

    `compose(image, target)` returns the image (3, h, w) uint8 at the network's size and its
    `visionkit.Target`: boxes, labels, masks, maps and the other keys, moved along; `size` and
    `orig_size` (h, w). `visionkit.data.loading.source.collate` makes a `Batch` of several.

    transforms: in their order, visionkit's or custom ones; none for validation.
    image_size: as in a config: the longest side, (shortest, longest), or "WIDTHxHEIGHT".

    Its randomness comes from torch's generator, which `torch.manual_seed` seeds, and the workers of
    a `DataLoader` each in their way.
    """

    def __init__(self, transforms: Sequence[Transform], image_size: ImageSize) -> None:
        self.transforms, self.image_size = [*transforms], image_size
        wrong = [one for one in self.transforms if isinstance(one, type) or not callable(one)]
        if wrong:
            hint = "instances, such as HorizontalFlip(p=0.5)"
            raise ArgumentError(f"transforms: got {wrong[0]!r:.60}; expected a list of {hint}")

    def __call__(
        self, image: Any, target: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Target]:
        """`image`: a PIL image, an array (h, w, 3) or a tensor (3, h, w), see `Predictor.predict`;
        `target` as for `Sample.from_target`, in pixels of the image."""
        sample = Sample.from_target(to_pixels(image), target or {})
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        sample = resized_first(sample, self.transforms, self.image_size)
        for transform in self.transforms:
            sample = transform(sample, rng, self.image_size)
        return sample.image, sample.target()


def resized_first(sample: Sample, transforms: Sequence[Transform], image_size: ImageSize) -> Sample:
    """The sample at the network's size, unless one of the transforms will resize it."""
    if any(getattr(transform, "resizes", False) for transform in transforms):
        return sample
    return sample.resize(fit(sample.size, image_size))


class HorizontalFlip:
    """Flips left to right with probability `p`."""

    def __init__(self, *, p: Fraction = 0.5):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        return sample.hflip() if rng.random() < self.p else sample


class VerticalFlip:
    """Flips top to bottom with probability `p`."""

    def __init__(self, *, p: Fraction = 0.5):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        return sample.vflip() if rng.random() < self.p else sample


class ScaleJitter:
    """Large-scale jitter: resizes to `low` to `high` times the network's size (Ghiasi et al.,
    "Simple Copy-Paste", 2021).

    An image that is then larger than the network's size is cropped at random; a smaller one stays
    so. Done with probability `p`; otherwise the image is only resized.
    """

    resizes: ClassVar[bool] = True

    def __init__(self, *, low: Positive = 0.5, high: Positive = 1.5, p: Fraction = 1.0):
        if low > high:
            raise ConfigError(f"low must be at most high, got low={low}, high={high}")
        self.low, self.high, self.p = low, high, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        fitted = fit(sample.size, size)
        if rng.random() >= self.p:
            return sample.resize(fitted)
        jitter = rng.uniform(self.low, self.high)
        scaled = [max(1, round(side * jitter)) for side in fitted]
        wanted = [min(pair) for pair in zip(scaled, window(sample.size, size), strict=True)]
        # Cropping before resizing gives the same image from fewer pixels.
        height, width = (
            max(1, round(old * part / whole))
            for old, part, whole in zip(sample.size, wanted, scaled, strict=True)
        )
        return _random_window(sample, rng, height, width).resize((wanted[0], wanted[1]))


class RandomResizedCrop:
    """Crops a random part of the image and resizes it to the network's size, a square if that is
    one number. For classification (Szegedy et al., 2014).

    scale: range of the part's share of the image's area.
    ratio: range of its width / height.
    """

    resizes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        scale: tuple[Positive, Positive] = (0.35, 1.0),
        ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
    ):
        if scale[0] > scale[1] or scale[1] > 1 or ratio[0] > ratio[1]:
            raise ConfigError(
                f"scale and ratio must be (low, high), scale at most 1; got {scale}, {ratio}"
            )
        self.scale, self.ratio = scale, ratio

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        area = sample.size[0] * sample.size[1] * rng.uniform(*self.scale)
        ratio = math.exp(rng.uniform(*np.log(self.ratio)))
        height = min(sample.size[0], max(1, round(math.sqrt(area / ratio))))
        width = min(sample.size[1], max(1, round(math.sqrt(area * ratio))))
        return _random_window(sample, rng, height, width).resize(window(sample.size, size))


class RandomCrop:
    """Crops, with probability `p`, to sides of at least `low` times the image's, around the center
    of a random object if there is one.
    """

    def __init__(self, *, low: Fraction = 0.5, p: Fraction = 0.5):
        self.low, self.p = low, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        height, width = (max(1, round(s * rng.uniform(self.low, 1))) for s in sample.size)
        return _random_window(sample, rng, height, width, around=_some_center(sample, rng))


class ColorJitter:
    """Random brightness, contrast, saturation (factors of 1 ± the argument, at least 0) and hue (a
    rotation by up to that part of the color circle).

    All four are one linear map of the RGB values, rounded and clipped once. Hue rotates the plane
    of equal luma, which is much cheaper than a conversion to HSV.
    """

    def __init__(
        self,
        *,
        brightness: NonNegative = 0.2,
        contrast: NonNegative = 0.2,
        saturation: NonNegative = 0.2,
        hue: Turn = 0.02,
    ):
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue = hue

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        brightness, contrast, saturation = (
            rng.uniform(max(0.0, 1 - spread), 1 + spread)
            for spread in (self.brightness, self.contrast, self.saturation)
        )
        pixels = _pixels(sample.image)
        gray = brightness * float(_TO_YIQ[0] @ pixels.mean(1).numpy())
        matrix = brightness * contrast * color_map(saturation, rng.uniform(-self.hue, self.hue))
        return _recolored(sample, pixels, matrix, (1 - contrast) * gray)


class Grayscale:
    """Makes the image gray with probability `p`."""

    def __init__(self, *, p: Fraction = 0.1):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        return _recolored(sample, _pixels(sample.image), color_map(0.0, 0.0), 0.0)


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def color_map(saturation: float, turn: float) -> np.ndarray:
    """The (3, 3) map of RGB values that scales color by `saturation` and rotates it by `turn` of a
    full circle (red to green to blue); luma stays.
    """
    sin, cos = math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)
    turned = np.array([[cos, sin], [-sin, cos]]) * saturation
    in_yiq = np.block([[np.ones((1, 1)), np.zeros((1, 2))], [np.zeros((2, 1)), turned]])
    return np.linalg.inv(_TO_YIQ) @ in_yiq @ _TO_YIQ


def _pixels(image: Tensor) -> Tensor:
    """(3, h * w) float32."""
    return image.reshape(3, -1).float()


def _recolored(sample: Sample, pixels: Tensor, matrix: np.ndarray, offset: float) -> Sample:
    colors = (pixels.new_tensor(matrix) @ pixels).add_(offset).round_().clamp_(0, 255)
    return replace(sample, image=colors.to(torch.uint8).view(3, *sample.size))


def _random_window(
    sample: Sample,
    rng: np.random.Generator,
    height: int,
    width: int,
    around: tuple[float, float] | None = None,
) -> Sample:
    """The sample cropped at random to `height` x `width`, with the point `around` (y, x) inside."""
    if (height, width) == sample.size:
        return sample
    corner = []  # top, left
    for side, part, point in zip(sample.size, (height, width), around or (None, None), strict=True):
        low, high = 0, side - part
        if point is not None:
            low, high = max(low, math.ceil(point) - part), min(high, math.floor(point))
        corner.append(int(rng.integers(low, high + 1)))
    return sample.crop(corner[0], corner[1], height, width)


def _some_center(sample: Sample, rng: np.random.Generator) -> tuple[float, float] | None:
    """The center (y, x) of a random object; None without objects."""
    if sample.boxes is None or sample.iscrowd is None or sample.iscrowd.all():
        return None
    box = sample.boxes[rng.choice(np.flatnonzero(~sample.iscrowd))]
    return float(box[1] + box[3]) / 2, float(box[0] + box[2]) / 2
