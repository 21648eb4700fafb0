"""Inspect every image of a run before training, and remember the readable ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from visionkit.config import Config
from visionkit.data import image_io
from visionkit.data.checks.findings import Finding, Place, Problems
from visionkit.data.checks.kinds import Action, Severity
from visionkit.data.files import find_fault
from visionkit.data.image_io import Exif, Refused, ValueRange
from visionkit.data.loading.cache import cache_folder, evict, remove, touch
from visionkit.data.loading.source import Source, iter_splits, max_unreadable, split_key
from visionkit.data.loading.workers import cores
from visionkit.distributed import collectives
from visionkit.errors import printable
from visionkit.runs.terminal import progress_bar
from visionkit.types import Dataset

log = logging.getLogger("visionkit")

Size = tuple[int, int]  # (h, w)
State = tuple[int, int]  # of a file: size in bytes, modification time in ns
_Problem = tuple[str, str, Severity]  # kind, text that follows the file's name

FORMAT = 5  # raise it with each change of what is stored, or of what an inspection finds
CACHE_LIMIT = 2**30  # bytes of all files; the least recently used are removed first
MAX_THREADS = 16  # decoding releases Python's lock
_BLOCK = 32  # images of a thread's task, which are remembered together

LOST = {  # what `read_image` drops
    "alpha": "has transparent pixels: alpha is dropped",
    "bits": "has 16 bits a channel: they are scaled to 8",
    "frames": "holds several images: only the first is used",
    "bands": "has a band that is neither color nor alpha: it is dropped",
}


class ImageInfo(NamedTuple):
    """What inspection found in a file. If `kind` is not empty, only `clause` is known besides."""

    kind: str = ""  # of the fault, one word; empty: the image is readable
    clause: str = ""  # what is wrong and what to do; follows the file's name
    height: int = 0  # as stored
    width: int = 0
    orientation: int = 1  # by its EXIF record, 1 to 8
    mode: str = ""
    format: str = ""
    dtype: str = ""  # of gray pixels of more than 8 bits, which are from `low` to `high`
    low: float = 0.0
    high: float = 0.0
    loses: str = ""  # keys of `LOST`
    content: str = ""  # a hash of the file's bytes
    numbers: str = ""  # of the pixels of a gray or palette image, with a space between two
    colors: str = ""  # of the pixels as RGB, as one number each; empty if there are more than 256

    def size(self, exif: Exif) -> Size:
        """The size of the image as `read_image` returns it."""
        turned = exif == "apply" and self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def inspect_image(path: Path) -> ImageInfo:
    """Decode the image, and verify the checksums of a PNG, which decoding ignores."""

    def inspect(image: Image.Image) -> ImageInfo:
        if image.format == "PNG":
            with Image.open(path, formats=("PNG",)) as again:
                again.verify()
        loses = ["bits"] if image.mode.startswith("I") or image_io.is_deep_color(image) else []
        if image.format == "TIFF" and re.search("RGBX|'LX'", str(getattr(image, "tile", ""))):
            loses.append("bands")
        if getattr(image, "is_animated", False) and image.format in ("GIF", "WEBP", "PNG", "TIFF"):
            loses.append("frames")
        image.load()
        pixels: dict[str, Any] = {}
        if (deep := image_io.deep_values(image)) is not None:
            low, high = float(deep.min()), float(deep.max())
            if fault := image_io.range_fault(deep.dtype, low, high, (low, high)):  # not finite
                raise Refused(fault)
            pixels = {"dtype": deep.dtype.name, "low": low, "high": high}
        else:
            pixels = {"colors": _distinct(image_io.to_rgb(image))}
        if image.mode in ("L", "P"):
            pixels["numbers"] = _distinct(image)
        if _is_transparent(image):
            loses.append("alpha")
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return ImageInfo(
            height=image.height,
            width=image.width,
            orientation=image_io.orientation(image),
            mode=image.mode,
            format=image.format or "",
            **pixels,
            loses=" ".join(loses),
            content=content.hexdigest(),
        )

    try:
        return image_io.open_image(path, inspect)
    except Refused as refused:
        return ImageInfo(*refused.fault)


def _distinct(image: Image.Image) -> str:
    found: Any = image.getcolors(256) or ()  # with their counts
    numbers = (v if isinstance(v, int) else v[0] << 16 | v[1] << 8 | v[2] for _, v in found)
    return " ".join(map(str, sorted(numbers)))


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        extrema: Any = image.getextrema()  # of each channel
        return extrema[-1][0] < 255
    return "transparency" in image.info


class ImageInfoCache:
    """The readable images below one folder, in a SQLite file of the cache folder.

    An image is known by its path, size and modification time. Several ranks and runs may write. A
    file that is damaged or not visionkit's is replaced, with a warning. If nothing can be written,
    one warning says so, and images are inspected at each start.
    """

    def __init__(self, folder: str) -> None:
        self._known: dict[str, tuple[State, ImageInfo]] = {}
        self._database: sqlite3.Connection | None = None
        key = json.dumps([FORMAT, PIL.__version__, folder]).encode()
        try:
            root = cache_folder() / "image_info"
            root.mkdir(parents=True, exist_ok=True)
            self._file = root / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.sqlite3"
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # the disk, not the file
                    raise
                log.warning("%s: %s; images are inspected again", self._file, error)
                remove(self._file)
                self._open()
        except (OSError, RuntimeError, sqlite3.Error) as error:  # RuntimeError: no home folder
            self._give_up(error)

    def _open(self) -> None:
        """Connect and read all rows; sqlite3.DatabaseError unless each has its checksum."""
        if self._file.is_symlink() or self._file.is_dir():
            raise sqlite3.DatabaseError("not a file of visionkit")
        self._known = {}
        self._database = sqlite3.connect(self._file, timeout=60)
        self._database.execute("PRAGMA synchronous = OFF")  # a lost row only costs an inspection
        columns = ", ".join(("path PRIMARY KEY", "bytes", "changed", *ImageInfo._fields, "crc"))
        self._database.execute(f"CREATE TABLE IF NOT EXISTS images ({columns}) WITHOUT ROWID")
        for *row, crc in self._database.execute("SELECT * FROM images"):
            if crc != _crc(row):
                raise sqlite3.DatabaseError("a damaged row")
            path, size, changed, *info = row
            self._known[os.fsdecode(path)] = (size, changed), ImageInfo(*info)

    def find(self, path: str, state: State | None) -> ImageInfo | None:
        """What is remembered of that file, unless it has changed."""
        known = self._known.get(path)
        return known[1] if known is not None and known[0] == state else None

    def add(self, inspected: Iterable[tuple[str, State | None, ImageInfo]]) -> None:
        """Remember the readable images whose state is known."""
        rows = [
            [os.fsencode(path), *state, *info]
            for path, state, info in inspected
            if state is not None and not info.kind
        ]
        if self._database is None or not rows:
            return
        places = ", ".join("?" * (len(rows[0]) + 1))
        try:
            with self._database:  # one transaction
                self._database.executemany(
                    f"INSERT OR REPLACE INTO images VALUES ({places})",
                    [[*row, _crc(row)] for row in rows],
                )
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Mark the file as used, and remove the least recently used ones above the limit."""
        if self._database is None:
            return
        self._database.close()
        touch(self._file)
        with suppress(OSError):  # another process removes them, or nobody may
            evict(self._file.parent, CACHE_LIMIT, keep=self._file)

    def _give_up(self, error: Exception) -> None:
        text = "the results of image inspection cannot be cached, so each start inspects all images"
        log.warning("%s [%s]; VISIONKIT_CACHE names another folder", text, error)
        if self._database is not None:
            self._database.close()
        self._database = None


