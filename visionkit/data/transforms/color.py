"""Transforms that change the colors alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from visionkit.config.schema import Fraction, NonNegative, Range
from visionkit.data.resize import ImageSize
from visionkit.data.sample import Sample
from visionkit.data.transforms.geometry import check_span

Turn: TypeAlias = Annotated[float, Range(low=0, high=0.5)]
SignedTurn: TypeAlias = Annotated[float, Range(low=-0.5, high=0.5)]
Spread: TypeAlias = NonNegative | tuple[NonNegative, NonNegative]
Span: TypeAlias = tuple[float, float]


class ColorJitter:
    """Random brightness, contrast, saturation (factors of 1 ± the argument, at least 0) and hue (a
    rotation by up to that part of the color circle); each may be a range (low, high) instead.

    All four are one linear map of the RGB values, rounded and clipped once, so that their order
    does not matter. Hue rotates the plane of equal luma, which is much cheaper than a conversion to
    HSV.

    each: probability with which each of the four is changed.
    shuffle: probability with which the three channels are exchanged at random.
    p: probability of any change. With contrast and saturation 0.5, brightness 0.125, hue 0.05 and
        each 0.5 this is SSD's photometric distortion (Liu et al., 2016).
    """

    def __init__(
        self,
        *,
        brightness: Spread = 0.2,
        contrast: Spread = 0.2,
        saturation: Spread = 0.2,
        hue: Turn | tuple[SignedTurn, SignedTurn] = 0.02,
        each: Fraction = 1.0,
        shuffle: Fraction = 0.0,
        p: Fraction = 1.0,
    ):
        self.factors = [
            _span("brightness", brightness, 1.0),
            _span("contrast", contrast, 1.0),
            _span("saturation", saturation, 1.0),
        ]
        self.hue = _span("hue", hue, 0.0)
        self.each, self.shuffle, self.p = each, shuffle, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if self.p < 1 and rng.random() >= self.p:
            return sample
        brightness, contrast, saturation = (self._drawn(rng, span, 1.0) for span in self.factors)
        pixels = _pixels(sample.image)
        gray = brightness * float(_TO_YIQ[0] @ pixels.mean(1).numpy())
        turn = self._drawn(rng, self.hue, 0.0)
        matrix = brightness * contrast * color_map(saturation, turn)
        if self.shuffle and rng.random() < self.shuffle:
            matrix = matrix[rng.permutation(3)]
        return _recolored(sample, pixels, matrix, (1 - contrast) * gray)

    def _drawn(self, rng: np.random.Generator, span: Span, neutral: float) -> float:
        value = rng.uniform(*span)
        return neutral if self.each < 1 and rng.random() >= self.each else value


def _span(name: str, value: float | Span, neutral: float) -> Span:
    """The range (low, high) of a factor or a turn that was given as one, or as its half width."""
    if isinstance(value, tuple | list):
        check_span(name, value)
        return value[0], value[1]
    return max(neutral - value, neutral - 1), neutral + value


class Equalize:
    """Makes the histogram of each channel flat, with probability `p`."""

    def __init__(self, *, p: Fraction = 0.5):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        return replace(sample, image=F.equalize(sample.image))


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
