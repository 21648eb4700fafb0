"""The size of an image in the network, and resizing to it. Torch is not imported."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from PIL import Image

from visionkit.config.config import fixed_size
from visionkit.types import Size

# Longest side, (shortest, longest), or "WIDTHxHEIGHT"
ImageSize: TypeAlias = int | tuple[int, int] | str


def fit(size: tuple[int, int], image_size: ImageSize) -> tuple[int, int]:
    """The (h, w) in the network of an image of `size` (h, w).

    With one number, the longest side gets it. With (shortest, longest), the shortest side gets the
    first number, unless the longest would exceed the second; rounded down as in torchvision's
    `GeneralizedRCNNTransform(min_size, max_size)`. Both keep the aspect ratio; "WIDTHxHEIGHT" is
    the size of every image.
    """
    if (fixed := fixed_size(image_size)) is not None:
        return fixed
    if isinstance(image_size, int):
        scale = image_size / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    assert not isinstance(image_size, str)
    shortest, longest = image_size
    scale = min(shortest / min(size), longest / max(size))
    return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def fit_within(size: Size, image_size: ImageSize, limit: Size | None) -> Size:
    """The (h, w) in a network whose input has the size `limit`; None: any size."""
    if limit is not None and fixed_size(image_size) is not None:
        return limit
    height, width = fit(size, image_size)
    if limit is None or (height <= limit[0] and width <= limit[1]):
        return height, width
    scale = min(limit[0] / height, limit[1] / width)
    return (
        min(max(1, round(height * scale)), limit[0]),
        min(max(1, round(width * scale)), limit[1]),
    )


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """An image (3, h, w) uint8 at `size` (h, w), bilinear and antialiased.

    Pillow rounds as torchvision does on CPUs with AVX2: nearly all pixels are those of
    `Sample.resize`, the others differ by one.
    """
    if image.shape[1:] == size:
        return image
    pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    height, width = size
    return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def resized_floats(channels: np.ndarray, size: Size) -> np.ndarray:
    """Channels (C, h, w) float32 at `size` (h, w), in the same way, without rounding."""
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR))
            for one in np.asarray(channels, np.float32)
        ]
    )
