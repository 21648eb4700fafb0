"""RandAugment and TrivialAugment: random ones of a list of operations, for boxes and masks too.

The operations and their ranges are those of torchvision's `RandAugment` and `TrivialAugmentWide`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from torchvision.transforms.v2 import functional as F

from visionkit.config.schema import Count, Natural
from visionkit.data.resize import ImageSize
from visionkit.data.sample import FILL, Sample
from visionkit.data.transforms.geometry import Byte, about_center, turn
from visionkit.errors import ConfigError

# An operation: a sample, the signed strength and the fill to the new sample.
Operation: TypeAlias = Callable[[Sample, float, int], Sample]


def _colors(change: Callable[..., Any], factor: bool = False) -> Operation:
    """The operation that changes the image alone; by a factor of 1 + strength, by the strength, or
    without either."""

    def apply(sample: Sample, strength: float, fill: int) -> Sample:
        return replace(sample, image=change(sample.image, 1 + strength if factor else strength))

    return apply


def _sheared(axis: int) -> Operation:
    """Shears about the upper left corner, as in the papers."""

    def apply(sample: Sample, strength: float, fill: int) -> Sample:
        matrix = np.eye(3)
        matrix[axis, 1 - axis] = -strength
        return sample.warp(matrix, sample.size, fill)

    return apply


def _shifted(axis: int) -> Operation:
    def apply(sample: Sample, strength: float, fill: int) -> Sample:
        matrix = np.eye(3)
        matrix[axis, 2] = int(strength)
        return sample.warp(matrix, sample.size, fill)

    return apply


def _turned(sample: Sample, strength: float, fill: int) -> Sample:
    matrix = about_center(turn(np.radians(strength)), sample.size, np.zeros(2))
    return sample.warp(matrix, sample.size, fill)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda sample, strength, fill: sample,
    "ShearX": _sheared(0),
    "ShearY": _sheared(1),
    "TranslateX": _shifted(0),
    "TranslateY": _shifted(1),
    "Rotate": _turned,
    "Brightness": _colors(F.adjust_brightness, factor=True),
    "Color": _colors(F.adjust_saturation, factor=True),
    "Contrast": _colors(F.adjust_contrast, factor=True),
    "Sharpness": _colors(F.adjust_sharpness, factor=True),
    "Posterize": _colors(lambda image, strength: F.posterize(image, 8 - round(strength))),
    "Solarize": _colors(lambda image, strength: F.solarize(image, 255 * (1 - strength))),
    "AutoContrast": _colors(lambda image, strength: F.autocontrast(image)),
    "Equalize": _colors(lambda image, strength: F.equalize(image)),
}
ONE_WAY = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")  # the others: or back


def _apply(name: str, strength: float, sample: Sample, rng: np.random.Generator, fill: int) -> Any:
    """The operation at that strength, of either sign if it has two directions."""
    if name not in ONE_WAY and rng.random() < 0.5:
        strength = -strength
    return OPERATIONS[name](sample, strength, fill)


class RandAugment:
    """Applies `num_ops` random ones of 14 operations, all at one magnitude (Cubuk et al., 2019).

    They shear, shift or turn the image with its labels, or change its brightness, color, contrast,
    sharpness, bits, or histogram; one leaves it as it is.

    magnitude: from 0, no change, to bins - 1, the largest.
    fill: gray of what shows nothing of the image, 0 to 255; `IGNORE` in semantic maps.
    """

    def __init__(
        self, *, num_ops: Count = 2, magnitude: Natural = 9, bins: Count = 31, fill: Byte = FILL
    ):
        if magnitude >= bins:
            raise ConfigError(f"magnitude: got {magnitude}; expected at most bins - 1, {bins - 1}")
        self.num_ops, self.fill = num_ops, fill
        self.level = magnitude / max(bins - 1, 1)  # 0 to 1

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        for _ in range(self.num_ops):
            name = [*OPERATIONS][rng.integers(len(OPERATIONS))]
            strength = self.level * _largest(name, sample.size)
            sample = _apply(name, strength, sample, rng, self.fill)
        return sample


def _largest(name: str, size: tuple[int, int]) -> float:
    """The strength of an operation of RandAugment at magnitude 1."""
    share = 150 / 331  # 150 pixels of the 331 of the paper's images
    largest = {"TranslateX": share * size[1], "TranslateY": share * size[0]}
    largest |= {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0, "Posterize": 4.0, "Solarize": 1.0}
    return largest.get(name, 0.9)


class TrivialAugment:
    """Applies one random operation of 14 at a random magnitude, with nothing to tune (Müller and
    Hutter, 2021): those of `RandAugment` in the paper's wide ranges.

    fill: gray of what shows nothing of the image, 0 to 255; `IGNORE` in semantic maps.
    """

    def __init__(self, *, fill: Byte = FILL):
        self.fill = fill

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        name = [*OPERATIONS][rng.integers(len(OPERATIONS))]
        largest = {"TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0}
        largest |= {"Posterize": 6.0, "Solarize": 1.0}
        strength = largest.get(name, 0.99) * int(rng.integers(31)) / 30
        return _apply(name, strength, sample, rng, self.fill)
