"""One look at a picture file: whether it can be read, what it is, and what reading it loses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from visionkit.data.files import Fault
from visionkit.data.images import MAX_PIXELS, Refused, open_picture, orientation, to_rgb

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # a JPEG with more pictures behind the first
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}


class Look(NamedTuple):
    """What a file turned out to be. Where `kind` is not empty, only `clause` is known besides."""

    kind: str = ""  # of the fault, one word; empty: it can be read
    clause: str = ""  # what is wrong and what to do, to follow the file's name
    height: int = 0  # as stored
    width: int = 0
    orientation: int = 1  # by its EXIF record, 1 to 8
    mode: str = ""
    format: str = ""
    loses: str = ""  # what `load_image` leaves out, of "alpha", "bits" and "frames"
    content: str = ""  # a hash of the file's bytes


def look_at(path: Path, max_pixels: int = MAX_PIXELS) -> Look:
    """Decode the picture, and check the sums in a PNG, which decoding does not look at."""

    def facts(image: Image.Image) -> Look:
        if image.format == "PNG":
            with Image.open(path, formats=("PNG",)) as again:
                again.verify()
        loses = ["bits"] * _has_16_bits(image) + ["frames"] * _is_animated(image)
        image.load()
        to_rgb(image)
        loses += ["alpha"] * _is_transparent(image)
        found = Look("", "", image.height, image.width, orientation(image), image.mode)
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return found._replace(
            format=image.format or "", loses=" ".join(loses), content=content.hexdigest()
        )

    try:
        return open_picture(path, facts, max_pixels)
    except Refused as refused:
        return of_fault(refused.fault)


def of_fault(fault: Fault) -> Look:
    return Look(*fault)


def _has_16_bits(image: Image.Image) -> bool:
    """Of a picture that is not decoded yet; gray has a mode of its own, colors do not."""
    return image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile)


def _is_animated(image: Image.Image) -> bool:
    return image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.getextrema()[-1][0] < 255
    return "transparency" in image.info