def _crc(row: Sequence[object]) -> int:
    return zlib.crc32(repr(tuple(row)).encode())


def inspect_images(paths: Sequence[Path], name: str = "images") -> list[ImageInfo]:
    """What is in each image file, by inspection in several threads, or as it is remembered.

    A file with the same path, size and modification time is not inspected again.
    """
    if not paths:
        return []
    full = [os.path.abspath(path) for path in paths]
    cache = ImageInfoCache(os.path.commonpath([*map(os.path.dirname, full)]))
    remembered = {path: cache.find(path, _state(path)) for path in full}
    found = {path: info for path, info in remembered.items() if info is not None}
    unknown = [path for path in remembered if path not in found]
    blocks = [unknown[start : start + _BLOCK] for start in range(0, len(unknown), _BLOCK)]
    with (
        ThreadPoolExecutor(min(MAX_THREADS, cores() + 1), "inspect") as pool,
        progress_bar(what=f"checking {name}", total=len(unknown)) as bar,
    ):
        for inspected in pool.map(lambda block: [*map(_inspect_unchanged, block)], blocks):
            cache.add(inspected)
            found |= {path: info for path, _, info in inspected}
            bar.update(len(inspected))
    cache.close()
    return [found[path] for path in full]


def _inspect_unchanged(path: str) -> tuple[str, State | None, ImageInfo]:
    """What is in the file, and its state; None if it changed meanwhile."""
    before = _state(path)
    info = ImageInfo(*find_fault(path)) if before is None else inspect_image(Path(path))
    return path, before if before == _state(path) else None, info


