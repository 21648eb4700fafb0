"""Every image of a data set looked at before it is needed, and what is wrong with each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from visionkit.data.coco.read_ahead import cores
from visionkit.data.files import Fault, find_fault
from visionkit.data.image_io import (
    MAX_PIXELS,
    Refused,
    check_label_mode,
    open_image,
    orientation,
    to_rgb,
)
from visionkit.data.loading.cache import cache_folder, remove, touch, trim
from visionkit.errors import printable
from visionkit.types import Dataset

# --- One look at an image file: whether it can be read, what it is, and what reading it loses.

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # a JPEG with more images behind the first
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}


class ImageInfo(NamedTuple):
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


def inspect_image(path: Path, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Decode the image, and check the sums in a PNG, which decoding does not look at."""

    def facts(image: Image.Image) -> ImageInfo:
        if image.format == "PNG":
            with Image.open(path, formats=("PNG",)) as again:
                again.verify()
        loses = ["bits"] * _has_16_bits(image) + ["frames"] * _is_animated(image)
        image.load()
        to_rgb(image)
        loses += ["alpha"] * _is_transparent(image)
        found = ImageInfo("", "", image.height, image.width, orientation(image), image.mode)
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return found._replace(
            format=image.format or "", loses=" ".join(loses), content=content.hexdigest()
        )

    try:
        return open_image(path, facts, max_pixels)
    except Refused as refused:
        return of_fault(refused.fault)


def of_fault(fault: Fault) -> ImageInfo:
    return ImageInfo(*fault)


def _has_16_bits(image: Image.Image) -> bool:
    """Of an image that is not decoded yet; gray has a mode of its own, colors do not."""
    return image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile)


def _is_animated(image: Image.Image) -> bool:
    return image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.getextrema()[-1][0] < 255
    return "transparency" in image.info


# --- What looking at images found, remembered in the cache folder, so that it is paid for
# once.

log = logging.getLogger("visionkit")

FORMAT = 1  # to be raised with each change of what is stored, or of what a look finds
LIMIT = 2**30  # bytes of all such files; the least recently used go first

State = tuple[int, int]  # of a file: size in bytes, time of change in ns

_TYPES = tuple(type(value) for value in ImageInfo())


