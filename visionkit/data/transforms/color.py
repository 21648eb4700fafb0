"""Transforms that change the colors alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, TypeAlias

import numpy as np
import torch
from torch import Tensor

from visionkit.config.schema import Fraction, NonNegative, Range
from visionkit.data.resize import ImageSize
from visionkit.data.sample import Sample

Turn: TypeAlias = Annotated[float, Range(low=0, high=0.5)]


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