def _state(path: str) -> State | None:
    with suppress(OSError, ValueError):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return None


def duplicate_files(infos: Iterable[ImageInfo]) -> list[list[int]]:
    """The places of images whose files hold the same bytes, a list for each content."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, info in enumerate(infos):
        if info.content:
            places[info.content].append(i)
    return [same for same in places.values() if len(same) > 1]


def image_findings(
    dataset: Dataset, section: str, *, first: int = 0, step: int = 1
) -> list[Finding]:
    """The findings about image and semantic map files, for every `step`-th sample from `first` on.

    Where several samples share an image, the finding is about the first. A dataset without
    `image_path(index)` has no findings.
    """
    if not hasattr(dataset, "image_path"):
        return []
    ids, sizes = getattr(dataset, "image_ids", None), getattr(dataset, "sizes", None)
    exif: Exif = getattr(dataset, "exif", "apply")
    value_range = getattr(dataset, "value_range", None)
    index_of: dict[Path, int] = {}
    for index in range(first, len(dataset), step):
        index_of.setdefault(dataset.image_path(index), index)

    found: list[Finding] = []

    def add(
        index: int, name: str, path: Path, info: ImageInfo, problems: Iterable[_Problem]
    ) -> None:
        place = Place("images", index, None if ids is None else ids[index])
        if info.kind:
            problems = [(info.kind, info.clause, "error")]
        elif path.suffix.lower() not in image_io.suffixes_of(info.format):
            text = f"is a {info.format} file, unlike its suffix"
            problems = (*problems, ("suffix", text, "note"))
        for kind, text, severity in problems:
            action: Action = "error" if severity == "error" else "keep"
            found.append(
                Finding(
                    f"image-{kind}",
                    f"{name} {printable(path)} {text}",
                    section,
                    place,
                    value=f"{info.high:.0f}" if kind == "bits" and info.dtype else None,
                    action=action,
                    severity=severity,
                )
            )

    maps: list[tuple[int, Path, Size | None]] = []
    infos = inspect_images([*index_of], section)
    for (path, index), info in zip(index_of.items(), infos, strict=True):
        annotated = None if sizes is None else (int(sizes[index][0]), int(sizes[index][1]))
        add(index, "image", path, info, _image_problems(info, annotated, exif, value_range))
        if hasattr(dataset, "map_path") and (map_path := dataset.map_path(index)) is not None:
            maps.append((index, map_path, annotated or (None if info.kind else info.size(exif))))
    infos = inspect_images([path for _, path, _ in maps], f"semantic maps of {section}")
    for (index, path, size), info in zip(maps, infos, strict=True):
        add(index, "semantic map", path, info, _map_problems(dataset, info, size))
    return sorted(found, key=_image_index)


def map_values(dataset: Dataset) -> Counter[int] | None:
    """How many of the semantic maps hold each value, or color as one number; None if this is not
    known of all. Maps that were inspected before are not read again."""
    if not hasattr(dataset, "map_path"):
        return None
    paths = {dataset.map_path(index) for index in range(len(dataset))} - {None}
    colored = getattr(dataset, "colored_maps", False)
    infos = inspect_images(sorted(paths), "semantic maps")
    found = [info.colors if colored else info.numbers for info in infos if not info.kind]
    return Counter(int(v) for one in found for v in one.split()) if all(found) and found else None


def _image_index(finding: Finding) -> int:
    return finding.place.index  # type: ignore[union-attr]  # all here have a place


def _image_problems(
    info: ImageInfo, annotated: Size | None, exif: Exif, value_range: ValueRange | None
) -> Iterator[_Problem]:
    yield from _pixel_problems(info, value_range)
    if info.orientation != 1:
        done = "is turned upright" if exif == "apply" else "stays as it is stored"
        yield "exif", f"has EXIF orientation {info.orientation}: it {done}", "note"
    size = info.size(exif)
    if annotated is None or size == annotated:
        return
    hint = image_io.size_hint(size, annotated, exif, turns=info.orientation >= 5)
    text = f"is {size[1]}x{size[0]}, but the annotations say {annotated[1]}x{annotated[0]}: {hint}"
    yield "size", text, "error"


def _pixel_problems(info: ImageInfo, value_range: ValueRange | None) -> Iterator[_Problem]:
    """What `read_image` refuses, or loses."""
    if info.dtype:
        if fault := image_io.range_fault(info.dtype, info.low, info.high, value_range):
            yield *fault, "error"
            return
    elif "bits" in info.loses and value_range is not None:
        yield *image_io.DEEP_COLOR, "error"
        return
    for what in info.loses.split():
        yield what, LOST[what], "warning"


def _map_problems(dataset: Any, info: ImageInfo, size: Size | None) -> Iterator[_Problem]:
    """Those of a semantic map whose image has that size."""
    if getattr(dataset, "colored_maps", False):  # else the numbers count
        yield from _pixel_problems(info, None)
    elif fault := image_io.label_mode_fault(info.mode, getattr(dataset, "mode_hint", "convert it")):
        yield *fault, "error"
        return
    elif hasattr(dataset, "map_fault") and (
        clause := dataset.map_fault(np.array(info.numbers.split(), np.int64))
    ):
        yield "values", clause, "error"
    if size is not None and info.size("ignore") != size:
        text = f"is {info.width}x{info.height}, but its image {size[1]}x{size[0]}"
        yield "size", f"{text}: make them one size", "error"


def check_images(config: Config, sources: list[Source]) -> dict[str, list[Finding]]:
    """Inspect the images of all sources with `check_images`; ranks share the work.

    DataError lists the unusable images, except training images that may be replaced. The log
    names and counts the others. Returns all findings by section, such as `data.train`.
    """
    problems, by_section = Problems("images"), {}
    for source in [one for one in sources if config.data[one.name].check_images]:
        for split, dataset in iter_splits(source):
            section = split_key(source.name, split)
            rank, world_size = collectives.rank(), collectives.world_size()
            mine = image_findings(dataset, section, first=rank, step=world_size)
            everywhere = chain.from_iterable(collectives.all_gather_object(mine))
            found = completed(source, split, sorted(everywhere, key=_image_index))
            problems.findings += [finding for finding in found if finding.severity == "error"]
            by_section[section] = found
            if collectives.rank() == 0:
                _log(section, found)
    problems.raise_any()
    return by_section


def narrow_range(found: Iterable[Finding], section: str, dataset: Any) -> list[Finding]:
    """A warning, if gray images of more than 8 bits use less than half of the 16-bit range."""
    values = [int(one.value) for one in found if one.kind == "image-bits" and one.value]
    highest = max(values, default=0)
    if not 0 < highest < 2**15 or getattr(dataset, "value_range", None) is not None:
        return []
    source = section.rpartition(".")[0] if section.startswith("data.") else "data"
    text = (
        f"no 16-bit image has a value above {highest} of 65535, so all are dark: set "
        f"{source}.value_range=[0,{2 ** highest.bit_length() - 1}], or the range of the camera"
    )
    return [Finding("image-range", text, section, action="keep", severity="warning")]


def completed(source: Source, split: str, found: list[Finding]) -> list[Finding]:
    """The findings about all images of a split: those about unreadable training images that
    training replaces as dropped, if `on_unreadable_image` and their number allow it; and what only
    all images together show."""
    dataset = getattr(source, split)
    unreadable = sum(finding.severity == "error" for finding in found)
    replaces = source.skip_unreadable and split == "train"
    if replaces and unreadable <= max_unreadable(len(dataset)):
        dropped: dict[str, Any] = {"action": "drop", "severity": "warning"}
        found = [f._replace(**dropped) if f.severity == "error" else f for f in found]
    return found + narrow_range(found, split_key(source.name, split), dataset)


def _log(section: str, found: list[Finding]) -> None:
    """One line for each image to replace, and one for each kind of other findings."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in found:
        if finding.action == "drop":
            log.warning("%s: training replaces it: %s", section, finding.message)
        elif finding.severity != "error":
            by_kind[finding.kind].append(finding)
    for same in by_kind.values():
        level = logging.WARNING if same[0].severity == "warning" else logging.INFO
        more = f", and {len(same) - 1} more" if len(same) > 1 else ""
        log.log(level, "%s: %s%s", section, same[0].message, more)
