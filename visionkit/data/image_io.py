"""Read images: every mode becomes 8-bit RGB, every failure a DataError that names the file.

Pillow decodes, never `torchvision.io`, which can crash the process on a corrupt PNG. Files, PIL
images, arrays and tensors follow the same rules; see `eight_bits`. Torch is imported only where a
tensor is returned.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError, features

from visionkit.data.files import Fault, find_fault, format_of, unreadable_format
from visionkit.errors import ArgumentError, DataError, plural, printable
from visionkit.types import as_numpy, is_tensor

if TYPE_CHECKING:
    from torch import Tensor

Exif: TypeAlias = Literal["apply", "ignore"]  # whether an EXIF orientation turns the image
Size: TypeAlias = tuple[int, int]  # (h, w)
ValueRange: TypeAlias = tuple[float, float]  # pixel values that become 0 and 255

FORMATS = {  # that are read, with their suffixes
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}


class Plugin(NamedTuple):
    """What reads a format that not every Pillow reads."""

    suffixes: tuple[str, ...]
    module: str  # what `_import_plugin` imports
    package: str  # what to install
    feature: str = ""  # of Pillow itself


PLUGINS = {
    "AVIF": Plugin((".avif",), "pillow_avif", "pillow-avif-plugin", "avif"),
    "HEIF": Plugin((".heic", ".heif"), "pillow_heif", "pillow-heif"),
    "JPEG2000": Plugin((".jp2", ".j2k"), "", "a Pillow with OpenJPEG", "jpg_2000"),
    "JXL": Plugin((".jxl",), "pillow_jxl", "pillow-jxl-plugin"),
}


def _import_plugin(name: str) -> None:
    """Import what registers a format with Pillow, if it is installed."""
    with suppress(ImportError):
        if name == "AVIF":
            import_module("pillow_avif")
        elif name == "HEIF":
            import_module("pillow_heif.HeifImagePlugin")
        elif name == "JXL":
            import_module("pillow_jxl")


def _is_readable(plugin: Plugin) -> bool:
    known = plugin.feature in (*features.modules, *features.codecs)
    if known and features.check(plugin.feature):
        return True
    return bool(plugin.module) and find_spec(plugin.module) is not None


_READABLE = {name: plugin.suffixes for name, plugin in PLUGINS.items() if _is_readable(plugin)}
SUFFIXES = tuple(chain(*FORMATS.values(), *_READABLE.values()))  # of images in folders
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
_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex", 6: "complex"}

T = TypeVar("T")


def is_image_file(path: Path) -> bool:
    """Whether the path is a visible file with a suffix that `read_image` reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def suffixes_of(format: str) -> tuple[str, ...]:
    """The suffixes of an image format by Pillow's name."""
    if format == "MPO":  # a JPEG with more images behind the first
        return FORMATS["JPEG"]
    return FORMATS[format] if format in FORMATS else PLUGINS[format].suffixes


def read_image(
    path: str | Path, *, exif: Exif = "apply", value_range: ValueRange | None = None
) -> Tensor:
    """`read_array` as a tensor."""
    return _as_tensor(read_array(path, exif=exif, value_range=value_range))


def read_array(
    path: str | Path, *, exif: Exif = "apply", value_range: ValueRange | None = None
) -> np.ndarray:
    """The image as (3, h, w) uint8 RGB, channels last in memory.

    Alpha is dropped, the first frame of an animation is used, and pixels of more than 8 bits
    become 8 bits as `eight_bits` says. With `exif="apply"` the image is turned upright (Pillow
    always does so with TIFF files). Raises DataError if the file cannot be read, has more than
    `MAX_PIXELS` pixels (checked before decoding), or has values without a fixed meaning as 8 bits.
    """

    def convert(image: Image.Image) -> Image.Image:
        if value_range is not None and is_deep_color(image):
            raise Refused(DEEP_COLOR)
        return to_rgb(upright(image, exif), value_range)

    return _rgb(_read(path, convert))


def to_pixels(image: Any, value_range: ValueRange | None = None) -> Tensor:
    """`to_array` as a tensor."""
    return _as_tensor(to_array(image, value_range))