class ImageInfoCache:
    """The looks at images below one folder, by their path relative to it.

    An image is known by its path, size and time of change. A file of another version or folder,
    or with damaged lines, is not used or not wholly, which a warning says; nor is it an error if
    nothing can be kept.
    """

    def __init__(self, folder: str) -> None:
        self._first = json.dumps(["visionkit looks", FORMAT, PIL.__version__, folder])
        self._looks: dict[str, tuple[State, ImageInfo]] = {}
        self._file: Path | None = None
        try:
            name = blake2b(self._first.encode(), digest_size=16).hexdigest()
            self._file = cache_folder() / "looks" / f"{name}.jsonl"
            self._read(self._file)
        except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
            self._give_up(error)

    def find(self, name: str, state: State) -> ImageInfo | None:
        found = self._looks.get(name)
        return found[1] if found is not None and found[0] == state else None

    def add(self, looks: Iterable[tuple[str, State, ImageInfo]]) -> None:
        """Remember those that found no fault."""
        new = [(name, state, look) for name, state, look in looks if not look.kind]
        self._looks |= {name: (state, look) for name, state, look in new}
        if self._file is None or not new:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:  # one write, so that none is mixed in
                first = b"" if file.tell() else _line(self._first)
                file.write(first + b"".join(_record(name, *rest) for name, *rest in new))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Note that the file was used, and make room if all such files take too much."""
        if self._file is not None and self._file.exists():
            touch(self._file)
            with suppress(OSError):  # it is another process's turn, or nobody may
                trim(self._file.parent, LIMIT, keep=self._file)

    def _read(self, file: Path) -> None:
        try:
            first, *lines = file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except (ValueError, IsADirectoryError):  # ValueError: it is empty
            first, lines = b"", []
        if first != _line(self._first):
            log.warning("%s: is not what visionkit wrote there; images are looked at again", file)
            remove(file)
            return
        sound = [line for line in lines if self._take(line)]
        if len(sound) < len(lines):
            damaged = len(lines) - len(sound)
            log.warning("%s: %d damaged lines; those images are looked at again", file, damaged)
        if len(sound) < len(lines) or len(sound) > 2 * len(self._looks) + 100:
            self._rewrite(file)

    def _take(self, line: bytes) -> bool:
        """Whether it is a line of ours."""
        if line == _line(self._first):  # two processes began the file
            return True
        try:
            sum_, _, text = line.decode().rstrip("\n").partition(" ")
            if int(sum_, 16) != zlib.crc32(text.encode()) or not line.endswith(b"\n"):
                return False
            name, size, changed, *fields = json.loads(text)
            if type(name) is not str or (type(size), type(changed)) != (int, int):
                return False
            if tuple(map(type, fields)) != _TYPES or fields[0]:
                return False
        except (ValueError, TypeError, RecursionError):
            return False
        self._looks[name] = (size, changed), ImageInfo(*fields)
        return True

    def _rewrite(self, file: Path) -> None:
        """With one line for each image; a line that another process adds meanwhile is lost."""
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with open(handle, "wb") as copy:
                copy.write(_line(self._first))
                for path, (state, look) in self._looks.items():
                    copy.write(_record(path, state, look))
            os.replace(name, file)
        except OSError:
            remove(Path(name))
            raise

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "what was found in images cannot be kept in the cache, so each start looks at all "
            "of them [%s]; VISIONKIT_CACHE names another folder",
            error,
        )
        self._file = None


def _record(name: str, state: State, look: ImageInfo) -> bytes:
    return _line(json.dumps([name, *state, *look]))


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


# --- All images and class maps of a data set that are files, looked at.


def examine_dataset(
    dataset: Dataset, name: str = "images", *, first: int = 0, step: int = 1
) -> list[ImageFault]:
    """What is wrong with them. An `index` is a place in the data set, where several samples share
    an image that of the first. Only every `step`-th sample from `first` on is looked at.

    Nothing is found in a data set without `image_path(index)`, such as `Idx`.
    """
    if not hasattr(dataset, "image_path"):
        return []
    places: dict[Path, int] = {}
    for index in range(first, len(dataset), step):
        places.setdefault(dataset.image_path(index), index)
    paths, indices = [*places], [*places.values()]
    sizes, exif = getattr(dataset, "sizes", None), getattr(dataset, "exif", "apply")
    looks = inspect_images(paths, name)
    wanted = None if sizes is None else sizes[indices]
    found = find_faults(paths, looks, wanted, exif)
    faults = [fault._replace(index=indices[fault.index]) for fault in found]
    if hasattr(dataset, "map_path"):
        if wanted is None:
            wanted = [None if look.kind else size_seen(look, exif) for look in looks]
        faults += _faults_of_maps(dataset, name, indices, wanted)
    return sorted(faults, key=lambda fault: fault.index)


def _faults_of_maps(
    dataset: Dataset,
    name: str,
    indices: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
) -> list[ImageFault]:
    """`sizes` are those of the images, None where it is not known."""
    named = [
        (index, path, size)
        for index, size in zip(indices, sizes, strict=True)
        if (path := dataset.map_path(index)) is not None
    ]
    if not named:
        return []
    indices, paths, sizes = zip(*named, strict=True)
    looks = inspect_images(paths, f"class maps of {name}")
    colored = getattr(dataset, "colored_maps", False)  # then they may have any mode
    found = find_faults(paths, looks, sizes, "ignore", maps=not colored)
    return [fault._replace(index=indices[fault.index]) for fault in found]


MOST = 16  # threads; decoding is done outside of Python's lock
_BLOCK = 32  # images that a thread takes at once, and that are remembered together

LOST = {  # a note on what reading leaves out
    "alpha": "has transparent pixels: alpha is dropped",
    "bits": "has 16 bits a channel: they are scaled to 8",
    "frames": "holds several images: only the first is used",
}

Exif = Literal["apply", "ignore"]
Severity = Literal["error", "warning", "note"]


class ImageFault(NamedTuple):
    """Something about one image. An `error` means that it cannot be used as it is; a `warning`
    that something in it is lost or looks wrong; a `note` is only worth counting."""

    index: int  # in the list of images
    kind: str  # "missing", "damaged", "size", "alpha", ...: what to count by
    message: str  # with the path, what was found and what to do
    severity: Severity


def inspect_images(paths: Sequence[Path], name: str = "images") -> list[ImageInfo]:
    """A look at each image, by several threads, or as it is remembered from an earlier start.

    A file that is the same in path, size and time of change is not looked at again.
    """
    full = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([*{os.path.dirname(path) for path in full}] or [os.sep])
    folder = folder.rstrip(os.sep) + os.sep
    kept, looks = ImageInfoCache(folder), dict[str, ImageInfo]()
    unknown: list[str] = []
    for path in dict.fromkeys(full):
        state = _state(path)
        known = None if state is None else kept.find(path[len(folder) :], state)
        if known is None:
            unknown.append(path)
        else:
            looks[path] = known
    with tqdm(total=len(unknown), desc=f"checking {name}", leave=False, disable=None) as bar:
        for found in _in_threads(unknown):
            kept.add((path[len(folder) :], state, look) for path, state, look in found if state)
            looks |= {path: look for path, _, look in found}
            bar.update(len(found))
    kept.close()
    return [looks[path] for path in full]


def find_faults(
    paths: Sequence[Path],
    looks: Sequence[ImageInfo],
    sizes: Sequence[tuple[int, int] | None] | np.ndarray | None = None,
    exif: Exif = "apply",
    *,
    maps: bool = False,
) -> list[ImageFault]:
    """What those looks tell, in the order of `paths`.

    sizes: the (h, w) that each should have, as the annotations say, after `exif`; None where they
        do not say.
    maps: whether they are maps of class numbers, which `exif` never turns.
    """
    faults: list[ImageFault] = []
    wanted = [None] * len(paths) if sizes is None else sizes
    for i, (path, look, size) in enumerate(zip(paths, looks, wanted, strict=True)):
        size = None if size is None else (int(size[0]), int(size[1]))
        found = _faults_of_map(look, size) if maps else _faults_of(look, size, exif)
        if look.format and Path(path).suffix.lower() not in SUFFIXES_OF.get(look.format, ()):
            found.append(("suffix", f"is a {look.format} file, whatever its name ends in", "note"))
        subject = f"{'class map' if maps else 'image'} {printable(path)}"
        faults += [ImageFault(i, kind, f"{subject} {what}", level) for kind, what, level in found]
    return faults


def duplicate_files(looks: Iterable[ImageInfo]) -> list[list[int]]:
    """The places of images whose files hold the same bytes, a list for each such file."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, look in enumerate(looks):
        if look.content:
            places[look.content].append(i)
    return [alike for alike in places.values() if len(alike) > 1]


