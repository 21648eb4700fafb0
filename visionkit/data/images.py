"""Reading pictures: every mode becomes 8-bit RGB, every failure a `DataError` that names the file.

Pillow decodes, never `torchvision.io`, which can crash the process on a damaged PNG.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from visionkit.data.files import diagnose
from visionkit.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 178_956_970  # Pillow itself refuses more, as a decompression bomb

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Fitted(NamedTuple):
    """A picture of which only the pixels at the size for the network are at hand."""

    pixels: Tensor  # (3, h, w) uint8
    shape: tuple[int, ...]  # of the whole picture, (3, H, W)


Load: TypeAlias = Callable[..., Tensor | Fitted]  # called like `load_image`, by a data set


def is_image_file(path: Path) -> bool:
    """Whether the name is that of a visible file in a format that `load_image` reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def load_image(
    path: str | Path,
    *,
    exif: Literal["apply", "ignore"] = "apply",
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """The picture as (3, h, w) uint8 RGB, channels last in memory.

    Alpha is dropped, an animation gives its first frame, 16-bit gray is divided by 257. With
    `exif="apply"` the picture is turned upright (TIFF files always are, by Pillow). Raises
    `DataError` if the file cannot be read, has more than `max_pixels` pixels (found before
    decoding), or holds values that have no fixed meaning as 8 bits.
    """
    rgb = _open(path, max_pixels, lambda image: _to_rgb(_upright(image, exif)))
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1)


def load_label_map(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A map of class numbers stored as an 8-bit gray or palette picture: (h, w) uint8."""

    def indices(image: Image.Image) -> Image.Image:
        if image.mode not in ("L", "P"):
            raise DataError(f"has mode {image.mode}: a label map is 8-bit gray or palette")
        return image

    labels = _open(path, max_pixels, indices)
    values = torch.frombuffer(bytearray(labels.tobytes()), dtype=torch.uint8)
    return values.view(labels.height, labels.width)


def _open(
    path: str | Path, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"has {image.width}x{image.height} pixels, more than the limit of "
                    f"{max_pixels}: make it smaller"
                )
            image.load()
            return convert(image)
    except DataError as error:
        raise DataError(f"picture {path} {error}") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"picture {path} has more than {MAX_PIXELS} pixels: make it smaller"
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise DataError(f"picture {path} {diagnose(path)} [{error}]") from error


def _upright(image: Image.Image, exif: Literal["apply", "ignore"]) -> Image.Image:
    if exif == "ignore":
        return image
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, KeyError, OSError):  # broken EXIF says nothing
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _gray16(image).convert("RGB")
    if image.mode == "F":
        raise DataError("has floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode == "RGBa":  # premultiplied alpha
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray16(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"has integer pixels from {low} to {high}: save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
