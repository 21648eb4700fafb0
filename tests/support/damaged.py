"""Image files with a fault, byte by byte."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from visionkit.data.checks.images import image_findings

PNG = b"\x89PNG\r\n\x1a\n"


def pixels(size=(40, 60), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def image(format, size=(40, 60), seed=0, **options):
    """The bytes of a good file."""
    file = io.BytesIO()
    Image.fromarray(pixels(size, seed)).save(file, format, **options)
    return file.getvalue()


def chunk(kind, body, flip=0):
    """A chunk of a PNG; `flip` spoils its CRC."""
    crc = zlib.crc32(kind + body) ^ flip
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(width, height, rows, *, depth=8, color=2, crc_flip=0, before=b""):
    """A PNG that says it is of that size, with those filtered rows in one IDAT."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows), crc_flip)
    return PNG + header + before + data + chunk(b"IEND", b"")


def flat_png(width, height, value, *, depth=8, color=2, **options):
    """Of one value in all channels."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    sample = struct.pack(">H", value) if depth == 16 else bytes([value])
    return png(
        width,
        height,
        (b"\0" + sample * channels * width) * height,
        depth=depth,
        color=color,
        **options,
    )


def tiff(width, height, strip_bytes, data=b"\0" * 64):
    """A gray TIFF in one uncompressed strip that says it has that many bytes."""
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)),
        *((262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height)),
        (279, 4, 1, strip_bytes),
    ]
    start = 8 + len(data)
    table = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, count, value in entries
    )
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + data
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
    )


def tiff_of(bands, bits, sample, planar=1, compression=1):
    """A black TIFF of 4x3 pixels with those tags."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258], tags[259] = 4, 3, (bits,) * bands, compression
    tags[262], tags[277], tags[339] = 2 if bands == 3 else 1, bands, (sample,) * bands
    tags[284] = planar
    if bands == 2:
        tags[338] = 0  # not alpha
    tags[273], tags[278], tags[279] = 8, 3, 4 * 3 * bands * bits // 8
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + bytes(4 * 3 * bands * bits // 8 + 64)


def turned(orientation, size=(40, 60), format="JPEG"):
    """An image whose EXIF record says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image(format, size, exif=exif)


class Fault(NamedTuple):
    """A finding about an image, in short."""

    index: int
    kind: str
    message: str
    severity: str


class Files:
    """A dataset of image files."""

    def __init__(self, paths, sizes, exif):
        self.paths, self.sizes, self.exif = paths, sizes, exif

    def __len__(self):
        return len(self.paths)

    def image_path(self, index):
        return self.paths[index]


def pillow_reads(path):
    """Whether it does by itself: Pillow 10 reads fewer kinds of TIFF than the newest."""
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def dataset_faults(dataset, **share):
    """What inspection of the images of a dataset finds."""
    return [
        Fault(f.place.index, f.kind.removeprefix("image-"), f.message, f.severity)
        for f in image_findings(dataset, "data.train", **share)
    ]


def faults_of(paths, sizes=None, exif="apply"):
    """What inspection of the files finds."""
    return dataset_faults(Files(paths, sizes, exif))