def size_seen(look: ImageInfo, exif: Exif = "apply") -> tuple[int, int]:
    """The (h, w) of the image as it is read."""
    turned = exif == "apply" and look.orientation >= 5
    return (look.width, look.height) if turned else (look.height, look.width)


_Found = list[tuple[str, str, Severity]]


def _faults_of(look: ImageInfo, size: tuple[int, int] | None, exif: Exif) -> _Found:
    if look.kind:
        return [(look.kind, look.clause, "error")]
    found: _Found = [(what, LOST[what], "warning") for what in look.loses.split()]
    if look.orientation != 1:
        done = "is turned upright" if exif == "apply" else "is left as it is stored"
        found.append(("exif", f"has EXIF orientation {look.orientation}: it {done}", "note"))
    seen = size_seen(look, exif)
    if size is not None and seen != size:
        found.append(("size", _wrong_size(look, seen, size, exif), "error"))
    return found


def _wrong_size(look: ImageInfo, seen: tuple[int, int], size: tuple[int, int], exif: Exif) -> str:
    other: Exif = "ignore" if exif == "apply" else "apply"
    if seen == size[::-1]:
        remedy = "height and width are swapped in the annotations"
        if size_seen(look, other) == size:
            remedy = (
                f"they describe the image {'as stored' if exif == 'apply' else 'turned upright'};"
                f" set the data set's `exif: {other}`"
            )
    else:
        remedy = "they belong to another image, or one of them was resized alone"
    return f"is {seen[1]}x{seen[0]}, but the annotations say {size[1]}x{size[0]}: {remedy}"


def _faults_of_map(look: ImageInfo, size: tuple[int, int] | None) -> _Found:
    if look.kind:
        return [(look.kind, look.clause, "error")]
    try:
        check_label_mode(look.mode)
    except Refused as refused:
        return [(refused.fault.kind, refused.fault.clause, "error")]
    if size is not None and (look.height, look.width) != size:
        what = f"is {look.width}x{look.height}, but its image {size[1]}x{size[0]}"
        return [("size", f"{what}: make them one size", "error")]
    return []


_Seen = list[tuple[str, State | None, ImageInfo]]


def _in_threads(paths: Sequence[str]) -> Iterable[_Seen]:
    """Blocks of looks, in the order of the paths."""
    pool = ThreadPoolExecutor(min(MOST, cores() + 1), "look")
    blocks = (paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK))
    try:
        waiting: list[Future[_Seen]] = [pool.submit(_look_at_block, block) for block in blocks]
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_block(paths: Sequence[str]) -> _Seen:
    return [_look_once(path) for path in paths]


def _look_once(path: str) -> tuple[str, State | None, ImageInfo]:
    """The look, and the state of the file; None if it changed meanwhile."""
    before = _state(path)
    look = of_fault(find_fault(path)) if before is None else inspect_image(Path(path))
    return path, before if before == _state(path) else None, look


def _state(path: str) -> State | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