def to_array(image: Any, value_range: ValueRange | None = None) -> np.ndarray:
    """A PIL image, an array or a tensor as (3, h, w) uint8 RGB, by the rules of `read_image`.

    Arrays are (h, w), (h, w, 1) or (h, w, 3); tensors (h, w), (1, h, w) or (3, h, w). Raises
    ArgumentError for anything else, DataError for values without a fixed meaning; both say how to
    convert it.
    """
    try:
        if isinstance(image, Image.Image):
            return _rgb(to_rgb(upright(image, "apply"), value_range))
        values = eight_bits(_channels_last(image), value_range)
    except Refused as refused:
        how = _rescaling(image)
        raise DataError(f"{type(image).__name__} {refused.fault.clause}{how}") from None
    except (OSError, ValueError, SyntaxError) as error:  # of Pillow; our own are ValueErrors too
        if isinstance(error, ArgumentError):
            raise
        text = f"the PIL image is closed or cannot be decoded [{printable(str(error))}]"
        raise ArgumentError(f"{text}: open it again") from error
    rgb = values if values.shape[2] > 1 else values.repeat(3, 2)
    return rgb.copy().transpose(2, 0, 1)


def _channels_last(image: Any) -> np.ndarray:
    """The values (h, w, 1) or (h, w, 3) of an array or a tensor."""
    values = image
    if is_tensor(image):
        try:
            values = as_numpy(image)
        except (RuntimeError, TypeError) as error:  # sparse, meta, quantized
            text = str(error).splitlines()[0]
            raise ArgumentError(
                f"got a tensor without plain values (layout {image.layout}, device {image.device}) "
                f"[{text}]; expected a dense tensor (h, w) or (3, h, w), as `to_dense()` returns"
            ) from error
    found = type(image).__name__
    if isinstance(values, np.ndarray):
        values = np.asarray(values)  # a matrix would stay one, whatever its index
        gray = values[..., None] if values.ndim == 2 else values
        if is_tensor(image) and values.ndim == 3:
            gray = np.moveaxis(values, 0, -1)
        if gray.ndim == 3 and gray.size and gray.dtype.kind in "buif" and gray.shape[2] in (1, 3):
            return gray
        found += f" of shape {values.shape} and type {image.dtype}"
    raise ArgumentError(
        f"got {found}{_conversion(image)}; expected a file name, a PIL image, an array (h, w) or "
        "(h, w, 3), or a tensor (h, w) or (3, h, w), with gray or RGB pixels"
    )


def _conversion(image: Any) -> str:
    """How to make an image of something else, if that can be guessed: ` (...)`, or nothing."""
    shape = tuple(getattr(image, "shape", ()))
    first = is_tensor(image)  # are the channels
    if (first or isinstance(image, np.ndarray)) and len(shape) == 3:
        channels, other = (shape[0], shape[2]) if first else (shape[2], shape[0])
        if channels == 4:
            rgb = "image[:3]" if first else "image[..., :3]"
            return f" (of 4 channels: if they are RGBA, give {rgb}; if CMYK, the PIL image)"
        if other in (1, 3, 4):
            turned = "last: give image.permute(2, 0, 1)"
            turned = turned if first else "first: give image.transpose(1, 2, 0)"
            return f" (its channels are {turned})"
        if channels == 2:
            gray = "image[0]" if first else "image[..., 0]"
            return f" (of 2 channels: if they are gray and alpha, give {gray})"
    if isinstance(image, (list, tuple)) or len(shape) == 4:
        images = "images" if isinstance(image, (list, tuple)) else "list(images)"
        return f" (for several images: visionkit.predict(model, {images}))"
    if isinstance(image, (bytes, bytearray)):
        return " (of a file's content: give PIL.Image.open(io.BytesIO(content)))"
    if hasattr(image, "read"):
        return " (of an open file: give PIL.Image.open(file))"
    return " (cv2.imread returns it if it cannot read a file)" if image is None else ""


def _rescaling(image: Any) -> str:
    """How to make 8 bits of floating-point pixels, if that can be guessed: `; ...`, or nothing."""
    of_tensor = is_tensor(image) and image.is_floating_point()
    if not of_tensor and not (isinstance(image, np.ndarray) and image.dtype.kind == "f"):
        return ""
    low, high = float(image.min()), float(image.max())
    to_bytes = "byte()" if of_tensor else "astype(np.uint8)"
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if low >= 0 and high <= 1:
        return f"; if 1 is white, give (image * 255).round().{to_bytes}"
    if low >= 0 and high <= 255:
        return f"; if 255 is white, give image.round().{to_bytes}"
    return "; if they are normalized, give the pixels before: the model normalizes them itself"


