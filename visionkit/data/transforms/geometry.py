"""Transforms that move the image and its labels: flips, crops and scales."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from visionkit.config.schema import Fraction, Positive
from visionkit.data.resize import ImageSize, fit
from visionkit.data.sample import Sample
from visionkit.errors import ConfigError


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


def window(size: tuple[int, int], image_size: ImageSize) -> tuple[int, int]:
    """The largest (h, w) in the network of a random crop of an image of `size`."""
    if isinstance(image_size, int):
        return image_size, image_size
    return fit(size, image_size)


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
