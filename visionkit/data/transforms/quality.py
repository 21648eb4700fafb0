"""Transforms that make the image worse: blur, noise, compression and erased parts."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from visionkit.config.schema import Fraction, NonNegative, Positive, Range
from visionkit.data.resize import ImageSize
from visionkit.data.sample import Sample
from visionkit.data.transforms.geometry import Byte, check_span
from visionkit.types import IGNORE

Quality: TypeAlias = Annotated[int, Range(low=1, high=100)]
TRIES = 10  # rectangles drawn for one that fits into the image


class GaussianBlur:
    """Blurs the image with probability `p`.

    sigma: range of the standard deviation, in pixels of the image at that moment.
    """

    def __init__(self, *, sigma: tuple[Positive, Positive] = (0.1, 2.0), p: Fraction = 0.5):
        check_span("sigma", sigma)
        self.sigma, self.p = sigma, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        sigma = rng.uniform(*self.sigma)
        radius = min(math.ceil(3 * sigma), min(sample.size) - 1)
        pixels, width = sample.image.float(), 2 * radius + 1
        for kernel in ([width, 1], [1, width]):  # in turn, which is cheaper than both at once
            pixels = F.gaussian_blur(pixels, kernel, [sigma, sigma])
        return replace(sample, image=pixels.round_().to(torch.uint8))


class Noise:
    """Adds normal noise to each pixel and channel, with probability `p`.

    std: range of the standard deviation, in gray levels of 0 to 255.
    """

    def __init__(self, *, std: tuple[NonNegative, NonNegative] = (0.0, 12.0), p: Fraction = 0.5):
        check_span("std", std)
        self.std, self.p = std, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        std = rng.uniform(*self.std)
        noise = torch.from_numpy(rng.standard_normal(sample.image.shape, np.float32))
        pixels = noise.mul_(std).add_(sample.image).round_().clamp_(0, 255)
        return replace(sample, image=pixels.to(torch.uint8))


class Jpeg:
    """Compresses the image as JPEG and decodes it, with probability `p`.

    quality: range of JPEG's quality, 1 to 100.
    """

    def __init__(self, *, quality: tuple[Quality, Quality] = (30, 95), p: Fraction = 0.5):
        check_span("quality", quality)
        self.quality, self.p = quality, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        file, (low, high) = io.BytesIO(), self.quality
        pixels = sample.image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "jpeg", quality=int(rng.integers(low, high + 1)))
        decoded = torch.from_numpy(np.array(Image.open(file)))
        return replace(sample, image=decoded.permute(2, 0, 1))


class RandomErasing:
    """Erases a random rectangle of the image with probability `p` (Zhong et al., 2017).

    scale: range of its share of the image's area.
    ratio: range of its height / width.
    value: gray of its pixels, 0 to 255, or "random", for which the paper's results are best.

    Boxes and masks stay, so that a network learns to see what is half hidden. Objects whose box
    lies within the rectangle are dropped, and semantic maps are `IGNORE` there.
    """

    def __init__(
        self,
        *,
        scale: tuple[Positive, Positive] = (0.02, 0.33),
        ratio: tuple[Positive, Positive] = (0.3, 3.3),
        value: Byte | Literal["random"] = "random",
        p: Fraction = 0.5,
    ):
        check_span("scale", scale)
        check_span("ratio", ratio)
        self.scale, self.ratio, self.value, self.p = scale, ratio, value, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        for _ in range(TRIES):
            area = sample.size[0] * sample.size[1] * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*np.log(self.ratio)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < height < sample.size[0] and 0 < width < sample.size[1]:
                top = int(rng.integers(sample.size[0] - height + 1))
                left = int(rng.integers(sample.size[1] - width + 1))
                return self._erased(sample, rng, (left, top, left + width, top + height))
        return sample

    def _erased(
        self, sample: Sample, rng: np.random.Generator, box: tuple[int, int, int, int]
    ) -> Sample:
        left, top, right, bottom = box
        window = (..., slice(top, bottom), slice(left, right))
        erased = replace(sample, image=sample.image.clone())
        if self.value == "random":
            values = rng.integers(0, 256, (3, bottom - top, right - left), np.uint8)
            erased.image[window] = torch.from_numpy(values)
        else:
            erased.image[window] = self.value
        if sample.semantic is not None:
            erased.semantic = sample.semantic.clone()
            erased.semantic[window] = IGNORE
        if sample.boxes is not None:
            low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
            hidden = np.all((low >= [left, top]) & (high <= [right, bottom]), axis=1)
            erased.boxes = sample.boxes * ~hidden[:, None]  # no extent: dropped in the target
        return erased