def _rgb(image: Image.Image) -> np.ndarray:
    """(3, h, w) of an RGB image; a bytearray, so that it may be written to."""
    if not image.width * image.height:
        raise ValueError("it has no pixels")
    pixels = np.frombuffer(bytearray(image.tobytes()), np.uint8)
    return pixels.reshape(image.height, image.width, 3).transpose(2, 0, 1)


def _as_tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values)


def eight_bits(values: np.ndarray, value_range: ValueRange | None = None) -> np.ndarray:
    """Pixel values of any type as uint8.

    8-bit values stay; false and true become 0 and 255. With `value_range` (low, high), others are
    mapped linearly: low becomes 0 and high 255, and what is beyond is clipped. Without it, 16-bit
    values are divided by 257, and so are other integers if they are 0..65535 and not all below
    256, which could also mean 8 bits. Raises `Refused` for the rest.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if fault := range_fault(values.dtype, float(values.min()), float(values.max()), value_range):
        raise Refused(fault)
    low, high = value_range or (0, 65535)
    scaled = values.astype(np.float32 if values.itemsize <= 2 else np.float64)
    return ((scaled.clip(low, high) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def range_fault(
    dtype: np.dtype | str, low: float, high: float, value_range: ValueRange | None
) -> Fault | None:
    """Why pixels of more than 8 bits, from `low` to `high`, have no meaning as 8 bits."""
    kind = np.dtype(dtype).kind
    if not (math.isfinite(low) and math.isfinite(high)):
        return Fault("values", "has pixels that are not finite: replace them")
    sure = np.dtype(dtype) == np.uint16 or 255 < high <= 65535 or high == 0
    if value_range is not None or (kind != "f" and low >= 0 and sure):
        return None
    name = "floating-point" if kind == "f" else "integer"
    clause = (
        f"has {name} pixels from {low:.6g} to {high:.6g}, which have no fixed meaning as 8 bits"
    )
    hint = "save it with 8 or 16 bits, or give their range as data.value_range=[low,high]"
    return Fault("values", f"{clause}: {hint}")


DEEP_COLOR = Fault(
    "values",
    "has colors of 16 bits, of which Pillow reads the upper 8: `data.value_range` applies to gray "
    "images alone; save it with 8 bits",
)


def is_deep_color(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has colors of 16 bits, which become 8 bits then."""
    tiles = getattr(image, "tile", ())
    return not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in tiles)


def deep_values(image: Image.Image) -> np.ndarray | None:
    """The pixels (h, w) of a decoded gray image of more than 8 bits; None for others."""
    if not image.mode.startswith(("I", "F")):
        return None
    values = np.asarray(image)
    # Where a format has 16 bits at most, the int32 of Pillow are 16 bits too.
    return values.astype(np.uint16) if image.format in ("PNG", "PPM") else values


def label_mode_fault(mode: str, hint: str = "convert it") -> Fault | None:
    """Why an image of that mode cannot be a semantic map; None if it can."""
    if mode in ("L", "P"):
        return None
    if mode.startswith(("I", "F")):  # of more than 8 bits, not a map of colors
        hint = "save its numbers with 8 bits"
    elif mode in ("LA", "La", "PA"):  # numbers with alpha, not colors
        hint = "save its first channel alone, with 8 bits"
    clause = f"has mode {mode}: a semantic map must be 8-bit gray or palette; {hint}"
    return Fault("values", clause)


def read_label_map(path: str | Path, hint: str = "convert it") -> Tensor:
    """The class numbers of a semantic map, an 8-bit gray or palette image: (h, w) uint8. `hint`
    is for an image of another mode."""

    def indices(image: Image.Image) -> Image.Image:
        if fault := label_mode_fault(image.mode, hint):
            raise Refused(fault)
        image.load()
        return image

    labels = _read(path, indices, "semantic map")
    values = np.frombuffer(bytearray(labels.tobytes()), np.uint8)
    return _as_tensor(values.reshape(labels.height, labels.width))


def size_hint(found: Size, expected: Size, exif: Exif, *, turns: bool) -> str:
    """What may be the reason why an image has another (h, w) than its annotations. `turns`: its
    EXIF orientation exchanges height and width."""
    if found != expected[::-1]:
        return "the annotations are of another image, or one of the two was resized alone"
    if not turns:
        return "height and width are swapped in the annotations"
    other, state = ("ignore", "as stored") if exif == "apply" else ("apply", "turned upright")
    return (
        f"its EXIF orientation exchanges them: if the annotations describe the image {state}, set "
        f"`exif: {other}` on the dataset; else height and width are swapped in the annotations"
    )


