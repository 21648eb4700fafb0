"""Transforms that move the image and its labels: flips, crops, scales and warps."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, TypeAlias

import numpy as np

from visionkit.config.config import fixed_size
from visionkit.config.schema import Fraction, Positive, Range
from visionkit.data.resize import ImageSize, fit
from visionkit.data.sample import FILL, Sample
from visionkit.errors import ConfigError

Byte: TypeAlias = Annotated[int, Range(low=0, high=255)]


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


class Rotate90:
    """Turns the image by 90, 180 or 270 degrees with probability `p`, exactly. For images without
    an upper side, such as those of a microscope or from above.

    With p = 0.75 all four directions are equally frequent. Where the network's size is
    "WIDTHxHEIGHT", an image at that size gets it again, as if it had been turned before.
    """

    def __init__(self, *, p: Fraction = 0.75):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        turns = int(rng.integers(1, 4))
        turned, fixed = sample.rot90(turns), fixed_size(size)
        if turns == 2 or fixed is None or sample.size[0] > fixed[0] or sample.size[1] > fixed[1]:
            return turned
        scales = fixed[0] / fixed[1], fixed[1] / fixed[0]
        height, width = (
            max(1, round(side * scale)) for side, scale in zip(turned.size, scales, strict=True)
        )
        return turned.resize((height, width))


class Letterbox:
    """Resizes the image so that it fits into the network's size, and fills the rest with gray
    (`fill`, 0 to 255), the image in the center: all images of a batch have one size.

    The network's size is a square if `image_size` is one number; with (shortest, longest) it is
    that rectangle, upright for upright images. No later transform may resize. Images of validation
    and prediction are resized without it.
    """

    resizes: ClassVar[bool] = True

    def __init__(self, *, fill: Byte = FILL):
        self.fill = fill

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if (fixed := fixed_size(size)) is not None:
            height, width = fixed
        else:
            height, width = (size, size) if isinstance(size, int) else map(int, size)
            if sample.size[0] > sample.size[1]:
                height, width = width, height
        scale = min(height / sample.size[0], width / sample.size[1])
        inner = [max(1, round(side * scale)) for side in sample.size]
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        return sample.resize((inner[0], inner[1])).pad(top, left, (height, width), self.fill)


class Affine:
    """Turns, scales, shears and shifts the image about its center at random, with probability `p`.

    degrees: turned by up to so many, in either direction.
    translate: shifted by up to that share of the width and of the height.
    scale: range of the factor, drawn uniformly on a logarithmic scale.
    shear: vertical and horizontal lines are tilted by up to so many degrees.
    fill: gray of what shows nothing of the image, 0 to 255; `IGNORE` in semantic maps.

    The size stays. Objects with an outline get the box of their new outline, others that of the
    corners of their old box, which is too large if the image turns: see `Sample.warp`.
    """

    def __init__(
        self,
        *,
        degrees: Annotated[float, Range(low=0, high=180)] = 10.0,
        translate: Fraction = 0.1,
        scale: tuple[Positive, Positive] = (0.8, 1.25),
        shear: Annotated[float, Range(low=0, high=45)] = 5.0,
        fill: Byte = FILL,
        p: Fraction = 1.0,
    ):
        check_span("scale", scale)
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.fill, self.p = fill, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        factor = math.exp(rng.uniform(*np.log(self.scale)))
        tilt = np.tan(np.radians(rng.uniform(-self.shear, self.shear, 2)))
        shift = rng.uniform(-self.translate, self.translate, 2) * sample.size[::-1]
        linear = factor * turn(angle) @ [[1, tilt[0]], [tilt[1], 1]]
        return sample.warp(about_center(linear, sample.size, shift), sample.size, self.fill)


class Perspective:
    """Shows the image as a plane seen at an angle, with probability `p`: each corner moves inward
    by up to `distortion` times half of each side, as in torchvision's `RandomPerspective`.

    fill: gray of what shows nothing of the image, 0 to 255; `IGNORE` in semantic maps.
    """

    def __init__(
        self,
        *,
        distortion: Annotated[float, Range(low=0, high=0.9)] = 0.3,
        fill: Byte = FILL,
        p: Fraction = 0.5,
    ):
        self.distortion, self.fill, self.p = distortion, fill, p

    def __call__(self, sample: Sample, rng: np.random.Generator, size: ImageSize) -> Sample:
        if rng.random() >= self.p:
            return sample
        unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
        sides = np.array(sample.size[::-1], float)
        inward = rng.uniform(0, self.distortion / 2, (4, 2)) * (1 - 2 * unit)
        matrix = homography(unit * sides, (unit + inward) * sides)
        return sample.warp(matrix, sample.size, self.fill)


def turn(angle: float) -> np.ndarray:
    """The (2, 2) map that turns an image counterclockwise by `angle` in radians."""
    sin, cos = math.sin(angle), math.cos(angle)
    return np.array([[cos, sin], [-sin, cos]])


def about_center(linear: np.ndarray, size: tuple[int, int], shift: np.ndarray) -> np.ndarray:
    """The (3, 3) matrix that applies a linear map (2, 2) about the center of an image of `size`
    (h, w), then moves it by `shift` (x, y)."""
    center = np.array([size[1], size[0]]) / 2
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, center + shift - linear @ center
    return matrix


def homography(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The (3, 3) matrix that moves four points (4, 2) to four others, no three on a line."""
    rows = []
    for (x, y), (u, v) in zip(old, new, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), new.ravel()), 1).reshape(3, 3)


def check_span(name: str, span: tuple[float, float]) -> None:
    """ConfigError unless the range is (low, high)."""
    if span[0] > span[1]:
        raise ConfigError(f"{name}: got {[*span]}; expected [low, high], low at most high")


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
