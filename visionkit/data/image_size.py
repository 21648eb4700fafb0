"""The size of an image from the header of its file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visionkit.data.image_io import Exif, Size, open_image, orientation


def read_size(path: str | Path, exif: Exif = "apply") -> Size:
    """(h, w) of an image as `read_image` returns it, from its header alone. `Refused` for a file
    that is not an image."""

    def size(image: Image.Image) -> Size:
        turned = exif == "apply" and orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)

    return open_image(path, size)
