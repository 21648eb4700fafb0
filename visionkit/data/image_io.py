"""Read images: every mode becomes 8-bit RGB, every failure a DataError that names the file.

Pillow decodes, never `torchvision.io`, which can crash the process on a corrupt PNG.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from visionkit.data.files import Fault, find_fault
from visionkit.errors import DataError, printable

Exif: TypeAlias = Literal["apply", "ignore"]  # whether an EXIF orientation turns the image

FORMATS = {  # that are read, with their suffixes
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
SUFFIXES = tuple(chain.from_iterable(FORMATS.values()))
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

T = TypeVar("T")


def is_image_file(path: Path) -> bool:
    """Whether the path is a visible file with a suffix that `read_image` reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_image(path: str | Path, *, exif: Exif = "apply") -> Tensor:
    """The image as (3, h, w) uint8 RGB, channels last in memory.

    Alpha is dropped, the first frame of an animation is used, and 16-bit gray is divided by 257.
    With `exif="apply"` the image is turned upright (Pillow always does so with TIFF files). Raises
    DataError if the file cannot be read, has more than `MAX_PIXELS` pixels (checked before
    decoding), or has values without a fixed meaning as 8 bits.
    """
    rgb = _read(path, lambda image: to_rgb(upright(image, exif)))
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1)


def label_mode_fault(mode: str) -> Fault | None:
    """Why an image of that mode cannot be a semantic map; None if it can."""
    if mode in ("L", "P"):
        return None
    return Fault("values", f"has mode {mode}: a semantic map must be 8-bit gray or palette")


def read_label_map(path: str | Path) -> Tensor:
    """The class numbers of a semantic map, an 8-bit gray or palette image: (h, w) uint8."""

    def indices(image: Image.Image) -> Image.Image:
        if fault := label_mode_fault(image.mode):
            raise Refused(fault)
        image.load()
        return image

    labels = _read(path, indices)
    values = torch.frombuffer(bytearray(labels.tobytes()), dtype=torch.uint8)
    return values.view(labels.height, labels.width)


def check_size(
    path: Path, found: tuple[int, int], expected: tuple[int, int], source: Path, exif: Exif
) -> None:
    """DataError if an image has another (h, w) than its annotations, the file `source`."""
    if found == expected:
        return
    other = "ignore" if exif == "apply" else "apply"
    hint = (
        f"swapped: correct the sizes in the file, or set `exif: {other}` on the dataset"
        if found == expected[::-1]
        else "the annotations are of another image, or one of the two was resized alone"
    )
    raise DataError(
        f"image {printable(path)} is {found[1]}x{found[0]}, but {printable(source)} says "
        f"{expected[1]}x{expected[0]} ({hint})"
    )


class Refused(Exception):
    """A file cannot be used as an image, because of its `fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def open_image(path: str | Path, use: Callable[[Image.Image], T]) -> T:
    """What `use` returns for the image in a file, which is opened but not decoded yet. `Refused` if
    it has more than `MAX_PIXELS` pixels, or if anything fails."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe could block
            raise Refused(find_fault(path))
        with Image.open(path, formats=tuple(FORMATS)) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}"
                raise Refused(Fault("too-large", f"has {size}: make it smaller"))
            return use(image)
    except Refused:
        raise
    except Image.DecompressionBombError:
        clause = f"has more than {MAX_PIXELS} pixels: make it smaller"
        raise Refused(Fault("too-large", clause)) from None
    except MemoryError:
        clause = "does not fit into memory, or is corrupt: make it smaller or replace it"
        raise Refused(Fault("too-large", clause)) from None
    except Exception as error:  # decoders raise nearly anything on corrupt bytes
        kind, clause = find_fault(path)
        raise Refused(Fault(kind, f"{clause} [{printable(str(error))}]")) from error


def _read(path: str | Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        return open_image(path, convert)
    except Refused as refused:
        raise DataError(f"image {printable(path)} {refused.fault.clause}") from refused.__cause__


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is no valid record."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds of errors for corrupt records
        return 1
    return found if found in _UPRIGHT else 1


def upright(image: Image.Image, exif: Exif) -> Image.Image:
    """The decoded image, with `exif="apply"` turned as its EXIF record says."""
    image.load()
    turn = None if exif == "ignore" else _UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB. `Refused` if its values have no meaning as 8 bits."""
    if image.mode.startswith("I"):
        return _gray16(image).convert("RGB")
    if image.mode == "F":
        clause = "has floating-point pixels of unknown range: save it with 8 or 16 bits"
        raise Refused(Fault("values", clause))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # as `inPlace` is not set
        return converted
    if image.mode == "RGBa":  # premultiplied alpha
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray16(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        clause = f"has integer pixels from {low} to {high}: save it with 8 or 16 bits"
        raise Refused(Fault("values", clause))
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
