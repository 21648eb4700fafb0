"""The size of an image from the header of its file, for folders of many images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from PIL import Image

from visionkit.data.image_io import MAX_PIXELS, Exif, Size, open_image, orientation
from visionkit.runs.files import open_regular

HEADER = 8192  # bytes of a JPEG that have its size, unless it has a thumbnail or a large profile
_START = b"\xff\xd8\xff"
_EXIF, _SCAN = 0xE1, 0xDA  # markers of segments: APP1, which may turn the image; the pixels
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # have the size
_BARE = {0x01, 0xFF, *range(0xD0, 0xDA)}  # without a length


def read_size(path: str | Path, exif: Exif = "apply") -> Size:
    """(h, w) of an image as `read_image` returns it, from its header alone. `Refused` for a file
    that is not an image."""
    with suppress(OSError, ValueError), open_regular(path) as file:
        if (found := _jpeg_size(file.read(HEADER))) is not None:
            return found

    def size(image: Image.Image) -> Size:
        turned = exif == "apply" and orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)

    return open_image(path, size)


def _jpeg_size(start: bytes) -> Size | None:
    """(h, w) of a JPEG with these first bytes, about six times as fast as Pillow; None for other
    files, and for those that only Pillow is to judge."""
    if not start.startswith(_START):
        return None
    place, size = 2, None
    while place + 9 <= len(start) and start[place] == 0xFF:
        marker = start[place + 1]
        if marker == _SCAN:
            return size
        if marker == _EXIF or marker in _BARE:
            return None
        if marker in _FRAMES:
            height = int.from_bytes(start[place + 5 : place + 7], "big")
            width = int.from_bytes(start[place + 7 : place + 9], "big")
            if size is not None or not 0 < height * width <= MAX_PIXELS:
                return None
            size = height, width
        place += 2 + int.from_bytes(start[place + 2 : place + 4], "big")
    return None
