"""The size of an image in the network, and resizing to it. Torch is not imported."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from visionkit.config.config import fixed_size
from visionkit.types import Size

# Longest side, (shortest, longest), or "WIDTHxHEIGHT"
ImageSize: TypeAlias = int | tuple[int, int] | str
CHUNK = 128  # lines resized at a time: what a processor's cache holds
BLOCK = 32  # pixels of a line at a time: few of their weights are zero


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


def scaled(size: Size, scale: float) -> Size:
    """A (h, w) times a factor."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


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
    """An image (3, h, w) uint8 at `size` (h, w), bilinear and antialiased: the pixels of
    `Sample.resize` on a CPU with AVX2, where torchvision computes with integers. Both sum products
    with weights of 15 bits, which single floats hold exactly; columns first."""
    (_, height, width), (new_height, new_width) = image.shape, size
    if (height, width) == size:
        return image
    lines = np.empty((height, 3, new_width), np.float32)
    for top in range(0, height, CHUNK):
        part = image[:, top : top + CHUNK].transpose(1, 0, 2).astype(np.float32)
        if new_width != width:
            part = _resampled(part, *_weights(width, new_width))
        lines[top : top + CHUNK] = part
    if new_height != height:
        lines = _resampled(lines.T, *_weights(height, new_height)).T
    return lines.astype(np.uint8).transpose(1, 0, 2)


class Block(NamedTuple):
    """Neighboring pixels of a resized row, and those before from which they are computed."""

    pixels: slice
    of: slice
    weights: np.ndarray  # (before, resized) float32 integers


def _resampled(lines: np.ndarray, blocks: list[Block], bits: int) -> np.ndarray:
    """Lines (..., old) float32 of bytes at the new length, rounded to bytes again."""
    new = np.empty((*lines.shape[:-1], blocks[-1].pixels.stop), np.float32)
    for block in blocks:
        new[..., block.pixels] = lines[..., block.of] @ block.weights
    new += np.float32(2 ** (bits - 1))
    new *= np.float32(2.0**-bits)
    return np.minimum(np.floor(new, out=new), 255, out=new)


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> tuple[list[Block], int]:
    """The weights for lines of `old` pixels that get `new`, and how often one was doubled to become
    an integer of 15 bits."""
    scale = old / new
    reach = max(1.0, scale)
    centers = scale * (np.arange(new) + 0.5)
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + reach + 0.5).astype(np.int64), old)
    place = first[:, None] + np.arange((last - first).max())  # (new, taps)
    weights = 1 - np.abs((place - centers[:, None] + 0.5) * (1 / reach))
    weights = np.where(place < last[:, None], weights.clip(0), 0)
    weights /= weights.sum(1, keepdims=True)
    bits = next(n for n in range(23) if n == 22 or int(0.5 + weights.max() * 2 ** (n + 1)) >= 2**15)
    weights = np.floor(weights * 2**bits + 0.5)
    blocks = []
    for start in range(0, new, BLOCK):
        some = slice(start, min(start + BLOCK, new))
        low, high = int(first[some].min()), int(last[some].max())
        table = np.zeros((high - low + place.shape[1], some.stop - start), np.float32)
        table[place[some] - low, np.arange(some.stop - start)[:, None]] = weights[some]
        blocks.append(Block(some, slice(low, high), table[: high - low]))
    return blocks, bits


def resized_floats(channels: np.ndarray, size: Size) -> np.ndarray:
    """Channels (C, h, w) float32 at `size` (h, w), bilinear and antialiased, without rounding."""
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR))
            for one in np.asarray(channels, np.float32)
        ]
    )