def check_size(path: Path, found: Size, expected: Size, source: Path, exif: Exif) -> None:
    """DataError if an image has another (h, w) than its annotations, the file `source`."""
    if found == expected:
        return
    hint = size_hint(found, expected, exif, turns=turns(path))
    raise DataError(
        f"image {printable(path)} is {found[1]}x{found[0]}, but {printable(source)} says "
        f"{expected[1]}x{expected[0]} ({hint})"
    )


def turns(path: Path) -> bool:
    """Whether the EXIF orientation of an image exchanges its height and width."""
    with suppress(Refused):
        return open_image(path, orientation) >= 5
    return False


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
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}"
                raise Refused(Fault("too-large", f"has {size}: make it smaller"))
            if image.format == "TIFF" and (fault := _misread_tiff(image)):
                raise Refused(fault)
            return use(image)
    except (Refused, Warning):  # Python may raise warnings as errors
        raise
    except Image.DecompressionBombError:
        clause = f"has more than {MAX_PIXELS} pixels: make it smaller"
        raise Refused(Fault("too-large", clause)) from None
    except MemoryError:
        clause = "does not fit into memory, or is corrupt: make it smaller or replace it"
        raise Refused(Fault("too-large", clause)) from None
    except Exception as error:  # decoders raise nearly anything on corrupt bytes
        kind, clause = _unusual_tiff(path) or find_fault(path)
        raise Refused(Fault(kind, f"{clause} [{printable(str(error))}]")) from error


def _open(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=tuple(FORMATS))
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            name = format_of(file.read(512))
        if name not in PLUGINS:
            raise
    Image.init()
    if name not in Image.OPEN:
        _import_plugin(name)
    if name not in Image.OPEN:
        clause = f"{unreadable_format(name)}, or install {PLUGINS[name].package}"
        raise Refused(Fault("format", clause))
    return Image.open(path, formats=(name,))


def _misread_tiff(image: Any) -> Fault | None:
    """The fault of a TIFF file, not decoded yet, whose values Pillow would change silently."""
    bits, sample = image.tag_v2.get(258, (1,)), image.tag_v2.get(339, (1,))
    if 8 in bits and 2 in sample:
        return Fault(
            "values", "has signed 8-bit pixels, which Pillow reads as unsigned: save others"
        )
    if 16 in bits and len(bits) > 1 and not is_deep_color(image):
        clause = "has separate bands of 16 bits, which Pillow misreads: interleave them"
        return Fault("values", f"{clause}, or save it with 8 bits")
    return None


def _unusual_tiff(path: str | Path) -> Fault | None:
    """The fault of a TIFF file with bands or values that Pillow does not read."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if b"\x2b" in start[2:4]:  # BigTIFF
                start += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            bands, bits, sample, packed = (tags.get(tag, 1) for tag in (277, 258, 339, 259))
    except Exception:  # not a TIFF file, or corrupt
        return None
    bits, sample = (value[0] if isinstance(value, tuple) else value for value in (bits, sample))
    if packed not in TiffImagePlugin.COMPRESSION_INFO:
        clause = f"is a TIFF with compression {packed}, which Pillow does not read"
        return Fault("format", f"{clause}: save it with LZW, Deflate or no compression")
    if (bands in (1, 3, 4) or (bands, bits) == (2, 8)) and sample == 1 and bits in (1, 2, 4, 8, 16):
        return None
    values = f"{bits}-bit {_SAMPLES.get(sample, 'values')}"
    clause = f"is a TIFF of {plural(bands, 'band')} of {values}, which Pillow does not read"
    return Fault("values", f"{clause}: save 1 (gray) or 3 (RGB) of them with 8 or 16 bits")


def _read(
    path: str | Path, convert: Callable[[Image.Image], Image.Image], what: str = "image"
) -> Image.Image:
    try:
        return open_image(path, convert)
    except Refused as refused:
        raise DataError(f"{what} {printable(path)} {refused.fault.clause}") from refused.__cause__


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
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format  # which `deep_values` reads
    return turned


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """An image of any mode as 8-bit RGB. `Refused` if its values have no meaning as 8 bits."""
    if (values := deep_values(image)) is not None:
        return Image.fromarray(eight_bits(values, value_range)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # as `inPlace` is not set
        return converted
    if image.mode == "RGBa":  # premultiplied alpha
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
